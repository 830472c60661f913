//! The controllers and the scheduler against our API server, with the identities and rights they have in a master.
//! Nodes are played by the test.

#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use fluyt_apiserver::{Config as ServerConfig, Credentials, MASTERS, Server, User};
use fluyt_client::{Informer, Selectors, helpers::pods};
use fluyt_controller_manager::config::SigningAuthority;
use fluyt_etcd::embedded::Embedded;
use fluyt_pki::{Authority, Identity, TokenKeys, Usage};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::Job,
    coordination::v1::Lease,
    core::v1::{
        ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
        Service,
    },
    discovery::v1::EndpointSlice,
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "shop";

struct Cluster {
    client: Client,
    shutdown: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create("test").unwrap();
        let identity = Identity {
            common_name: "kube-apiserver".into(),
            ..Identity::default()
        };
        let serving = authority.issue(&identity, Usage::Server, 1).unwrap();
        let token_key = TokenKeys::create().unwrap().private_pem().to_owned();
        let shutdown = CancellationToken::new();
        let credentials = Credentials {
            client_ca_pem: authority.certificate_pem().to_owned(),
            tls_certificate_pem: serving.certificate_pem,
            tls_key_pem: serving.key_pem,
            service_account_key_pem: token_key.clone(),
        };
        let store = Arc::new(Embedded::open(directory.path()).unwrap());
        let server = Server::start(ServerConfig::new(store, credentials, shutdown.clone()))
            .await
            .unwrap();
        let as_user = {
            let server = Arc::clone(&server);
            move |user: User| {
                Client::new(server.service(user, "kube-controller-manager"), "default")
            }
        };
        let scheduler = as_user(User::new("system:kube-scheduler", &[]));
        tokio::spawn(fluyt_scheduler::start(
            fluyt_scheduler::Config::default(),
            scheduler,
            shutdown.clone(),
        ));
        let manager = as_user(User::new("system:kube-controller-manager", &[]));
        let by_account = as_user.clone();
        let config = fluyt_controller_manager::Config {
            client_for: Arc::new(move |account| {
                by_account(User::service_account("kube-system", account, ""))
            }),
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            allocate_node_cidrs: true,
            cluster_signing: Some(SigningAuthority {
                certificate: authority.certificate_pem().to_owned(),
                key: authority.key_pem().to_owned(),
            }),
            root_ca: Some(authority.certificate_pem().to_owned()),
            service_account_private_key: Some(token_key),
            ..fluyt_controller_manager::Config::for_client(manager.clone())
        };
        tokio::spawn(fluyt_controller_manager::start(
            config,
            manager,
            shutdown.clone(),
        ));
        let client = as_user(User::new("admin", &[MASTERS]));
        Self {
            client,
            shutdown,
            _directory: directory,
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn create<K>(&self, object: Value)
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>()
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
    }

