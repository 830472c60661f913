//! Credentials that a program gives: `exec` of a kubeconfig's user (client.authentication.k8s.io). The program is told in
//! its environment what it is asked for, and says what to present in what it prints. That is kept until it expires or is refused.

use std::collections::HashMap;
use std::io::{ErrorKind, IsTerminal as _};
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::HeaderValue;
use anyhow::{Context as _, anyhow, bail};
use fluyt_api::decode::kind_of;
use fluyt_api::go_time;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::Mutex;

use super::Presented;
use crate::server::client_tls;

const V1: &str = "client.authentication.k8s.io/v1";
const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";

/// What an object is of that does not say it.
const INTERNAL: &str = "client.authentication.k8s.io/__internal";

/// What upstream reads of an object first.
const VERSIONED: &str = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// Where a program finds what it is asked for.
const INFO: &str = "KUBERNETES_EXEC_INFO";

/// What is said of a program that is not there, so many times in so long.
const HINT: &str = "

It looks like you are trying to use a client-go credential plugin that is not installed.

To learn more about this feature, consult the documentation available at:
      https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins";
const HINTS: u32 = 10;
const HINTING: Duration = Duration::from_secs(3600);

/// `exec` of a user.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    command: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    api_version: String,
    install_hint: String,
    provide_cluster_info: bool,
    interactive_mode: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Variable {
    name: String,
    value: String,
}

/// A program that gives credentials.
#[derive(Debug)]
pub struct Program {
    config: Config,
    command: PathBuf,
    /// What it has said, by the cluster that it was asked for. It runs once at a time.
    known: Mutex<HashMap<String, Given>>,
    hints: parking_lot::Mutex<Option<(Instant, u32)>>,
}

/// Credentials, and until when they are good.
#[derive(Clone, Debug)]
struct Given {
    presented: Arc<Presented>,
    expires: Option<Timestamp>,
}

// === impl Program ===

impl Program {
    /// Reads `exec` of a user, whose kubeconfig is in `directory`.
    ///
    /// # Errors
    /// When something is missing or unknown.
    pub fn read(exec: &Value, user: &str, directory: &Path) -> anyhow::Result<Self> {
        let mut config = Config::deserialize(exec)?;
        if config.interactive_mode.is_empty() && config.api_version == V1BETA1 {
            config.interactive_mode = "IfAvailable".to_owned();
        }
        let problems = config.problems(user);
        match problems.as_slice() {
            [] => {}
            [problem] => bail!("invalid configuration: {problem}"),
            all => bail!("invalid configuration: [{}]", all.join(", ")),
        }
        if ![V1, V1BETA1].contains(&config.api_version.as_str()) {
            bail!("exec plugin: invalid apiVersion {:?}", config.api_version);
        }
        let mut command = PathBuf::from(&config.command);
        if config.command.contains('/') {
            command = directory.join(command);
        }
        Ok(Self {
            command: cleaned(&command),
            config,
            known: Mutex::default(),
            hints: parking_lot::Mutex::default(),
        })
    }

    /// What to present to a cluster. The program is run unless it has said so already.
    ///
    /// # Errors
    /// When the program cannot be run or does not say what it should.
    pub async fn present(self: &Arc<Self>, cluster: &Value) -> anyhow::Result<Arc<Presented>> {
        self.current(cluster, None).await
    }

    /// What was presented has been refused: unless there is something new already, the program is run again.
    ///
    /// # Errors
    /// As for [`Self::present`].
    pub async fn refused(
        self: &Arc<Self>,
        cluster: &Value,
        presented: &Arc<Presented>,
    ) -> anyhow::Result<()> {
        self.current(cluster, Some(presented.clone()))
            .await
            .map(drop)
    }

    /// What is known, if it is good and not `refused`. Who asks may give up meanwhile; what the program says is kept.
    async fn current(
        self: &Arc<Self>,
        cluster: &Value,
        refused: Option<Arc<Presented>>,
    ) -> anyhow::Result<Arc<Presented>> {
        let told = self.config.provide_cluster_info;
        let cluster = if told { cluster.clone() } else { Value::Null };
        let program = self.clone();
        let asking = tokio::spawn(async move {
            let mut known = program.known.lock().await;
            let key = cluster.to_string();
            if let Some(given) = known.get(&key)
                && given.is_good(refused.as_ref())
            {
                return Ok(given.presented.clone());
            }
            let given = program.run(cluster).await?;
            let presented = given.presented.clone();
            known.insert(key, given);
            Ok(presented)
        });
        asking.await?
    }

