//! Bootstrap tokens: `id.secret`, kept as Secrets in kube-system, with which a node asks for its first certificate.

use base64::Engine as _;
use fluyt_api::resources;
use serde_json::Value;

use crate::cache::Caches;
use crate::user::User;

pub(super) fn user(caches: &Caches, token: &str) -> Option<User> {
    let (id, secret) = token.split_once('.')?;
    let well_formed = |text: &str, length: usize| {
        text.len() == length
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    if !well_formed(id, 6) || !well_formed(secret, 16) {
        return None;
    }
    let secrets = resources::find("", "v1", "secrets")?;
    let object = caches
        .of(secrets)
        .get(&format!("kube-system/bootstrap-token-{id}"))?
        .object();
    if object["type"] != "bootstrap.kubernetes.io/token"
        || object["metadata"]["deletionTimestamp"].is_string()
    {
        return None;
    }
    let data = |key: &str| decode(&object["data"][key]);
    let expired = data("expiration")
        .and_then(|t| t.parse::<jiff::Timestamp>().ok())
        .is_some_and(|t| t <= jiff::Timestamp::now());
    let matches = data("token-id").as_deref() == Some(id)
        && data("token-secret").is_some_and(|s| constant_time_eq(s.as_bytes(), secret.as_bytes()));
    if expired || !matches || data("usage-bootstrap-authentication").as_deref() != Some("true") {
        return None;
    }
    let extra = data("auth-extra-groups").unwrap_or_default();
    let mut groups = vec!["system:bootstrappers"];
    groups.extend(
        extra
            .split(',')
            .filter(|g| g.starts_with("system:bootstrappers:")),
    );
    Some(User::new(format!("system:bootstrap:{id}"), &groups))
}

fn decode(value: &Value) -> Option<String> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(value.as_str()?)
        .ok()?;
    String::from_utf8(bytes).ok()
}

fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}