    /// A node with a kubelet: keeps its lease, runs whatever is bound to it, confirms deletions.
    async fn add_node(&self, name: &str) {
        let nodes = Api::<Node>::all(self.client.clone());
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        nodes
            .create(
                &PostParams::default(),
                &serde_json::from_value(node).unwrap(),
            )
            .await
            .unwrap();
        let status = json!({"status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        }});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
            .await
            .unwrap();
        let lease = json!({"metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}});
        let leases = Api::<Lease>::namespaced(self.client.clone(), "kube-node-lease");
        leases
            .create(
                &PostParams::default(),
                &serde_json::from_value(lease).unwrap(),
            )
            .await
            .unwrap();
        let selectors = Selectors {
            fields: Some(format!("spec.nodeName={name}")),
            labels: None,
        };
        let informer = Informer::<Pod>::start(
            Api::all(self.client.clone()),
            selectors,
            self.shutdown.clone(),
        );
        let mut changes = informer.subscribe();
        let (client, mut ip) = (self.client.clone(), 1);
        tokio::spawn(async move {
            while let Some(change) = changes.recv().await {
                let fluyt_client::Change::Deleted(_) = &change else {
                    ip += 1;
                    run_pod(&client, change.object(), ip).await;
                    continue;
                };
            }
        });
    }

    async fn until<K, F>(&self, what: &str, api: Api<K>, condition: F) -> Vec<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
        F: Fn(&[K]) -> bool,
    {
        let start = std::time::Instant::now();
        loop {
            let items = api.list(&ListParams::default()).await.unwrap().items;
            if condition(&items) {
                eprintln!("{what}: {:?}", start.elapsed());
                return items;
            }
            if start.elapsed() > Duration::from_secs(20) {
                let events = Api::<k8s_openapi::api::core::v1::Event>::all(self.client.clone());
                let events = events.list(&ListParams::default()).await.unwrap().items;
                for event in events {
                    eprintln!(
                        "{:?} {:?} {:?}",
                        event.involved_object.name, event.reason, event.message
                    );
                }
                panic!("never happened: {what}: {items:#?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn run_pod(client: &Client, pod: &Pod, ip: u32) {
    let api = Api::<Pod>::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap());
    let name = pod.metadata.name.as_deref().unwrap();
    if pods::is_terminating(pod) {
        let _ = api
            .delete(name, &DeleteParams::default().grace_period(0))
            .await;
        return;
    }
    if pods::phase(pod) != "Pending" {
        return;
    }
    let is_task = pod.spec.as_ref().unwrap().restart_policy.as_deref() == Some("Never");
    let status = if is_task {
        json!({"status": {"phase": "Succeeded"}})
    } else {
        let address = format!("10.244.9.{ip}");
        json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    let _ = api
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
        .await;
}

fn template(app: &str, restart: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {
        "restartPolicy": restart,
        "containers": [{"name": "c", "image": "example/image", "resources": {"requests": {"cpu": "100m"}}}],
    }})
}

fn selector(app: &str) -> Value {
    json!({"matchLabels": {"app": app}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_runs_an_application() {
    let cluster = Cluster::start().await;
    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}})).unwrap();
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    let accounts = cluster.api::<k8s_openapi::api::core::v1::ServiceAccount>();
    cluster
        .until("default account", accounts, |accounts| !accounts.is_empty())
        .await;
    cluster
        .until("root certificate", cluster.api::<ConfigMap>(), |maps| {
            !maps.is_empty()
        })
        .await;
    let class = json!({"metadata": {"name": "default"}, "provisioner": "fluyt.io/local-disk",
        "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete"});
    let classes = Api::<StorageClass>::all(cluster.client.clone());
    classes
        .create(
            &PostParams::default(),
            &serde_json::from_value(class).unwrap(),
        )
        .await
        .unwrap();

    // The application is there before the nodes are.
    cluster
        .create::<Deployment>(json!({"metadata": {"name": "web"}, "spec": {
            "replicas": 3, "selector": selector("web"), "template": template("web", "Always")}}))
        .await;
    cluster
        .create::<StatefulSet>(json!({"metadata": {"name": "store"}, "spec": {
            "serviceName": "store", "replicas": 2, "selector": selector("store"),
            "template": template("store", "Always"),
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "storageClassName": "default", "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}}]}}))
        .await;
    cluster
        .create::<DaemonSet>(json!({"metadata": {"name": "agent"}, "spec": {
            "selector": selector("agent"), "template": template("agent", "Always")}}))
        .await;
    cluster
        .create::<Job>(json!({"metadata": {"name": "task"}, "spec": {
            "completions": 2, "parallelism": 1, "template": template("task", "Never")}}))
        .await;
    cluster
        .create::<Service>(json!({"metadata": {"name": "web"}, "spec": {
            "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}))
        .await;
    let unscheduled = |pods: &[Pod]| {
        pods.len() >= 5
            && pods.iter().all(|pod| {
                pods::condition(pod, "PodScheduled").is_some_and(|c| {
                    c.message.as_deref() == Some("no nodes available to schedule pods")
                })
            })
    };
    cluster
        .until("pods wait for nodes", cluster.api::<Pod>(), unscheduled)
        .await;

    cluster.add_node("node-0").await;
    cluster.add_node("node-1").await;
    let nodes = Api::<Node>::all(cluster.client.clone());
    let usable = |nodes: &[Node]| {
        nodes.iter().all(|node| {
            let spec = node.spec.clone().unwrap_or_default();
            spec.pod_cidr.is_some() && spec.taints.is_none_or(|taints| taints.is_empty())
        })
    };
    cluster.until("nodes are usable", nodes, usable).await;
    cluster
        .until("deployment", cluster.api::<Deployment>(), |all| {
            all[0]
                .status
                .as_ref()
                .is_some_and(|status| status.available_replicas == Some(3))
        })
        .await;
    cluster
        .until("stateful set", cluster.api::<StatefulSet>(), |all| {
            all[0]
                .status
                .as_ref()
                .is_some_and(|status| status.ready_replicas == Some(2))
        })
        .await;
    cluster
        .until("daemon set", cluster.api::<DaemonSet>(), |all| {
            all[0]
                .status
                .as_ref()
                .is_some_and(|status| status.number_ready == 2)
        })
        .await;
    cluster
        .until("job", cluster.api::<Job>(), |all| {
            all[0].status.as_ref().is_some_and(|status| {
                status.succeeded == Some(2) && status.completion_time.is_some()
            })
        })
        .await;
    cluster
        .until("endpoints", cluster.api::<EndpointSlice>(), |all| {
            all.iter()
                .filter(|slice| slice.metadata.name.as_deref().unwrap().starts_with("web-"))
                .any(|slice| {
                    slice.endpoints.as_ref().is_some_and(|endpoints| {
                        endpoints.len() == 3
                            && endpoints
                                .iter()
                                .all(|e| e.conditions.as_ref().unwrap().ready == Some(true))
                    })
                })
        })
        .await;
    cluster
        .until("legacy endpoints", cluster.api::<Endpoints>(), |all| {
            all[0]
                .subsets
                .as_ref()
                .is_some_and(|subsets| subsets[0].addresses.as_ref().is_some_and(|a| a.len() == 3))
        })
        .await;
    let claims = cluster
        .api::<PersistentVolumeClaim>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    assert!(
        claims.len() == 2
            && claims
                .iter()
                .all(|claim| claim.status.as_ref().unwrap().phase.as_deref() == Some("Bound"))
    );

    // A rollout, then the end of one part, then of everything.
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "example/v2"}]}}}});
    let deployments = cluster.api::<Deployment>();
    deployments
        .patch("web", &PatchParams::default(), &Patch::Strategic(image))
        .await
        .unwrap();
    cluster
        .until("rollout", deployments.clone(), |all| {
            let status = all[0].status.clone().unwrap();
            status.observed_generation == all[0].metadata.generation
                && status.updated_replicas == Some(3)
                && status.available_replicas == Some(3)
                && status.replicas == Some(3)
        })
        .await;
    assert_eq!(
        cluster
            .api::<ReplicaSet>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        2
    );
    deployments
        .delete("web", &DeleteParams::background())
        .await
        .unwrap();
    cluster
        .until("its pods are gone", cluster.api::<Pod>(), |pods| {
            !pods
                .iter()
                .any(|pod| pod.metadata.name.as_deref().unwrap().starts_with("web-"))
        })
        .await;
    cluster
        .until(
            "its sets are gone",
            cluster.api::<ReplicaSet>(),
            <[ReplicaSet]>::is_empty,
        )
        .await;
    cluster
        .api::<StatefulSet>()
        .delete("store", &DeleteParams::foreground())
        .await
        .unwrap();
    cluster
        .until(
            "stateful set is gone",
            cluster.api::<StatefulSet>(),
            <[StatefulSet]>::is_empty,
        )
        .await;
    namespaces
        .delete(NAMESPACE, &DeleteParams::default())
        .await
        .unwrap();
    cluster
        .until("namespace is gone", namespaces, |all| {
            !all.iter()
                .any(|namespace| namespace.metadata.name.as_deref() == Some(NAMESPACE))
        })
        .await;
    let volumes = Api::<PersistentVolume>::all(cluster.client.clone());
    cluster
        .until(
            "volumes are deleted",
            volumes,
            <[PersistentVolume]>::is_empty,
        )
        .await;
    cluster.shutdown.cancel();
}
