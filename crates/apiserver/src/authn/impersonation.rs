//! Acting as somebody else: `kubectl --as`. Narrow modes are tried first (a node's own agent as the node, nodes, service
//! accounts, other users), each of which also asks whether the request itself may be made that way; then the broad verb
//! `impersonate`, which is enough for everything.

use fluyt_api::Error;
use fluyt_api::validation::{Errors, dns_subdomain};
use http::HeaderMap;
use http::header::HeaderName;

use crate::authz::{Authorizer, Question};
use crate::request::percent_decode;
use crate::user::{ANONYMOUS, AUTHENTICATED, MASTERS, NODES, UNAUTHENTICATED, User};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

const AUTHENTICATION: &str = "authentication.k8s.io";

/// From so many of them on, the right to all groups or extras is asked for first.
const MANY: usize = 4;

/// Who a request is taken for.
#[derive(Clone, Debug)]
pub struct Impersonated {
    pub user: User,
    /// The verb that allowed it, for the audit log; empty for the broad one.
    pub constraint: &'static str,
}

/// A way to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    Legacy,
}

/// Takes the wish for another identity out of a request's headers.
///
/// # Errors
/// 400 when there are groups, a uid or extras, but no user.
fn wanted(headers: &mut HeaderMap) -> Result<Option<User>, Error> {
    let is_ours = |name: &HeaderName| {
        [USER, GROUP, UID].contains(&name.as_str()) || name.as_str().starts_with(EXTRA)
    };
    if !headers.keys().any(is_ours) {
        return Ok(None);
    }
    let text = |name: &str| {
        let value = headers.get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let mut user = User {
        name: text(USER),
        uid: text(UID),
        ..User::default()
    };
    for (name, value) in &*headers {
        let Ok(value) = value.to_str() else { continue };
        if name.as_str() == GROUP {
            user.groups.push(value.to_owned());
        } else if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            let values = user.extra.entry(percent_decode(key)).or_default();
            values.push(value.to_owned());
        }
    }
    if user.name.is_empty() {
        if user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty() {
            return Ok(None);
        }
        return Err(Error::bad_request(format!(
            "requested {} without impersonating a user name",
            go_syntax(&user)
        )));
    }
    let ours: Vec<HeaderName> = headers.keys().filter(|n| is_ours(n)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    Ok(Some(user))
}

/// The user as Go's `%#v` prints it, which upstream's message does.
fn go_syntax(user: &User) -> String {
    let strings = |list: &[String]| {
        let items: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
        format!("[]string{{{}}}", items.join(", "))
    };
    let groups = if user.groups.is_empty() {
        "[]string(nil)".into()
    } else {
        strings(&user.groups)
    };
    let extra = if user.extra.is_empty() {
        "map[string][]string(nil)".into()
    } else {
        let entries: Vec<String> = user
            .extra
            .iter()
            .map(|(key, values)| format!("{key:?}:{}", strings(values)))
            .collect();
        format!("map[string][]string{{{}}}", entries.join(", "))
    };
    format!(
        "&user.DefaultInfo{{Name:{:?}, UID:{:?}, Groups:{groups}, Extra:{extra}}}",
        user.name, user.uid
    )
}

/// Who the request is taken for, if it asks for that and the requestor may. The headers are gone afterwards.
///
/// # Errors
/// 400 for headers that make no sense, 403 for who may not.
pub async fn impersonate(
    authorizer: &Authorizer,
    requestor: &User,
    headers: &mut HeaderMap,
    request: &Question,
) -> Result<Option<Impersonated>, Error> {
    let Some(wanted) = wanted(headers)? else {
        return Ok(None);
    };
    let mut first = None;
    for mode in [
        Mode::AssociatedNode,
        Mode::ArbitraryNode,
        Mode::ServiceAccount,
        Mode::UserInfo,
        Mode::Legacy,
    ] {
        if !mode.applies(&wanted, requestor) {
            continue;
        }
        let attempt = Attempt {
            authorizer,
            requestor: &mode.requestor(requestor),
            mode,
        };
        match attempt.run(&wanted, request).await {
            Ok(user) => {
                return Ok(Some(Impersonated {
                    user,
                    constraint: mode.constraint(),
                }));
            }
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| Error::internal("all impersonation modes failed")))
}

// === impl Mode ===

impl Mode {
    fn applies(self, wanted: &User, requestor: &User) -> bool {
        let only_name =
            wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let (node, account) = (node_name(&wanted.name), account(&wanted.name));
        match self {
            Self::AssociatedNode => {
                let own = requestor
                    .extra
                    .get("authentication.kubernetes.io/node-name");
                let is_associated = account_of(requestor)
                    && node.is_some_and(|n| own.is_some_and(|own| own.as_slice() == [n]));
                only_name && is_associated
            }
            Self::ArbitraryNode => only_name && node.is_some(),
            Self::ServiceAccount => only_name && account.is_some(),
            Self::UserInfo => node.is_none() && account.is_none(),
            Self::Legacy => true,
        }
    }

    /// Who is asked about: where the node does not matter, neither does what else the token is bound to.
    fn requestor(self, requestor: &User) -> User {
        if self != Self::AssociatedNode {
            return requestor.clone();
        }
        let keys = requestor.extra.keys().cloned().collect();
        User {
            extra: [(
                "authentication.kubernetes.io/associated-node-keys".to_owned(),
                keys,
            )]
            .into(),
            ..requestor.clone()
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::AssociatedNode => "impersonate:associated-node",
            Self::ArbitraryNode => "impersonate:arbitrary-node",
            Self::ServiceAccount => "impersonate:serviceaccount",
            Self::UserInfo => "impersonate:user-info",
            Self::Legacy => "impersonate",
        }
    }

    fn constraint(self) -> &'static str {
        match self {
            Self::Legacy => "",
            mode => mode.verb(),
        }
    }
}

