//! What every controller is given.

use std::sync::Arc;

use fluyt_client::{Informer, Informers, Recorder, Selectors};
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::Config;

/// An object of whatever resource, without what it is about.
pub type Meta = PartialObjectMeta<DynamicObject>;

/// The surroundings of one controller; cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Acts as the controller's own service account.
    pub client: Client,
    /// Shared by all controllers of the process.
    pub informers: Informers,
    pub config: Arc<Config>,
    pub shutdown: CancellationToken,
}

impl Context {
    /// A recorder of events whose source is `component`.
    pub fn recorder(&self, component: &str) -> Recorder {
        Recorder::new(self.client.clone(), component, "")
    }

    /// Follows the objects of a resource, without what `strip` takes away, until the token is cancelled.
    pub fn follow(
        &self,
        resource: &ApiResource,
        strip: fn(&mut Meta),
    ) -> (Informer<Meta>, CancellationToken) {
        let stop = self.shutdown.child_token();
        // Reads of all resources are the manager's own right; writes are the controller's.
        let api = Api::<Meta>::all_with(self.informers.client().clone(), resource);
        let informer = Informer::start_stripped(api, Selectors::default(), strip, stop.clone());
        (informer, stop)
    }
}
