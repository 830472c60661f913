//! What browsers are told: pages of which origins may use the API (CORS), and to come by TLS only (HSTS).

use std::str::FromStr;

use ::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, HeaderMap, ORIGIN,
    STRICT_TRANSPORT_SECURITY,
};
use ::http::{HeaderValue, Method, Response, StatusCode};
use bytes::Bytes;
use regex::Regex;

use crate::http::{self, Body};

const ORIGINS_HELP: &str = r"List of allowed origins for CORS, comma separated. An allowed origin can be a regular expression to support subdomain matching. If this list is empty CORS will not be enabled. Please ensure each expression matches the entire hostname by anchoring to the start with '^' or including the '//' prefix, and by anchoring to the end with '$' or including the ':' port separator suffix. Examples of valid expressions are '//example\.com(:|$)' and '^https://example\.com(:|$)'";

const METHODS: &str = "POST, GET, OPTIONS, PUT, DELETE, PATCH";

const HEADERS: &str = "Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization, X-Requested-With, If-Modified-Since";

/// Flags about browsers.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Browsers {
    /// Origins whose pages may use the API, as regular expressions that pin the start and the end of the host, comma separated.
    #[arg(long, value_delimiter = ',')]
    pub cors_allowed_origins: Vec<Origins>,
    /// Directives of the Strict-Transport-Security header, comma separated: max-age=SECONDS, includeSubDomains, preload.
    #[arg(long, value_delimiter = ',')]
    pub strict_transport_security_directives: Vec<Directive>,
}

/// Origins that an expression matches.
#[derive(Clone, Debug)]
pub struct Origins(Regex);

/// A directive of HSTS (RFC 6797, 6.1).
#[derive(Clone, Debug)]
pub struct Directive(String);

// === impl Origins ===

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err(format!(
                "empty value in --cors-allowed-origins, help: {ORIGINS_HELP}"
            ));
        }
        let invalid = |why: &str| {
            format!(
                "--cors-allowed-origins has an invalid regular expression: {why}, help: {ORIGINS_HELP}"
            )
        };
        let regex = Regex::new(text).map_err(|error| invalid(&error.to_string()))?;
        // Else another host whose name has this one in it would match (CVE-2022-1996).
        let starts = ["^", "//"].iter().any(|start| text.contains(start));
        let ends = ["$", ":"].iter().any(|end| text.contains(end));
        if starts && ends {
            Ok(Self(regex))
        } else {
            Err(invalid(
                "regular expression does not pin to start/end of host in the origin header",
            ))
        }
    }
}

// === impl Directive ===

impl FromStr for Directive {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Err("empty value in strict-transport-security-directives");
        }
        let is_age = text
            .strip_prefix("max-age=")
            .is_some_and(|age| !age.contains('='));
        let is_sendable = HeaderValue::from_str(text).is_ok();
        if is_sendable && (is_age || matches!(text, "includeSubDomains" | "preload")) {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "--strict-transport-security-directives invalid, allowed values: max-age=expireTime, includeSubDomains, preload. see https://tools.ietf.org/html/rfc6797#section-6.1 for more information",
            )
        }
    }
}

// === impl Browsers ===

impl Browsers {
    /// The origin of a request whose page may use the API.
    pub fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.cors_allowed_origins.is_empty() {
            return None;
        }
        let origin = headers.get(ORIGIN)?;
        let text = origin.to_str().ok()?;
        let mut allowed = self.cors_allowed_origins.iter();
        allowed
            .any(|Origins(regex)| regex.is_match(text))
            .then(|| origin.clone())
    }

    /// The answer to a browser that asks first what a page of an allowed origin may do.
    pub fn preflight(method: &Method) -> Option<Response<Body>> {
        (method == Method::OPTIONS).then(|| {
            let mut response = Response::new(http::full(Bytes::new()));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        })
    }

    /// Puts in an answer's headers what its browser has to know.
    pub fn tell(&self, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
        if let Some(origin) = origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            for (name, value) in [
                (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
                (ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
                (ACCESS_CONTROL_EXPOSE_HEADERS, "Date"),
                (ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
            ] {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
        let directives = &self.strict_transport_security_directives;
        if directives.is_empty() {
            return;
        }
        let texts: Vec<&str> = directives.iter().map(|Directive(d)| d.as_str()).collect();
        if let Ok(value) = HeaderValue::from_str(&texts.join("; ")) {
            headers.entry(STRICT_TRANSPORT_SECURITY).or_insert(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_pin_the_whole_host() {
        for good in [r"//example\.com(:|$)", r"^https://example\.com$", "//a:"] {
            assert!(good.parse::<Origins>().is_ok(), "{good}");
        }
        let refused = |text: &str| text.parse::<Origins>().unwrap_err();
        assert!(refused("").starts_with("empty value in --cors-allowed-origins, help: List of"));
        for text in [r"example\.com$", "//example"] {
            let start = "--cors-allowed-origins has an invalid regular expression: regular expression does not pin to start/end of host in the origin header, help: ";
            assert!(refused(text).starts_with(start), "{text}");
        }
        assert!(refused("^(").starts_with("--cors-allowed-origins has an invalid"));
    }

    #[test]
    fn directives_are_those_of_the_standard() {
        for good in ["max-age=31536000", "includeSubDomains", "preload"] {
            assert!(good.parse::<Directive>().is_ok(), "{good}");
        }
        for bad in [
            "",
            " ",
            "max-age",
            "max-age=1=2",
            "includesubdomains",
            "max-age=\n",
        ] {
            assert!(bad.parse::<Directive>().is_err(), "{bad:?}");
        }
    }
}
