//! Requests for tokens of service accounts.

use std::time::Duration;

use anyhow::bail;
use clap::ArgAction;
use fluyt_api::validation::{At, Errors};
use fluyt_api::{Error, meta, resources};
use fluyt_pki::{Claims, KubernetesClaims, NamedReference};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Call, decode};
use crate::http::{self as responses, Body};
use crate::registry::Location;
use crate::warnings::Warnings;
use crate::{go_bool, go_duration};

/// Shortest and longest lifetime of a token, in seconds.
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;

/// How long a token lives whose request does not say it.
const USUAL_SECONDS: i64 = 3600;

const GROUP: &str = "authentication.k8s.io";

const KIND: &str = "TokenRequest";

/// What the ServiceAccount plugin asks for in pods: kubelets' requests are known by it.
const INJECTED_SECONDS: i64 = 3607;

/// How long an extended token lives.
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

/// How long tokens live.
#[derive(clap::Args, Clone, Debug)]
pub struct TokenLifetimes {
    /// Longest life of a token; who asks for more gets this much. 0 for no such bound.
    #[arg(long, default_value = "0s", value_parser = go_duration::parse)]
    service_account_max_token_expiration: Duration,
    /// Let tokens that were put into pods by admission live for a year, while their use after an hour is on record: for
    /// programs that do not read their token again.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true)]
    service_account_extend_token_expiration: bool,
    /// The longest life of a token that an external signer gives.
    #[arg(skip)]
    most: Option<Duration>,
}

impl Default for TokenLifetimes {
    fn default() -> Self {
        Self {
            service_account_max_token_expiration: Duration::ZERO,
            service_account_extend_token_expiration: true,
            most: None,
        }
    }
}

impl TokenLifetimes {
    /// Tokens live no longer than an external signer lets them.
    ///
    /// # Errors
    /// When they shall live longer.
    pub fn bounded_by(mut self, most: Duration) -> anyhow::Result<Self> {
        let wanted = self.service_account_max_token_expiration;
        if wanted > most {
            bail!(
                "service-account-max-token-expiration cannot be set longer than the token expiration supported by service-account-signing-endpoint: {} > {}",
                go_duration::show(wanted),
                go_duration::show(most)
            );
        }
        if wanted.is_zero() {
            self.service_account_max_token_expiration = most;
        }
        self.most = Some(most);
        Ok(self)
    }

    /// How many seconds an extended token lives.
    fn extended(&self) -> i64 {
        let most = self.most.map(|most| i64::try_from(most.as_secs()));
        let most = most.and_then(Result::ok).unwrap_or(i64::MAX);
        most.min(EXTENDED_SECONDS)
    }

    /// # Errors
    /// When the bound is too low, or is none.
    pub fn check(&self) -> anyhow::Result<()> {
        let most = self.service_account_max_token_expiration;
        if most.is_zero() {
            return Ok(());
        }
        let allowed = Duration::from_secs(3600)..=Duration::from_secs(1 << 32);
        if !allowed.contains(&most) {
            bail!(
                "the service-account-max-token-expiration must be between 1 hour and 2^32 seconds"
            );
        }
        let seconds = i64::try_from(most.as_secs()).unwrap_or(i64::MAX);
        let shown = go_duration::show(most);
        if !self.service_account_extend_token_expiration {
            return Ok(());
        }
        if seconds < INJECTED_SECONDS {
            tracing::warn!(
                "service-account-extend-token-expiration is true, in order to correctly trigger safe transition logic, service-account-max-token-expiration must be set longer than {INJECTED_SECONDS} seconds (currently {shown})"
            );
        }
        if seconds < EXTENDED_SECONDS {
            tracing::warn!(
                "service-account-extend-token-expiration is true, enabling tokens valid up to {EXTENDED_SECONDS} seconds, which is longer than service-account-max-token-expiration set to {shown}"
            );
        }
        Ok(())
    }

    /// A wish as it is granted.
    fn granted(&self, seconds: i64, warnings: &Warnings) -> i64 {
        let most = self.service_account_max_token_expiration.as_secs();
        match i64::try_from(most) {
            Ok(most) if most > 0 && seconds > most => {
                warnings.add(format!(
                    "requested expiration of {seconds} seconds shortened to {most} seconds"
                ));
                most
            }
            _ => seconds,
        }
    }

    /// Whether a token is one that lives on after its time.
    fn extends(&self, seconds: i64, claims: &Claims, audiences: &[String]) -> bool {
        self.service_account_extend_token_expiration
            && claims.kubernetes.pod.is_some()
            && seconds == INJECTED_SECONDS
            && claims.aud.iter().all(|a| audiences.contains(a))
    }
}