fn node_name(user: &str) -> Option<&str> {
    let name = user.strip_prefix("system:node:")?;
    dns_subdomain(name).is_empty().then_some(name)
}

fn account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    let valid =
        fluyt_api::validation::dns_label(namespace).is_empty() && dns_subdomain(name).is_empty();
    valid.then_some((namespace, name))
}

fn account_of(user: &User) -> bool {
    account(&user.name).is_some()
}

/// One mode being tried.
struct Attempt<'a> {
    authorizer: &'a Authorizer,
    requestor: &'a User,
    mode: Mode,
}

impl Attempt<'_> {
    async fn run(&self, wanted: &User, request: &Question) -> Result<User, Error> {
        if let Some(mode) = self.mode.verb().strip_prefix("impersonate:") {
            let mut question = request.clone();
            question.verb = format!("impersonate-on:{mode}:{}", request.verb);
            self.check(&question).await?;
        }
        let mut user = wanted.clone();
        self.check_name(wanted, &mut user).await?;
        if !wanted.uid.is_empty() {
            let question = self.question(AUTHENTICATION, "uids", &wanted.uid);
            self.check(&question).await?;
        }
        self.check_groups(&wanted.groups).await?;
        self.check_extra(wanted).await?;
        if user.name == ANONYMOUS {
            add_group(&mut user, UNAUTHENTICATED);
        } else if !user.is_in(UNAUTHENTICATED) {
            add_group(&mut user, AUTHENTICATED);
        }
        Ok(user)
    }

    fn is_legacy(&self) -> bool {
        self.mode == Mode::Legacy
    }

    fn question(&self, group: &str, resource: &str, name: &str) -> Question {
        // The broad verb knows users and groups as resources of the core group.
        let core = group.is_empty() || (self.is_legacy() && matches!(resource, "users" | "groups"));
        Question {
            verb: self.mode.verb().into(),
            group: if core { String::new() } else { group.into() },
            version: "v1".into(),
            resource: resource.into(),
            name: name.into(),
            ..Question::default()
        }
    }

    async fn check(&self, question: &Question) -> Result<(), Error> {
        self.authorizer
            .require(self.requestor, question)
            .await
            .map(drop)
    }

    async fn check_name(&self, wanted: &User, user: &mut User) -> Result<(), Error> {
        let mut question = self.question(AUTHENTICATION, "users", &wanted.name);
        if !self.is_legacy()
            && let Some(node) = node_name(&wanted.name)
        {
            question.resource = "nodes".into();
            question.name = if self.mode == Mode::AssociatedNode {
                "*".into()
            } else {
                node.to_owned()
            };
            user.groups = vec![NODES.into()];
        }
        if let Some((namespace, name)) = account(&wanted.name) {
            question.resource = "serviceaccounts".into();
            question.namespace = namespace.to_owned();
            question.name = name.to_owned();
            if self.is_legacy() {
                question.group = String::new();
            }
            if wanted.groups.is_empty() {
                user.groups = vec![
                    "system:serviceaccounts".into(),
                    format!("system:serviceaccounts:{namespace}"),
                ];
            }
        }
        self.check(&question).await
    }

    async fn check_groups(&self, groups: &[String]) -> Result<(), Error> {
        let question = |name: &str| self.question(AUTHENTICATION, "groups", name);
        if !self.is_legacy() {
            if groups.iter().any(String::is_empty) {
                let why = "impersonating the empty string group is not allowed";
                return Err(question("").forbidden(self.requestor, why));
            }
            if groups.iter().any(|g| g == MASTERS) {
                let why = "impersonating the system:masters group is not allowed";
                return Err(question(MASTERS).forbidden(self.requestor, why));
            }
            if groups.len() >= MANY && self.check(&question("*")).await.is_ok() {
                return Ok(());
            }
        }
        for group in groups {
            self.check(&question(group)).await?;
        }
        Ok(())
    }

    async fn check_extra(&self, wanted: &User) -> Result<(), Error> {
        if wanted.extra.is_empty() {
            return Ok(());
        }
        let question = |key: &str, value: &str| Question {
            subresource: key.to_owned(),
            ..self.question(AUTHENTICATION, "userextras", value)
        };
        if !self.is_legacy() {
            if let Err(why) = valid_extra(wanted) {
                return Err(question("", "").forbidden(self.requestor, &why));
            }
            let count: usize = wanted.extra.values().map(Vec::len).sum();
            let is_large = wanted.extra.len() >= MANY || count >= MANY;
            if is_large && self.check(&question("*", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for (key, values) in &wanted.extra {
            for value in values {
                self.check(&question(key, value)).await?;
            }
        }
        Ok(())
    }
}

fn add_group(user: &mut User, group: &str) {
    if !user.is_in(group) {
        user.groups.push(group.to_owned());
    }
}

fn valid_extra(user: &User) -> Result<(), String> {
    for (key, values) in &user.extra {
        if key.is_empty() {
            return Err("impersonating the empty string key in extra is not allowed".into());
        }
        let mut errors = Errors::default();
        errors.domain_prefixed_path("extra.key", key);
        if let Some(all) = crate::validation::sentence(&errors) {
            return Err(format!(
                "impersonating an invalid key in extra is not allowed: {all}"
            ));
        }
        if *key != key.to_lowercase() {
            return Err(format!(
                "impersonating a non-lowercase key in extra is not allowed: {key:?}"
            ));
        }
        if values.iter().any(String::is_empty) {
            return Err("impersonating the empty string value in extra is not allowed".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn headers_are_taken_and_need_a_user() {
        let mut headers = HeaderMap::new();
        headers.insert(GROUP, HeaderValue::from_static("g"));
        let error = wanted(&mut headers.clone()).unwrap_err();
        assert_eq!(
            error.message,
            "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"g\"}, Extra:map[string][]string(nil)} without impersonating a user name"
        );
        headers.insert(USER, HeaderValue::from_static("u"));
        headers.insert("impersonate-extra-a%2fb", HeaderValue::from_static("v"));
        headers.insert("accept", HeaderValue::from_static("x"));
        let user = wanted(&mut headers).unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.groups.len()), ("u", 1));
        assert_eq!(user.extra["a/b"], ["v"]);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn modes_apply_to_their_kind_of_user() {
        let plain = User::new("a", &[]);
        let named = |name: &str| User {
            name: name.into(),
            ..User::default()
        };
        let modes = |wanted: &User, requestor: &User| -> Vec<Mode> {
            [
                Mode::AssociatedNode,
                Mode::ArbitraryNode,
                Mode::ServiceAccount,
                Mode::UserInfo,
            ]
            .into_iter()
            .filter(|m| m.applies(wanted, requestor))
            .collect()
        };
        assert_eq!(modes(&named("bob"), &plain), [Mode::UserInfo]);
        assert_eq!(
            modes(&named("system:serviceaccount:n:a"), &plain),
            [Mode::ServiceAccount]
        );
        let mut agent = User::service_account("n", "agent", "");
        let key = "authentication.kubernetes.io/node-name".to_owned();
        agent.extra.insert(key, vec!["x".into()]);
        assert_eq!(
            modes(&named("system:node:x"), &agent),
            [Mode::AssociatedNode, Mode::ArbitraryNode]
        );
        assert_eq!(
            modes(&named("system:node:y"), &agent),
            [Mode::ArbitraryNode]
        );
    }
}
