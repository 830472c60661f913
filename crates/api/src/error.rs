//! API errors: what becomes a `Status` object on the wire, with upstream's reasons, codes, messages and causes.

use std::collections::HashSet;

use serde_json::{Value, json};

/// A failed request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub reason: Reason,
    pub code: u16,
    pub message: String,
    /// `details`, without the causes.
    pub name: String,
    pub group: String,
    /// `details.kind`: the resource for errors about one object, the kind for invalid ones, as upstream does it.
    pub kind: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
    /// `metadata.continue`: how to go on with a chunked list that expired, if not consistently.
    pub continue_token: String,
    /// It is not about any object: `details` is there and empty.
    pub generic: bool,
}

/// Machine-readable reason of a `Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
}

impl Reason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Invalid => "Invalid",
            Self::ServerTimeout => "ServerTimeout",
            Self::Timeout => "Timeout",
            Self::TooManyRequests => "TooManyRequests",
            Self::BadRequest => "BadRequest",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::InternalError => "InternalError",
            Self::Expired => "Expired",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }

    /// The reason of a name; [`Reason::Unknown`] for others than upstream's.
    #[must_use]
    pub fn parse(name: &str) -> Self {
        [
            Self::Unauthorized,
            Self::Forbidden,
            Self::NotFound,
            Self::AlreadyExists,
            Self::Conflict,
            Self::Gone,
            Self::Invalid,
            Self::ServerTimeout,
            Self::Timeout,
            Self::TooManyRequests,
            Self::BadRequest,
            Self::MethodNotAllowed,
            Self::NotAcceptable,
            Self::RequestEntityTooLarge,
            Self::UnsupportedMediaType,
            Self::InternalError,
            Self::Expired,
            Self::ServiceUnavailable,
        ]
        .into_iter()
        .find(|reason| reason.as_str() == name)
        .unwrap_or(Self::Unknown)
    }

    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::BadRequest => 400,
            Self::ServerTimeout | Self::InternalError | Self::Unknown => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }
}

/// One of the reasons why an object is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// e.g. `FieldValueInvalid`
    pub reason: &'static str,
    pub message: String,
    /// e.g. `spec.containers[0].name`
    pub field: String,
}

impl Error {
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            code: reason.code(),
            message: message.into(),
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
            continue_token: String::new(),
            generic: false,
        }
    }

    /// An error that upstream makes of nothing but a status code.
    #[must_use]
    pub fn generic(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            generic: true,
            ..Self::new(reason, message)
        }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.group = group.to_owned();
        self.kind = kind.to_owned();
        self.name = name.to_owned();
        self
    }

    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    #[must_use]
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let mut error = Self::new(
            Reason::InternalError,
            format!("Internal error occurred: {message}"),
        );
        error.causes.push(Cause {
            reason: "",
            message: message.to_string(),
            field: String::new(),
        });
        error
    }

    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    #[must_use]
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self::new(
            Reason::NotFound,
            format!("{} \"{name}\" not found", qualified(plural, group)),
        )
        .about(group, plural, name)
    }

    /// No such path.
    #[must_use]
    pub fn no_route() -> Self {
        let message = "the server could not find the requested resource";
        Self::generic(Reason::NotFound, message)
    }

    /// The path is there, for other methods.
    #[must_use]
    pub fn no_method() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::generic(Reason::MethodNotAllowed, message)
    }

    #[must_use]
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self::new(
            Reason::AlreadyExists,
            format!("{} \"{name}\" already exists", qualified(plural, group)),
        )
        .about(group, plural, name)
    }

    #[must_use]
    pub fn conflict(group: &str, plural: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            qualified(plural, group)
        );
        Self::new(Reason::Conflict, message).about(group, plural, name)
    }

    /// The optimistic-concurrency conflict.
    #[must_use]
    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, plural, name, why)
    }

    #[must_use]
    pub fn forbidden(group: &str, plural: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let subject = if name.is_empty() {
            format!("{} is forbidden", qualified(plural, group))
        } else {
            format!("{} \"{name}\" is forbidden", qualified(plural, group))
        };
        Self::new(Reason::Forbidden, format!("{subject}: {why}")).about(group, plural, name)
    }

    /// `causes` must not be empty.
    #[must_use]
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let texts: Vec<String> = {
            let mut told = HashSet::new();
            let once = causes
                .iter()
                .filter(|c| told.insert((&c.field, &c.message)));
            once.map(|c| format!("{}: {}", c.field, c.message))
                .collect()
        };
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut error = Self::new(
            Reason::Invalid,
            format!("{} \"{name}\" is invalid: {list}", qualified(kind, group)),
        )
        .about(group, kind, name);
        error.causes = causes;
        error
    }

    #[must_use]
    pub fn method_not_allowed(group: &str, plural: &str, verb: &str) -> Self {
        let message = format!(
            "{verb} is not supported on resources of kind \"{}\"",
            qualified(plural, group)
        );
        Self::new(Reason::MethodNotAllowed, message).about(group, plural, "")
    }

    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    #[must_use]
    pub fn too_large_resource_version(requested: i64, current: i64) -> Self {
        let mut error = Self::new(
            Reason::Timeout,
            format!("Timeout: Too large resource version: {requested}, current: {current}"),
        );
        error.causes.push(Cause {
            reason: "ResourceVersionTooLarge",
            message: "Too large resource version".into(),
            field: String::new(),
        });
        error.retry_after_seconds = 1;
        error
    }

    #[must_use]
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut error = Self::new(Reason::TooManyRequests, message);
        error.retry_after_seconds = retry_after_seconds;
        error
    }

    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }

    /// The `Status` object.
    #[must_use]
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.continue_token.is_empty() {
            status["metadata"]["continue"] = self.continue_token.clone().into();
        }
        if self.reason != Reason::Unknown {
            status["reason"] = self.reason.as_str().into();
        }
        let mut details = serde_json::Map::new();
        for (key, value) in [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
        ] {
            if !value.is_empty() {
                details.insert(key.into(), value.clone().into());
            }
        }
        if !self.causes.is_empty() {
            let causes: Vec<Value> = self.causes.iter().map(Cause::to_json).collect();
            details.insert("causes".into(), causes.into());
        }
        if self.retry_after_seconds > 0 {
            details.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        if !details.is_empty() || self.generic || self.reason == Reason::Forbidden {
            status["details"] = details.into();
        }
        status
    }
}

impl Cause {
    fn to_json(&self) -> Value {
        let mut cause = serde_json::Map::new();
        for (key, value) in [
            ("reason", self.reason),
            ("message", &self.message),
            ("field", &self.field),
        ] {
            if !value.is_empty() {
                cause.insert(key.into(), value.into());
            }
        }
        cause.into()
    }
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_lists_causes_as_upstream_does() {
        let cause = |field: &str, message: &str| Cause {
            reason: "FieldValueRequired",
            message: message.into(),
            field: field.into(),
        };
        let one = Error::invalid(
            "apps",
            "Deployment",
            "web",
            vec![cause("spec.selector", "Required value")],
        );
        assert_eq!(
            one.message,
            "Deployment.apps \"web\" is invalid: spec.selector: Required value"
        );
        let two = Error::invalid("", "Pod", "p", vec![cause("a", "x"), cause("b", "y")]);
        assert_eq!(two.message, "Pod \"p\" is invalid: [a: x, b: y]");
        assert_eq!(two.to_status()["details"]["causes"][1]["field"], "b");
        assert_eq!(two.to_status()["code"], 422);
    }
}