/// Issues a token.
pub(super) async fn request(call: &mut Call) -> Result<Response<Body>, Error> {
    let body = responses::collect(call.take_body()).await?;
    let query = &call.info.query;
    let mut request = decode::object(&call.parts, &body, query, (GROUP, "v1", KIND))?.object;
    validate_names(call, &request)?;
    let at = Location {
        subresource: "",
        ..call.location()
    };
    let account = call.server.registry.get(at).await?.object();
    let (wanted, uid) = (meta::uid(&request), meta::uid(&account));
    if !wanted.is_empty() && wanted != uid {
        let why = format!(
            "the UID in the token request ({wanted}) does not match the UID of the service account ({uid})"
        );
        return Err(Error::conflict(GROUP, KIND, at.name, why));
    }
    let seconds = request["spec"]["expirationSeconds"].as_i64();
    let seconds = seconds.unwrap_or(USUAL_SECONDS);
    validate_lifetime(seconds)?;
    let cx = call.write_context()?;
    call.server
        .registry
        .admit_token(&cx, call.location(), &request)
        .await?;
    let spec = &request["spec"];
    let mut audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(Into::into))
        .collect();
    if audiences.is_empty() {
        audiences = call.server.authenticator.audiences().to_vec();
    }
    let lifetimes = &call.server.config.token_lifetimes;
    let seconds = lifetimes.granted(seconds, &call.warnings);
    let now = jiff::Timestamp::now().as_second();
    let mut claims = Claims {
        iss: call.server.config.service_account_issuer.clone(),
        sub: format!(
            "system:serviceaccount:{}:{}",
            call.target.namespace, call.target.name
        ),
        aud: audiences.clone(),
        exp: now + seconds,
        iat: now,
        nbf: now,
        jti: Some(uuid::Uuid::new_v4().to_string()),
        kubernetes: KubernetesClaims {
            namespace: call.target.namespace.clone(),
            serviceaccount: NamedReference {
                name: call.target.name.clone(),
                uid: meta::uid(&account).to_owned(),
            },
            pod: None,
            secret: None,
            node: None,
            warnafter: None,
        },
    };
    bind(call, &spec["boundObjectRef"], &mut claims).await?;
    let expires = jiff::Timestamp::from_second(claims.exp).map_err(Error::internal)?;
    if lifetimes.extends(seconds, &claims, call.server.authenticator.audiences()) {
        claims.kubernetes.warnafter = Some(claims.exp);
        claims.exp = now + lifetimes.extended();
    }
    let signing = call.server.tokens.sign(&claims);
    let token = signing.await.map_err(Error::internal)?;
    if let Some(id) = &claims.jti {
        let key = "authentication.kubernetes.io/issued-credential-id";
        call.record().annotate(key, format!("JTI={id}"));
    }
    for (field, value) in [
        ("name", call.target.name.clone()),
        ("namespace", call.target.namespace.clone()),
        ("uid", meta::uid(&account).to_owned()),
        ("creationTimestamp", meta::now()),
    ] {
        meta::set(&mut request, field, value);
    }
    let spec = meta::child(&mut request, "spec");
    spec.insert("audiences".into(), audiences.into());
    spec.insert("expirationSeconds".into(), seconds.into());
    spec.entry("boundObjectRef").or_insert(Value::Null);
    request["status"] = json!({"token": token, "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
    Ok(responses::json(StatusCode::CREATED, &request))
}

fn validate_names(call: &Call, request: &Value) -> Result<(), Error> {
    let target = &call.target;
    super::own_namespace(call, request)?;
    let root = At::root(request);
    let metadata = root.field("metadata");
    let name = metadata.field("name");
    if name.is_empty() || name.str() == target.name {
        return Ok(());
    }
    let mut errors = Errors::default();
    errors.bad(&name, "must match the service account name if specified");
    Err(Error::invalid(GROUP, KIND, &target.name, errors.0))
}

fn validate_lifetime(seconds: i64) -> Result<(), Error> {
    let detail = if seconds < MIN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > MAX_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let mut errors = Errors::default();
    errors.invalid("spec.expirationSeconds", &seconds.into(), detail);
    Err(Error::invalid(GROUP, KIND, "", errors.0))
}

/// Ties a token to the object that it is requested for.
async fn bind(call: &Call, reference: &Value, claims: &mut Claims) -> Result<(), Error> {
    if reference.is_null() {
        return Ok(());
    }
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (version, kind, name) = (text("apiVersion"), text("kind"), text("name"));
    // A version that is none counts as the core group's.
    let (group, _) = match version.matches('/').count() {
        1 => version.split_once('/').unwrap_or_default(),
        _ => ("", version),
    };
    let (plural, namespace) = match (group, kind) {
        ("", "Pod") => ("pods", call.target.namespace.as_str()),
        ("", "Secret") => ("secrets", call.target.namespace.as_str()),
        ("", "Node") => ("nodes", ""),
        _ => {
            let version = version.trim_start_matches('/');
            let shown = if group.is_empty() {
                format!("/{version}")
            } else {
                version.to_owned()
            };
            return Err(Error::bad_request(format!(
                "cannot bind token to object of type {shown}, Kind={kind}"
            )));
        }
    };
    let resource = resources::find("", "v1", plural).ok_or_else(Error::no_route)?;
    let at = Location {
        resource,
        namespace,
        name,
        subresource: "",
    };
    let object = call.server.registry.get(at).await?.object();
    let uid = meta::uid(&object).to_owned();
    let wanted = text("uid");
    if kind == "Pod" && object["spec"]["serviceAccountName"] != call.target.name.as_str() {
        return Err(Error::bad_request(format!(
            "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
            call.target.name
        )));
    }
    if !wanted.is_empty() && wanted != uid {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Error::conflict("", kind, name, why));
    }
    let bound = NamedReference {
        name: name.to_owned(),
        uid,
    };
    match kind {
        "Pod" => {
            claims.kubernetes.node = node_of(call, &object)?;
            claims.kubernetes.pod = Some(bound);
        }
        "Secret" => claims.kubernetes.secret = Some(bound),
        _ => claims.kubernetes.node = Some(bound),
    }
    Ok(())
}

/// The node that a pod is on.
fn node_of(call: &Call, pod: &Value) -> Result<Option<NamedReference>, Error> {
    let name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    let nodes = resources::find("", "v1", "nodes").ok_or_else(Error::no_route)?;
    let found = call.server.caches.of(nodes).get(name);
    Ok(Some(NamedReference {
        name: name.to_owned(),
        uid: found.map_or_else(String::new, |n| meta::uid(&n.object()).to_owned()),
    }))
}
