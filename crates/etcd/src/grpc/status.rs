//! etcd's errors as gRPC statuses, with its messages (etcd's `api/v3rpc/rpctypes`).

use tonic::{Code, Status};

use crate::Error;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Compacted { .. } | Error::FutureRevision | Error::LeaseTtlTooLarge => {
                Code::OutOfRange
            }
            Error::EmptyKey | Error::KeyNotFound | Error::DuplicateKey | Error::TooLarge => {
                Code::InvalidArgument
            }
            Error::LeaseNotFound => Code::NotFound,
            Error::LeaseExists => Code::FailedPrecondition,
            Error::Corrupt => Code::DataLoss,
            Error::NoSpace => Code::ResourceExhausted,
            Error::Stopped | Error::Unavailable(_) => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

pub(super) fn invalid(message: &str) -> Status {
    Status::invalid_argument(format!("etcdserver: {message}"))
}

pub(super) fn precondition(message: &str) -> Status {
    Status::failed_precondition(format!("etcdserver: {message}"))
}

/// What a server without the method answers, as Go's gRPC words it.
pub(super) fn unknown_method(service: &str, method: &str) -> Status {
    Status::unimplemented(format!("unknown method {method} for service {service}"))
}
