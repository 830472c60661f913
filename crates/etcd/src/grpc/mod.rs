//! etcd's v3 gRPC API over the embedded engine: one file per service, messages as etcd's own.
//!
//! The messages and most service traits are those that `etcd-client` generates from etcd's protocol files.

mod auth;
mod cluster;
mod convert;
mod health;
mod kv;
mod lease;
mod limits;
mod maintenance;
mod metrics;
mod raw;
mod status;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use etcd_client::proto::{PbClusterServer, PbLeaseServer, PbMaintenanceServer, PbResponseHeader};
use fluyt_transport::Incoming;
use futures::FutureExt as _;
use http::{Request, Response};
use http_body_util::Either;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceExt as _;

use crate::embedded::{Embedded, Identity};
use kv::Kv;
pub use metrics::Metrics;
use raw::{Answer, Methods as _};

/// The etcd release whose protocol this speaks; clients choose features by it.
pub const ETCD_VERSION: &str = "3.5.21";
/// The cluster version that such a release announces.
pub const CLUSTER_VERSION: &str = "3.5.0";

/// What gRPC may add to a request of the largest size.
const MESSAGE_OVERHEAD: usize = 512 << 10;

/// What is served at an address.
#[derive(Clone)]
pub struct Service {
    /// Calls that come too often for the router.
    kv: Option<Kv>,
    router: Router,
}

impl Service {
    /// A member's gRPC services, and pages beside them.
    #[must_use]
    pub fn new(member: &Member, pages: Router) -> Self {
        Self {
            kv: Some(Kv(member.clone())),
            router: member.routes().merge(pages),
        }
    }

    /// Nothing but pages.
    #[must_use]
    pub fn pages(router: Router) -> Self {
        Self { kv: None, router }
    }

    /// For HTTP/1.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Answers a request that came over HTTP/2.
    pub fn call(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Either<Answer, axum::body::Body>>> + use<> {
        let uri = request.uri().clone();
        let method = uri.path().strip_prefix('/').and_then(|p| p.split_once('/'));
        if let (Some(kv), Some((Kv::NAME, method))) = (&self.kv, method) {
            let answer = kv.call(method, request);
            return answer
                .map(|response| response.map(Either::Left))
                .left_future();
        }
        let request = request.map(axum::body::Body::new);
        let answer = self.router().oneshot(request);
        answer
            .map(|Ok(response)| response.map(Either::Right))
            .right_future()
    }
}

/// How a server presents itself and what it accepts.
#[derive(Clone, Debug)]
pub struct Options {
    pub name: String,
    pub advertise_client_urls: Vec<String>,
    /// Operations in one transaction.
    pub max_txn_ops: usize,
    pub max_request_bytes: usize,
    /// How often an idle watch that asked for it is told the revision.
    pub progress_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "default".into(),
            advertise_client_urls: vec!["http://localhost:2379".into()],
            max_txn_ops: 128,
            max_request_bytes: 3 << 19,
            progress_interval: Duration::from_secs(600),
        }
    }
}

/// The one member of a cluster of one. Cheap to clone.
#[derive(Clone)]
pub struct Member(Arc<Inner>);

struct Inner {
    store: Arc<Embedded>,
    identity: Identity,
    options: Options,
    metrics: Metrics,
    shutdown: CancellationToken,
}

impl Member {
    /// A member over a store; its streams end with `shutdown`.
    #[must_use]
    pub fn new(store: Arc<Embedded>, options: Options, shutdown: CancellationToken) -> Self {
        let identity = store.identity();
        Self(Arc::new(Inner {
            store,
            identity,
            options,
            metrics: Metrics::default(),
            shutdown,
        }))
    }

    /// All gRPC services.
    pub fn routes(&self) -> Router {
        Routes::new(raw::Server(Kv(self.clone())))
            .add_service(raw::Server(watch::Watch(self.clone())))
            .add_service(PbLeaseServer::new(self.clone()))
            .add_service(PbClusterServer::new(self.clone()))
            .add_service(PbMaintenanceServer::new(self.clone()))
            .add_service(raw::Server(auth::Auth(self.clone())))
            .add_service(raw::Server(health::Health(self.clone())))
            .into_axum_router()
    }

    /// The metrics page, in Prometheus' text format.
    #[must_use]
    pub fn metrics_page(&self) -> String {
        self.0.metrics.page(self)
    }

    fn store(&self) -> &Embedded {
        &self.0.store
    }

    fn header(&self, revision: i64) -> PbResponseHeader {
        let identity = &self.0.identity;
        PbResponseHeader {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            revision,
            raft_term: identity.raft_term,
        }
    }

    /// A header with the newest revision, for answers that are about none.
    fn current_header(&self) -> PbResponseHeader {
        self.header(self.store().current_revision())
    }
}
