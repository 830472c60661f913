//! Front proxies: who shows a certificate of their authority may say in headers on whose behalf a request is.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use super::x509::{ClientCertificates, PeerCertificates};
use crate::request::percent_decode;
use crate::user::User;

/// Names in front proxies' certificates, and the headers that they use.
#[derive(Clone, Debug)]
pub struct FrontProxy {
    /// Common names; any when empty.
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<String>,
    pub uid_headers: Vec<String>,
    pub group_headers: Vec<String>,
    pub extra_header_prefixes: Vec<String>,
}

impl Default for FrontProxy {
    fn default() -> Self {
        let own = |name: &str| vec![name.to_owned()];
        Self {
            allowed_names: own("front-proxy-client"),
            username_headers: own("X-Remote-User"),
            uid_headers: Vec::new(),
            group_headers: own("X-Remote-Group"),
            extra_header_prefixes: own("X-Remote-Extra-"),
        }
    }
}

impl FrontProxy {
    /// The user that a front proxy names; `None` when the peer is none, or names nobody.
    ///
    /// # Errors
    /// When the peer's certificate is not a front proxy's.
    pub(super) fn user(
        &self,
        peer: &PeerCertificates,
        certificates: &ClientCertificates,
        headers: &HeaderMap,
    ) -> Result<Option<User>, String> {
        let certified = peer.front_proxy(certificates)?;
        let name = &certified.common_name;
        if !self.allowed_names.is_empty() && !self.allowed_names.contains(name) {
            return Err(format!(
                "x509: subject with cn={name} is not in the allowed list"
            ));
        }
        let Some(name) = first(headers, &self.username_headers) else {
            return Ok(None);
        };
        let mut user = User {
            name,
            uid: first(headers, &self.uid_headers).unwrap_or_default(),
            ..User::default()
        };
        for header in &self.group_headers {
            user.groups
                .extend(headers.get_all(header.as_str()).iter().filter_map(text));
        }
        for (header, value) in headers {
            if let (Some(key), Some(value)) = (self.extra_key(header), text(value)) {
                user.extra.entry(key).or_default().push(value);
            }
        }
        Ok(Some(user))
    }

    fn extra_key(&self, header: &HeaderName) -> Option<String> {
        let name = header.as_str();
        self.extra_header_prefixes.iter().find_map(|prefix| {
            let rest = name.get(prefix.len()..)?;
            let begins = name[..prefix.len()].eq_ignore_ascii_case(prefix);
            begins.then(|| percent_decode(rest))
        })
    }

    /// Takes the headers out of a request: nobody after authentication shall believe them.
    pub(super) fn clear(&self, headers: &mut HeaderMap) {
        for list in [
            &self.username_headers,
            &self.uid_headers,
            &self.group_headers,
        ] {
            for header in list {
                headers.remove(header.as_str());
            }
        }
        let extra: Vec<HeaderName> = headers
            .keys()
            .filter(|name| self.extra_key(name).is_some())
            .cloned()
            .collect();
        for header in extra {
            headers.remove(header);
        }
    }
}

fn text(value: &HeaderValue) -> Option<String> {
    value.to_str().ok().map(str::to_owned)
}

fn first(headers: &HeaderMap, names: &[String]) -> Option<String> {
    names
        .iter()
        .filter_map(|name| headers.get(name.as_str()).and_then(text))
        .find(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_headers_are_keys_and_all_are_cleared() {
        let proxy = FrontProxy::default();
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("a"));
        headers.insert("x-remote-extra-acme%2fscope", HeaderValue::from_static("b"));
        headers.insert("accept", HeaderValue::from_static("c"));
        let key = HeaderName::from_static("x-remote-extra-acme%2fscope");
        assert_eq!(proxy.extra_key(&key).unwrap(), "acme/scope");
        proxy.clear(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}
