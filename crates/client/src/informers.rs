//! One informer per kind and process: controllers that need the same kind share its memory and its watch.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt::Debug,
    sync::Arc,
};

use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{Informer, Selectors};

type Registry = HashMap<(TypeId, Selectors), Box<dyn Any + Send + Sync>>;

/// The informers of one client, started when first asked for; cheap to clone.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    shutdown: CancellationToken,
    started: Arc<Mutex<Registry>>,
}

impl Informers {
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        Self {
            client,
            shutdown,
            started: Arc::default(),
        }
    }

    /// The informer of all objects of kind `K` in all namespaces.
    pub fn get<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
    {
        self.get_selected(Selectors::default())
    }

    /// The informer of the selected objects of kind `K`; shared only with users of equal selectors.
    pub fn get_selected<K>(&self, selectors: Selectors) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
    {
        let mut started = self.started.lock();
        let known = started
            .get(&(TypeId::of::<K>(), selectors.clone()))
            .and_then(|informer| informer.downcast_ref::<Informer<K>>());
        if let Some(informer) = known {
            return informer.clone();
        }
        let api = Api::<K>::all(self.client.clone());
        let informer = Informer::start(api, selectors.clone(), self.shutdown.clone());
        started.insert((TypeId::of::<K>(), selectors), Box::new(informer.clone()));
        informer
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }
}
