//! What every component needs to talk to the Kubernetes API: clients, shared informers, work queues,
//! the controller loop, events and leader election.
//!
//! The shapes are client-go's, in the idiom of kube-rs: an [`Informer`] keeps a local copy of a collection,
//! a [`WorkQueue`] turns its changes into keys, and [`controller::run`] calls a `reconcile(key) -> Action`.

pub mod backoff;
pub mod controller;
pub mod events;
#[cfg(feature = "fake")]
pub mod fake;
pub mod helpers;
pub mod informer;
pub mod informers;
pub mod kubeconfig;
pub mod leader_election;
pub mod metrics;
pub mod object_key;
mod received;
pub mod service_account;
pub mod serving;
pub mod work_queue;

pub use backoff::Backoff;
pub use controller::Action;
pub use events::{EventType, Recorder};
pub use informer::{Change, Informer, Selectors};
pub use informers::Informers;
pub use leader_election::LeaderElector;
pub use object_key::ObjectKey;
pub use service_account::ServiceAccountClients;
pub use work_queue::WorkQueue;

/// The HTTP code of an API error, `None` for transport errors.
pub fn status_code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Whether `error` says that the object does not exist.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether `error` is a lost optimistic-concurrency race.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason != "AlreadyExists")
}

/// Whether `error` says that an object of this name is there already.
pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// Whether a create failed because its namespace is being deleted: not worth a retry.
pub fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let cause = |reason: &str| reason == "NamespaceTerminating";
    status.code == 403
        && (status.message.contains("being terminated")
            || status
                .details
                .iter()
                .flat_map(|details| &details.causes)
                .any(|c| cause(&c.reason)))
}
