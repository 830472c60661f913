//! kube-controller-manager: the control loops that make the cluster what its objects say.
//!
//! One file or folder per controller, each in the shape `run(context)`: wait for informers, feed a work queue,
//! `reconcile(key) -> Action`. The table of controllers is [`CONTROLLERS`].

pub mod args;
pub mod config;
mod context;

mod common;

mod bootstraptokencleaner;
mod certificates;
mod clusterroleaggregation;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoint;
mod endpointslice;
mod endpointslicemirroring;
mod garbagecollector;
mod job;
mod namespace;
mod nodeipam;
mod nodelifecycle;
mod podgc;
mod podgroupprotection;
mod replicaset;
mod resourcequota;
mod root_ca_cert_publisher;
mod serviceaccount;
mod serviceaccounttoken;
mod servicecidrs;
mod statefulset;
mod tainteviction;
mod ttlafterfinished;
mod volume;

use std::{pin::Pin, sync::Arc};

use fluyt_client::Informers;
use futures::future::join_all;
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::ReplicationController};
use kube::Client;
use tokio_util::sync::CancellationToken;

pub use self::{args::Args, config::Config};
use crate::context::Context;

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A controller as `--controllers` names it.
pub struct Controller {
    pub name: &'static str,
    /// The service account in kube-system that it acts as.
    pub service_account: &'static str,
    run: fn(Context) -> Running,
}

macro_rules! controller {
    ($name:literal, $service_account:literal, $run:expr) => {
        Controller {
            name: $name,
            service_account: $service_account,
            run: |context| Box::pin($run(context)),
        }
    };
}

/// All controllers, by upstream's names.
pub const CONTROLLERS: &[Controller] = &[
    controller!(
        "serviceaccount-controller",
        "service-account-controller",
        serviceaccount::run
    ),
    controller!(
        "root-ca-certificate-publisher-controller",
        "root-ca-cert-publisher",
        root_ca_cert_publisher::run
    ),
    controller!(
        "namespace-controller",
        "namespace-controller",
        namespace::run
    ),
    controller!(
        "certificatesigningrequest-approving-controller",
        "certificate-controller",
        certificates::approver::run
    ),
    controller!(
        "certificatesigningrequest-signing-controller",
        "certificate-controller",
        certificates::signer::run
    ),
    controller!(
        "certificatesigningrequest-cleaner-controller",
        "certificate-controller",
        certificates::cleaner::run
    ),
    controller!("node-ipam-controller", "node-controller", nodeipam::run),
    controller!(
        "node-lifecycle-controller",
        "node-controller",
        nodelifecycle::run
    ),
    controller!(
        "taint-eviction-controller",
        "node-controller",
        tainteviction::run
    ),
    controller!(
        "pod-garbage-collector-controller",
        "pod-garbage-collector",
        podgc::run
    ),
    controller!(
        "statefulset-controller",
        "statefulset-controller",
        statefulset::run
    ),
    controller!(
        "daemonset-controller",
        "daemon-set-controller",
        daemonset::run
    ),
    controller!(
        "garbage-collector-controller",
        "generic-garbage-collector",
        garbagecollector::run
    ),
    controller!(
        "persistentvolume-binder-controller",
        "persistent-volume-binder",
        volume::binder::run
    ),
    controller!(
        "persistentvolumeclaim-protection-controller",
        "pvc-protection-controller",
        volume::protection::run_claims
    ),
    controller!(
        "persistentvolume-protection-controller",
        "pv-protection-controller",
        volume::protection::run_volumes
    ),
    controller!(
        "volumeattributesclass-protection-controller",
        "volumeattributesclass-protection-controller",
        volume::protection::run_classes
    ),
    controller!("job-controller", "job-controller", job::run),
    controller!(
        "podgroup-protection-controller",
        "podgroup-protection-controller",
        podgroupprotection::run
    ),
    controller!("cronjob-controller", "cronjob-controller", cronjob::run),
    controller!(
        "ttl-after-finished-controller",
        "ttl-after-finished-controller",
        ttlafterfinished::run
    ),
    controller!(
        "disruption-controller",
        "disruption-controller",
        disruption::run
    ),
    controller!(
        "resourcequota-controller",
        "resourcequota-controller",
        resourcequota::run
    ),
    controller!(
        "clusterrole-aggregation-controller",
        "clusterrole-aggregation-controller",
        clusterroleaggregation::run
    ),
    controller!(
        "serviceaccount-token-controller",
        "tokens-controller",
        serviceaccounttoken::run
    ),
    controller!(
        "token-cleaner-controller",
        "token-cleaner",
        bootstraptokencleaner::run
    ),
    controller!(
        "deployment-controller",
        "deployment-controller",
        deployment::run
    ),
    controller!(
        "replicaset-controller",
        "replicaset-controller",
        replicaset::run::<ReplicaSet>
    ),
    controller!(
        "replicationcontroller-controller",
        "replication-controller",
        replicaset::run::<ReplicationController>
    ),
    controller!("endpoints-controller", "endpoint-controller", endpoint::run),
    controller!(
        "endpointslice-controller",
        "endpointslice-controller",
        endpointslice::run
    ),
    controller!(
        "endpointslice-mirroring-controller",
        "endpointslicemirroring-controller",
        endpointslicemirroring::run
    ),
    controller!(
        "service-cidr-controller",
        "service-cidrs-controller",
        servicecidrs::run
    ),
];

/// Run the configured controllers until `shutdown`. `client` is the manager's own identity: it feeds the informers
/// that all controllers share.
pub async fn start(
    config: Config,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let informers = match &config.informers {
        Some(informers) => informers.clone(),
        None => Informers::new(client, shutdown.clone()),
    };
    let enabled = CONTROLLERS
        .iter()
        .filter(|controller| config.is_enabled(controller.name));
    let running = enabled.map(|controller| {
        let context = Context {
            client: (config.client_for)(controller.service_account),
            informers: informers.clone(),
            config: Arc::clone(&config),
            shutdown: shutdown.clone(),
        };
        let run = (controller.run)(context);
        let shutdown = shutdown.clone();
        // A task each, so that one panicking or busy controller leaves the others alone.
        let task = tokio::spawn(async move {
            tokio::select! {
                () = run => {}
                () = shutdown.cancelled() => {}
            }
        });
        async move {
            if let Err(error) = task.await {
                tracing::error!(controller = controller.name, %error, "controller died");
            }
        }
    });
    join_all(running.collect::<Vec<_>>()).await;
    Ok(())
}

/// Run alone, as `fluyt kube-controller-manager`.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    args::run(args, shutdown).await
}
