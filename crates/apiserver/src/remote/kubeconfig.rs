//! A service that a kubeconfig describes: the current context's cluster is the service, its user is this server.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::http::HeaderValue;
use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::exec::Program;
use super::{Credentials, Remote, Trust};

/// What one user of a kubeconfig presents.
#[derive(Clone, Debug, Default)]
pub struct User {
    pub credentials: Credentials,
    /// A client certificate and its key.
    pub certificate: Option<(String, String)>,
}

/// The users of a kubeconfig by name. They are named by the hosts that they are for.
#[derive(Clone, Debug, Default)]
pub struct Users {
    by_name: HashMap<String, User>,
    /// The current context's.
    current: String,
}

/// Reads the file and prepares calls to the service.
///
/// # Errors
/// When a file is missing or malformed, or asks for what is not supported.
pub fn load(path: &Path) -> anyhow::Result<Remote> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    parse(&text, directory).with_context(|| path.display().to_string())
}

fn parse(text: &str, directory: &Path) -> anyhow::Result<Remote> {
    let config: Value = serde_saphyr::from_str(text)?;
    let context = current(&config)?;
    let cluster = named(&config, "clusters", "cluster", &context["cluster"])
        .context("the context has no cluster")?;
    let name = context["user"].as_str().unwrap_or_default();
    let user = named(&config, "users", "user", &context["user"]).unwrap_or(&Value::Null);
    let user = User::read(name, user, directory)?;
    if cluster["proxy-url"].is_string() {
        bail!("proxy-url is not supported");
    }
    let file = |value: &Value, name: &str| Content { value, name }.read(directory);
    let trust = if cluster["insecure-skip-tls-verify"] == true {
        Trust::Anything
    } else {
        match file(cluster, "certificate-authority")? {
            Some(pem) => Trust::Authorities(pem),
            None => Trust::System,
        }
    };
    let server = cluster["server"]
        .as_str()
        .context("the cluster has no server")?;
    let server_name = cluster["tls-server-name"]
        .as_str()
        .filter(|name| !name.is_empty());
    let described = describe(cluster, server, server_name, &trust);
    let identity = user.certificate.as_ref();
    let remote = Remote::new(server, &trust, identity, server_name, user.credentials)?;
    Ok(remote.described(described))
}

/// A cluster as programs that give credentials are told of it.
fn describe(cluster: &Value, server: &str, server_name: Option<&str>, trust: &Trust) -> Value {
    const CONFIG: &str = "client.authentication.k8s.io/exec";
    let extension = named(cluster, "extensions", "extension", &CONFIG.into());
    let mut described = json!({"server": server, "config": extension});
    if let Some(name) = server_name {
        described["tls-server-name"] = name.into();
    }
    match trust {
        Trust::Authorities(pem) => {
            described["certificate-authority-data"] = STANDARD.encode(pem).into();
        }
        Trust::Anything => described["insecure-skip-tls-verify"] = true.into(),
        Trust::System => {}
    }
    if cluster["disable-compression"] == true {
        described["disable-compression"] = true.into();
    }
    described
}

// === impl User ===

impl User {
    fn read(name: &str, user: &Value, directory: &Path) -> anyhow::Result<Self> {
        if !user["auth-provider"].is_null() {
            bail!("credentials from \"auth-provider\" are not supported");
        }
        let file = |name: &str| Content { value: user, name }.read(directory);
        let certificate = match (file("client-certificate")?, file("client-key")?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => bail!("a client certificate needs its key, and the key a certificate"),
        };
        let mut credentials = credentials(user, directory)?;
        if !user["exec"].is_null() {
            let program = Program::read(&user["exec"], name, directory)?;
            // It is asked only where there is nothing else to present.
            if matches!(credentials, Credentials::None) && certificate.is_none() {
                credentials = Credentials::Program(Arc::new(program));
            }
        }
        Ok(Self {
            credentials,
            certificate,
        })
    }
}

// === impl Users ===

impl Users {
    /// Reads the users of a kubeconfig.
    ///
    /// # Errors
    /// When a file is missing or malformed, or asks for what is not supported.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let directory = path.parent().unwrap_or_else(|| Path::new("/"));
        Self::parse(&text, directory).with_context(|| path.display().to_string())
    }

    fn parse(text: &str, directory: &Path) -> anyhow::Result<Self> {
        let config: Value = serde_saphyr::from_str(text)?;
        let mut by_name = HashMap::new();
        for entry in config["users"].as_array().into_iter().flatten() {
            let name = entry["name"].as_str().unwrap_or_default();
            let user =
                User::read(name, &entry["user"], directory).with_context(|| name.to_owned())?;
            by_name.insert(name.to_owned(), user);
        }
        let context = named(&config, "contexts", "context", &config["current-context"]);
        let current = context.and_then(|c| c["user"].as_str()).unwrap_or_default();
        Ok(Self {
            by_name,
            current: current.to_owned(),
        })
    }

    /// Who is presented to a host, which comes with its port: the user of its name, with `*` for what is before a dot or
    /// without the port if it is 443, then the one for all hosts, then the current context's.
    #[must_use]
    pub fn of(&self, host: &str) -> Option<&User> {
        let without_port = host.strip_suffix(":443");
        std::iter::once(host)
            .chain(without_port)
            .find_map(|name| self.named_like(name))
            .or_else(|| self.by_name.get("*"))
            .or_else(|| self.by_name.get(&self.current))
    }

    fn named_like(&self, host: &str) -> Option<&User> {
        let domains = host.match_indices('.').map(|(dot, _)| &host[dot..]);
        let mut wildcards = domains.map(|domain| format!("*{domain}"));
        let exact = self.by_name.get(host);
        exact.or_else(|| wildcards.find_map(|name| self.by_name.get(&name)))
    }
}