    async fn run(&self, cluster: Value) -> anyhow::Result<Given> {
        let interactive = self
            .is_interactive()
            .context("exec plugin cannot support interactive mode")?;
        let mut spec = json!({"interactive": interactive});
        if !cluster.is_null() {
            spec["cluster"] = cluster;
        }
        let version = self.config.api_version.as_str();
        let question = json!({"kind": "ExecCredential", "apiVersion": version, "spec": spec});
        let variables = self.config.env.iter().flatten();
        let stdin = if interactive {
            Stdio::inherit()
        } else {
            Stdio::null()
        };
        let output = Command::new(&self.command)
            .args(self.config.args.iter().flatten())
            .envs(variables.map(|v| (&v.name, &v.value)))
            .env(INFO, format!("{question}\n"))
            .stdin(stdin)
            .stderr(Stdio::inherit())
            .output()
            .await
            .map_err(|error| self.not_run(&error))?;
        if !output.status.success() {
            // Of one that a signal has ended there is no code.
            let code = output.status.code().unwrap_or(-1);
            let command = self.command.display();
            bail!("exec: executable {command} failed with exit code {code}");
        }
        Given::read(&output.stdout, version)
    }

    fn is_interactive(&self) -> anyhow::Result<bool> {
        let terminal = || std::io::stdin().is_terminal();
        match self.config.interactive_mode.as_str() {
            "Never" => Ok(false),
            "IfAvailable" => Ok(terminal()),
            _ if terminal() => Ok(true),
            _ => bail!("standard input is not a terminal"),
        }
    }

    fn not_run(&self, error: &std::io::Error) -> anyhow::Error {
        let command = self.command.display();
        let is_looked_for = self.command.components().count() == 1;
        if is_looked_for && error.kind() == ErrorKind::NotFound {
            let mut message = format!("exec: executable {command} not found");
            if self.hints() {
                message.push_str(HINT);
                if !self.config.install_hint.is_empty() {
                    message.push_str(&format!("\n\n{}", self.config.install_hint));
                }
            }
            return anyhow!(message);
        }
        let why = match error.kind() {
            ErrorKind::NotFound => "no such file or directory".to_owned(),
            ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        anyhow!("exec: fork/exec {command}: {why}")
    }

    /// Whether it is to be told at length that the program is not there.
    fn hints(&self) -> bool {
        let mut hints = self.hints.lock();
        let (_, count) = match &mut *hints {
            Some(hints) if hints.0.elapsed() < HINTING => hints,
            other => other.insert((Instant::now(), 0)),
        };
        *count += 1;
        *count <= HINTS
    }
}

// === impl Config ===

impl Config {
    fn problems(&self, user: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let mut missing = |what: &str| {
            problems.push(format!(
                "{what} must be specified for {user} to use exec authentication plugin"
            ));
        };
        if self.command.is_empty() {
            missing("command");
        }
        if self.api_version.is_empty() {
            missing("apiVersion");
        }
        for _ in self.env.iter().flatten().filter(|v| v.name.is_empty()) {
            missing("env variable name");
        }
        match self.interactive_mode.as_str() {
            "" => missing("interactiveMode"),
            "Never" | "IfAvailable" | "Always" => {}
            other => problems.push(format!("invalid interactiveMode for {user}: {other:?}")),
        }
        problems
    }
}

// === impl Given ===

impl Given {
    fn is_good(&self, refused: Option<&Arc<Presented>>) -> bool {
        let is_refused = refused.is_some_and(|refused| Arc::ptr_eq(refused, &self.presented));
        let has_expired = self.expires.is_some_and(|at| Timestamp::now() > at);
        !is_refused && !has_expired
    }

