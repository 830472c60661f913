//! What a failed call means: etcd's error by its message, and whether the request may have reached a server.

use std::error::Error as _;

use tonic::{Code, ConnectError, Status};

use crate::Error;

pub(super) struct Failure {
    pub error: Error,
    /// The server may have seen the request.
    pub reached: bool,
    /// Trying again may help.
    pub transient: bool,
}

/// Errors without data, told apart by their messages as etcd's own client does.
const KNOWN: [Error; 10] = [
    Error::TooLarge,
    Error::FutureRevision,
    Error::EmptyKey,
    Error::KeyNotFound,
    Error::DuplicateKey,
    Error::LeaseNotFound,
    Error::LeaseExists,
    Error::LeaseTtlTooLarge,
    Error::NoSpace,
    Error::Corrupt,
];

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => Self::from(&status),
            other => Self {
                error: Error::Unavailable(other.to_string()),
                reached: true,
                transient: true,
            },
        }
    }
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        Self {
            error: meaning(status.message()),
            reached: !unconnected(status),
            transient: matches!(
                status.code(),
                Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
            ),
        }
    }
}

/// The error that a message of the server stands for.
pub(super) fn meaning(message: &str) -> Error {
    // The servers do not say where the history begins.
    let compacted = Error::Compacted {
        compact_revision: 0,
    };
    if message == compacted.to_string() {
        return compacted;
    }
    let known = KNOWN.iter().find(|error| error.to_string() == message);
    known.cloned().unwrap_or_else(|| {
        let reason = message.strip_prefix("etcdserver: ").unwrap_or(message);
        Error::Unavailable(reason.to_owned())
    })
}

/// No connection could be made, so that no server has seen the request.
fn unconnected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_back() {
        for error in KNOWN {
            assert_eq!(meaning(&error.to_string()), error);
        }
        let leader = meaning("etcdserver: no leader");
        assert_eq!(leader, Error::Unavailable("no leader".into()));
        assert_eq!(leader.to_string(), "etcdserver: no leader");
    }
}