/// The current context, or the only one.
fn current(config: &Value) -> anyhow::Result<&Value> {
    let name = &config["current-context"];
    if name.as_str().is_some_and(|n| !n.is_empty()) {
        return named(config, "contexts", "context", name)
            .with_context(|| format!("context {name} was not found"));
    }
    match config["contexts"].as_array().map(Vec::as_slice) {
        Some([only]) => Ok(&only["context"]),
        _ => bail!("there is no current-context"),
    }
}

fn named<'a>(config: &'a Value, list: &str, field: &str, name: &Value) -> Option<&'a Value> {
    let entries = config[list].as_array()?;
    entries
        .iter()
        .find(|e| e["name"] == *name)
        .map(|e| &e[field])
}

fn credentials(user: &Value, directory: &Path) -> anyhow::Result<Credentials> {
    let text = |name: &str| user[name].as_str().filter(|t| !t.is_empty());
    if let Some(path) = text("tokenFile") {
        return Ok(Credentials::TokenFile(directory.join(path)));
    }
    let header = match (text("token"), text("username")) {
        (Some(token), _) => format!("Bearer {token}"),
        (None, Some(name)) => {
            let pair = format!("{name}:{}", text("password").unwrap_or_default());
            format!("Basic {}", STANDARD.encode(pair))
        }
        (None, None) => return Ok(Credentials::None),
    };
    let mut value = HeaderValue::from_str(&header)?;
    value.set_sensitive(true);
    Ok(Credentials::Header(value))
}

/// `NAME-data` in base64, or a file called by `NAME`.
struct Content<'a> {
    value: &'a Value,
    name: &'a str,
}

impl Content<'_> {
    fn read(&self, directory: &Path) -> anyhow::Result<Option<String>> {
        let text = |field: &str| self.value[field].as_str().filter(|t| !t.is_empty());
        if let Some(data) = text(&format!("{}-data", self.name)) {
            let bytes = STANDARD.decode(data).context(self.name.to_owned())?;
            return Ok(Some(String::from_utf8(bytes)?));
        }
        let Some(path) = text(self.name) else {
            return Ok(None);
        };
        let path: PathBuf = directory.join(path);
        let read = std::fs::read_to_string(&path);
        Ok(Some(read.with_context(|| path.display().to_string())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_context_names_the_service() {
        let text = "
clusters:
- {name: other, cluster: {server: 'http://127.0.0.1:1/'}}
- {name: hook, cluster: {server: 'http://127.0.0.1:2/authorize'}}
users:
- {name: me, user: {token: secret}}
contexts:
- {name: a, context: {cluster: hook, user: me}}
current-context: a
";
        let remote = parse(text, Path::new("/")).unwrap();
        assert_eq!(remote.url(), "http://127.0.0.1:2/authorize");
        assert!(matches!(remote.credentials, Credentials::Header(_)));
        let error = parse(
            &text.replace("cluster: hook", "cluster: none"),
            Path::new("/"),
        );
        assert!(error.is_err());
        let exec = |exec: &str| {
            let text = text.replace("token: secret", &format!("exec: {{{exec}}}"));
            parse(&text, Path::new("/"))
        };
        let error = exec("command: x").err().unwrap();
        assert_eq!(
            error.to_string(),
            "invalid configuration: [apiVersion must be specified for me to use exec authentication plugin, interactiveMode must be specified for me to use exec authentication plugin]"
        );
        let good =
            "command: x, apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never";
        let remote = exec(good).unwrap();
        assert!(matches!(remote.credentials, Credentials::Program(_)));
        assert_eq!(
            remote.cluster,
            json!({"server": "http://127.0.0.1:2/authorize", "config": null})
        );
        // Who has a token needs no program.
        let token = exec(&format!("{good}}}, token: x, x: {{")).unwrap();
        assert!(matches!(token.credentials, Credentials::Header(_)));
    }

    #[test]
    fn users_are_named_by_hosts() {
        let text = "
users:
- {name: 'hook.n.svc:443', user: {token: exact}}
- {name: 'hook.n.svc', user: {token: portless}}
- {name: '*.n.svc', user: {token: wildcard}}
- {name: '*.svc:8443', user: {token: with port}}
- {name: me, user: {token: mine}}
contexts:
- {name: a, context: {user: me}}
current-context: a
";
        let users = Users::parse(text, Path::new("/")).unwrap();
        let token = |users: &Users, host: &str| match &users.of(host)?.credentials {
            Credentials::Header(value) => Some(value.to_str().unwrap().to_owned()),
            _ => None,
        };
        for (host, expected) in [
            ("hook.n.svc:443", "exact"),
            ("other.n.svc:443", "wildcard"),
            ("hook.n.svc:8443", "with port"),
            ("hook.n.svc:80", "mine"),
            ("127.0.0.1:443", "mine"),
        ] {
            let expected = Some(format!("Bearer {expected}"));
            assert_eq!(token(&users, host), expected, "{host}");
        }
        let everybody = text.replace("name: me, user", "name: '*', user");
        let users = Users::parse(&everybody, Path::new("/")).unwrap();
        let expected = Some("Bearer mine".to_owned());
        assert_eq!(token(&users, "127.0.0.1:443"), expected);
        assert!(Users::default().of("127.0.0.1:443").is_none());
        let exec = text.replace("token: exact", "exec: {command: x}");
        assert!(Users::parse(&exec, Path::new("/")).is_err());
        let provider = text.replace("token: exact", "auth-provider: {name: x}");
        assert!(Users::parse(&provider, Path::new("/")).is_err());
    }
}