    /// Reads what a program has printed.
    fn read(printed: &[u8], version: &str) -> anyhow::Result<Self> {
        let (credential, returned) = decode(printed).context("decoding stdout")?;
        if returned != version {
            bail!(
                "exec plugin is configured to use API version {version}, plugin returned version {returned}"
            );
        }
        let status = &credential["status"];
        if status.is_null() {
            bail!("exec plugin didn't return a status field");
        }
        let text = |field: &str| status[field].as_str().unwrap_or_default();
        let token = text("token");
        let (certificate, key) = (text("clientCertificateData"), text("clientKeyData"));
        if token.is_empty() && certificate.is_empty() && key.is_empty() {
            bail!("exec plugin didn't return a token or cert/key pair");
        }
        if certificate.is_empty() != key.is_empty() {
            bail!("exec plugin returned only certificate or key, not both");
        }
        let certificate = match certificate {
            "" => None,
            certificate => {
                let checked = checked(certificate, key);
                Some(checked.context("failed parsing client key/certificate")?)
            }
        };
        let authorization = match token {
            "" => None,
            token => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let expires = match text("expirationTimestamp") {
            "" => None,
            text => {
                let check = go_time::check(text, go_time::RFC3339);
                check.map_err(|why| anyhow!("decoding stdout: {why}"))?;
                Some(text.parse().context("decoding stdout")?)
            }
        };
        Ok(Self {
            presented: Arc::new(Presented {
                authorization,
                certificate,
            }),
            expires,
        })
    }
}

/// An `ExecCredential`, as JSON or YAML; and of which version it says it is.
fn decode(printed: &[u8]) -> anyhow::Result<(Value, String)> {
    let text = String::from_utf8_lossy(printed);
    let malformed = |why: String| anyhow!("couldn't get version/kind; json parse error: {why}");
    let parsed = match serde_json::from_str(&text) {
        Ok(parsed) => parsed,
        Err(_) => serde_saphyr::from_str(&text).map_err(|e| malformed(e.to_string()))?,
    };
    let credential: Value = parsed;
    if !credential.is_object() {
        let found = kind_of(&credential);
        return Err(malformed(format!(
            "json: cannot unmarshal {found} into Go value of type {VERSIONED}"
        )));
    }
    let named = |field: &str| credential[field].as_str().filter(|text| !text.is_empty());
    let kind = named("kind").unwrap_or("ExecCredential");
    let version = named("apiVersion").unwrap_or(INTERNAL).to_owned();
    if kind != "ExecCredential" || ![V1, V1BETA1, INTERNAL].contains(&version.as_str()) {
        bail!(
            "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/client/auth/exec/exec.go:64\""
        );
    }
    Ok((credential, version))
}

/// A certificate and its key, if they are some.
fn checked(certificate: &str, key: &str) -> anyhow::Result<(String, String)> {
    for (pem, what) in [(certificate, "certificate"), (key, "key")] {
        if !pem.contains("-----BEGIN ") {
            bail!("tls: failed to find any PEM data in {what} input");
        }
    }
    let pair = (certificate.to_owned(), key.to_owned());
    client_tls(None, Some(&pair))?;
    Ok(pair)
}

/// A path without parts that lead nowhere.
fn cleaned(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if cleaned.file_name().is_some() => {
                cleaned.pop();
            }
            other => cleaned.push(other),
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(exec: Value) -> anyhow::Result<Arc<Program>> {
        Program::read(&exec, "me", Path::new("/etc/dir")).map(Arc::new)
    }

    fn shell(script: &str) -> Arc<Program> {
        let exec = json!({"apiVersion": V1, "command": "sh", "args": ["-c", script], "interactiveMode": "Never",
            "env": [{"name": "WHO", "value": "me"}], "provideClusterInfo": true});
        program(exec).unwrap()
    }

    fn bearer(presented: &Presented) -> &str {
        presented.authorization.as_ref().unwrap().to_str().unwrap()
    }

    #[test]
    fn what_is_wrong_is_said_in_client_gos_words() {
        for (exec, message) in [
            (
                json!({"apiVersion": V1, "command": "x"}),
                "invalid configuration: interactiveMode must be specified for me to use exec authentication plugin",
            ),
            (
                json!({"interactiveMode": "Sometimes", "env": [{}]}),
                "invalid configuration: [command must be specified for me to use exec authentication plugin, apiVersion must be specified for me to use exec authentication plugin, env variable name must be specified for me to use exec authentication plugin, invalid interactiveMode for me: \"Sometimes\"]",
            ),
            (
                json!({"apiVersion": "client.authentication.k8s.io/v1alpha1", "command": "x", "interactiveMode": "Never"}),
                "exec plugin: invalid apiVersion \"client.authentication.k8s.io/v1alpha1\"",
            ),
        ] {
            assert_eq!(program(exec).unwrap_err().to_string(), message);
        }
        let beta = program(json!({"apiVersion": V1BETA1, "command": "./bin/../x"})).unwrap();
        assert_eq!(beta.config.interactive_mode, "IfAvailable");
        assert_eq!(beta.command, Path::new("/etc/dir/x"));
    }

    #[test]
    fn what_is_printed_has_to_make_sense() {
        let of = |status: Value| {
            json!({"kind": "ExecCredential", "apiVersion": V1, "status": status}).to_string()
        };
        for (printed, message) in [
            (of(Value::Null), "exec plugin didn't return a status field"),
            (
                of(json!({})),
                "exec plugin didn't return a token or cert/key pair",
            ),
            (
                of(json!({"clientKeyData": "k"})),
                "exec plugin returned only certificate or key, not both",
            ),
            (
                of(json!({"token": "a"})).replace(V1, V1BETA1),
                "exec plugin is configured to use API version client.authentication.k8s.io/v1, plugin returned version client.authentication.k8s.io/v1beta1",
            ),
            (
                "{}".to_owned(),
                "exec plugin is configured to use API version client.authentication.k8s.io/v1, plugin returned version client.authentication.k8s.io/__internal",
            ),
            (
                "x".to_owned(),
                "decoding stdout: couldn't get version/kind; json parse error: json: cannot unmarshal string into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }",
            ),
            (
                json!({"kind": "Foo", "apiVersion": "v1"}).to_string(),
                "decoding stdout: no kind \"Foo\" is registered for version \"v1\" in scheme \"pkg/client/auth/exec/exec.go:64\"",
            ),
            (
                of(json!({"token": "x", "expirationTimestamp": "bad"})),
                "decoding stdout: parsing time \"bad\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"bad\" as \"2006\"",
            ),
            (
                of(json!({"clientCertificateData": "x", "clientKeyData": "y"})),
                "failed parsing client key/certificate: tls: failed to find any PEM data in certificate input",
            ),
        ] {
            let error = Given::read(printed.as_bytes(), V1).unwrap_err();
            assert_eq!(format!("{error:#}"), message);
        }
        let yaml = format!("apiVersion: {V1}\nkind: ExecCredential\nstatus: {{token: a}}\n");
        let given = Given::read(yaml.as_bytes(), V1).unwrap();
        assert_eq!(bearer(&given.presented), "Bearer a");
    }

    #[tokio::test]
    async fn a_program_runs_again_when_it_has_to() {
        let directory = tempfile::tempdir().unwrap();
        let runs = directory.path().join("runs");
        let script = format!(
            "echo \"$WHO $KUBERNETES_EXEC_INFO\" >> {0}; n=$(grep -c me {0}); echo '{{\"kind\":\"ExecCredential\",\"apiVersion\":\"{V1}\",\"status\":{{\"token\":\"'$n'\",\"expirationTimestamp\":\"'$WHEN'\"}}}}'",
            runs.display()
        );
        let until = |when: &str| shell(&script.replace("'$WHEN'", when));
        let (there, elsewhere) = (
            json!({"server": "https://a"}),
            json!({"server": "https://b"}),
        );
        let lasting = until("2999-01-01T00:00:00Z");
        let first = lasting.present(&there).await.unwrap();
        assert_eq!(bearer(&first), "Bearer 1");
        assert!(Arc::ptr_eq(&first, &lasting.present(&there).await.unwrap()));
        let told = std::fs::read_to_string(&runs).unwrap();
        let info: Value = serde_json::from_str(told.trim_start_matches("me ")).unwrap();
        let expected = json!({"kind": "ExecCredential", "apiVersion": V1,
            "spec": {"interactive": false, "cluster": {"server": "https://a"}}});
        assert_eq!(info, expected);
        // Each cluster has its own, and what is refused is not presented again.
        assert_eq!(
            bearer(&lasting.present(&elsewhere).await.unwrap()),
            "Bearer 2"
        );
        lasting.refused(&there, &first).await.unwrap();
        assert_eq!(bearer(&lasting.present(&there).await.unwrap()), "Bearer 3");
        lasting.refused(&there, &first).await.unwrap();
        assert_eq!(bearer(&lasting.present(&there).await.unwrap()), "Bearer 3");
        let expired = until("2020-01-01T00:00:00Z");
        assert_eq!(bearer(&expired.present(&there).await.unwrap()), "Bearer 4");
        assert_eq!(bearer(&expired.present(&there).await.unwrap()), "Bearer 5");
    }

    #[tokio::test]
    async fn programs_fail() {
        let command = |command: &str| {
            program(json!({"apiVersion": V1, "command": command, "interactiveMode": "Never", "installHint": "Get it."}))
                .unwrap()
        };
        let said = async |program: &Arc<Program>| {
            let presented = program.present(&Value::Null).await;
            format!("{:#}", presented.unwrap_err())
        };
        let missing = command("no-such-program");
        let expected = format!("exec: executable no-such-program not found{HINT}\n\nGet it.");
        for _ in 0..HINTS {
            assert_eq!(said(&missing).await, expected);
        }
        assert_eq!(
            said(&missing).await,
            "exec: executable no-such-program not found"
        );
        assert_eq!(
            said(&command("/no/such")).await,
            "exec: fork/exec /no/such: no such file or directory"
        );
        assert_eq!(
            said(&shell("exit 3")).await,
            "exec: executable sh failed with exit code 3"
        );
        assert!(
            said(&shell("echo nothing"))
                .await
                .starts_with("decoding stdout: couldn't get version/kind; json parse error: ")
        );
    }
}
