//! One informer per kind and process: controllers that need the same kind share its memory and its watch.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt::Debug,
    sync::Arc,
};

use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{Informer, Selectors};

/// Kind, namespace (`None` for all) and selectors.
type Followed = (TypeId, Option<String>, Selectors);
type Registry = HashMap<Followed, Box<dyn Any + Send + Sync>>;

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
        let key = (TypeId::of::<K>(), None, selectors.clone());
        self.get_or_start(key, selectors, || Api::all(self.client.clone()))
    }

    /// The informer of the objects of kind `K` in one namespace.
    pub fn get_namespaced<K>(&self, namespace: &str) -> Informer<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + Debug
            + Send
            + Sync
            + 'static,
    {
        let key = (
            TypeId::of::<K>(),
            Some(namespace.to_owned()),
            Selectors::default(),
        );
        let api = || Api::namespaced(self.client.clone(), namespace);
        self.get_or_start(key, Selectors::default(), api)
    }

    fn get_or_start<K>(
        &self,
        key: Followed,
        selectors: Selectors,
        api: impl FnOnce() -> Api<K>,
    ) -> Informer<K>
    where
        K: Resource + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
    {
        let mut started = self.started.lock();
        let known = started
            .get(&key)
            .and_then(|informer| informer.downcast_ref::<Informer<K>>());
        if let Some(informer) = known {
            return informer.clone();
        }
        let informer = Informer::start(api(), selectors, self.shutdown.clone());
        started.insert(key, Box::new(informer.clone()));
        informer
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }
}
