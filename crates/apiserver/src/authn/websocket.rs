//! A bearer token as a sub-protocol of a WebSocket, since browsers cannot set headers there.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// The token among the offered protocols, and the header without it.
///
/// # Errors
/// When there are several tokens, one is no text, or no protocol is left that could be agreed on.
pub(super) fn token(headers: &HeaderMap) -> Result<Option<(String, HeaderValue)>, String> {
    let is_websocket = headers
        .get(UPGRADE)
        .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_websocket {
        return Ok(None);
    }
    let (mut token, mut others) = (None, Vec::new());
    let offered = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim);
    for protocol in offered {
        let Some(encoded) = protocol.strip_prefix(PREFIX) else {
            others.push(protocol);
            continue;
        };
        if token.is_some() {
            return Err("multiple base64.bearer.authorization tokens specified".into());
        }
        let decoded = URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| "invalid base64.bearer.authorization token encoding")?;
        let text = String::from_utf8(decoded);
        token = Some(text.map_err(|_| "invalid base64.bearer.authorization token")?);
    }
    let Some(token) = token.filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    if others.is_empty() {
        return Err("missing additional subprotocol".into());
    }
    let rest = HeaderValue::from_str(&others.join(",")).map_err(|e| e.to_string())?;
    Ok(Some((token, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(protocols: &str) -> Result<Option<(String, HeaderValue)>, String> {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_str(protocols).unwrap(),
        );
        token(&headers)
    }

    #[test]
    fn a_token_is_taken_from_the_protocols() {
        let (token, rest) =
            offered("base64url.bearer.authorization.k8s.io.dG9r, v4.channel.k8s.io")
                .unwrap()
                .unwrap();
        assert_eq!(
            (token.as_str(), rest.to_str().unwrap()),
            ("tok", "v4.channel.k8s.io")
        );
        assert!(offered("v4.channel.k8s.io").unwrap().is_none());
        for bad in [
            "base64url.bearer.authorization.k8s.io.dG9r",
            "base64url.bearer.authorization.k8s.io.dG9r,base64url.bearer.authorization.k8s.io.dG9r,a",
            "base64url.bearer.authorization.k8s.io.!,a",
        ] {
            assert!(offered(bad).is_err(), "{bad}");
        }
    }
}
