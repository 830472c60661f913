//! The kubelet put together: what its parts share, and the loop that hands pods to their tasks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fluyt_api::component_helpers::nodedeclaredfeatures::FeatureSet;
use fluyt_client::{Change, EventType, Informer, Recorder, Selectors};
use fluyt_volumes::resource_field_ref::Allocatable;
use k8s_openapi::api::core::v1::{Container, HostIP, Node, Pod, PodIP, PodStatus, Service};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::allocation::{self, Allocations, Outcome};
use crate::backoff::Backoff;
use crate::cgroups::Cgroups;
use crate::config::args::Settings;
use crate::config::{apiserver, file};
use crate::cri::Cri;
use crate::images::ImageManager;
use crate::kuberuntime::actions::Probes;
use crate::kuberuntime::container::{StartError, termination_message_file};
use crate::kuberuntime::runtime_pod::{Inspector, RuntimeContainer, RuntimePod, State};
use crate::kuberuntime::{kill, labels, sandbox};
use crate::machine::Machine;
use crate::mirror_pods;
use crate::object_cache::ObjectCache;
use crate::pod::PodExt;
use crate::pod_workers::PodWorkers;
use crate::prober::ProbeManager;
use crate::runtime_state::{self, RuntimeState};
use crate::status::{self, Health, Inputs, Stage, termination_message};
use crate::status_manager::StatusManager;
use crate::volume_manager::VolumeManager;
use crate::{admission, declared_features, pleg};

/// What the parts share.
pub struct Kubelet {
    pub settings: Settings,
    pub client: Client,
    pub recorder: Recorder,
    pub cri: Cri,
    pub runtime_name: String,
    pub runtime_version: String,
    pub declared_features: FeatureSet,
    pub inspector: Inspector,
    pub images: ImageManager,
    pub objects: Arc<ObjectCache>,
    pub volumes: VolumeManager,
    pub status: Arc<StatusManager>,
    pub probes: Arc<ProbeManager>,
    pub workers: PodWorkers,
    pub cgroups: Option<Cgroups>,
    pub allocations: Allocations,
    pub machine: Machine,
    pub restart_backoff: Backoff,
    pub services: Informer<Service>,
    pub node: Informer<Node>,
    pub node_ips: Vec<IpAddr>,
    pub runtime_state: watch::Sender<RuntimeState>,
    pods: Mutex<Pods>,
    pub shutdown: CancellationToken,
}

/// The pods this node knows of.
#[derive(Default)]
struct Pods {
    /// By uid: of the API server without mirrors, and static ones.
    all: HashMap<String, Arc<Pod>>,
    /// Mirrors, by namespace and name: the same as their static pods'.
    mirrors: HashMap<(String, String), Arc<Pod>>,
}

fn full_name(pod: &Pod) -> (String, String) {
    (pod.namespace().to_string(), pod.name().to_string())
}

impl Kubelet {
    /// All parts, not running yet. The runtime must answer.
    pub async fn new(
        settings: Settings,
        client: Client,
        shutdown: CancellationToken,
    ) -> anyhow::Result<(Arc<Self>, mpsc::UnboundedReceiver<String>)> {
        std::fs::create_dir_all(&settings.root_dir)?;
        let cri = Cri::new(&settings.runtime_endpoint, &settings.image_endpoint)?;
        let version = runtime_state::wait_for_version(&cri, &shutdown).await?;
        let (changed, changes) = mpsc::unbounded_channel();
        let recorder = Recorder::new(client.clone(), "kubelet", &settings.node_name);
        let machine = Machine::read(&settings);
        let cgroups = match settings.cgroups_per_qos {
            true => Some(Cgroups::new(&settings.cgroup_root, &machine)?),
            false => None,
        };
        let objects = Arc::new(ObjectCache::new(
            client.clone(),
            changed.clone(),
            shutdown.clone(),
        ));
        let given = machine.allocatable(&settings);
        let amount =
            |name: &str, read: fn(&_) -> Option<i64>| given.get(name).and_then(read).unwrap_or(0);
        let allocatable = Allocatable {
            milli_cpu: amount("cpu", fluyt_volumes::quantity::milli_value),
            memory: amount("memory", fluyt_volumes::quantity::value),
            ephemeral_storage: amount("ephemeral-storage", fluyt_volumes::quantity::value),
        };
        let node_selector = Selectors {
            fields: Some(format!("metadata.name={}", settings.node_name)),
            labels: None,
        };
        let kubelet = Arc::new(Kubelet {
            recorder: recorder.clone(),
            declared_features: declared_features::discover(&version.runtime_name),
            runtime_name: version.runtime_name,
            runtime_version: version.runtime_version,
            inspector: Inspector::default(),
            images: ImageManager::new(cri.clone(), settings.serialize_image_pulls),
            volumes: VolumeManager {
                context: fluyt_volumes::Context {
                    root_dir: settings.root_dir.clone(),
                    objects: objects.clone(),
                    allocatable,
                },
            },
            objects,
            status: StatusManager::new(client.clone()),
            probes: ProbeManager::new(cri.clone(), recorder, changed),
            workers: PodWorkers::default(),
            cgroups,
            allocations: Allocations::new(settings.root_dir.clone()),
            restart_backoff: Backoff::new(Duration::from_secs(10), settings.max_container_restart),
            services: Informer::start(
                Api::all(client.clone()),
                Selectors::default(),
                shutdown.clone(),
            ),
            node: Informer::start(Api::all(client.clone()), node_selector, shutdown.clone()),
            node_ips: crate::node_status::addresses(&settings),
            runtime_state: watch::Sender::new(RuntimeState::default()),
            pods: Mutex::default(),
            machine,
            cri,
            settings,
            client,
            shutdown,
        });
        Ok((kubelet, changes))
    }

    /// Runs pods until shutdown. Containers go on running after that.
    pub async fn run(self: &Arc<Self>, mut changes: mpsc::UnboundedReceiver<String>) {
        let shutdown = self.shutdown.clone();
        let informer = apiserver::watch(
            self.client.clone(),
            &self.settings.node_name,
            shutdown.clone(),
        );
        let mut static_pods = match &self.settings.static_pod_path {
            Some(path) => file::watch(
                path.clone(),
                self.settings.node_name.clone(),
                shutdown.clone(),
            ),
            None => mpsc::unbounded_channel().1,
        };
        let mut api_pods = informer.subscribe();
        let pleg = {
            let kubelet = self.clone();
            let (cri, stop) = (self.cri.clone(), shutdown.clone());
            async move { pleg::run(cri, |uid| kubelet.workers.poke(uid), stop).await }
        };
        tokio::spawn(Box::pin(pleg));
        let synced = async {
            informer.synced().await;
            self.services.synced().await;
        };
        tokio::pin!(synced);
        let mut have_synced = false;
        let mut static_known = self.settings.static_pod_path.is_none();
        let mut cleaned = false;
        loop {
            tokio::select! {
                () = &mut synced, if !have_synced => have_synced = true,
                Some(change) = api_pods.recv() => self.on_api_change(change),
                Some(pods) = static_pods.recv() => {
                    static_known = true;
                    self.on_static_pods(pods);
                }
                Some(uid) = changes.recv() => self.workers.poke(&uid),
                () = shutdown.cancelled() => return,
            }
            // What nobody knows any more goes once all sources have told what they know.
            if have_synced && static_known && !cleaned && api_pods.is_empty() {
                cleaned = true;
                let kubelet = self.clone();
                tokio::spawn(Box::pin(
                    async move { crate::orphans::clean_up(&kubelet).await },
                ));
            }
        }
    }

    fn on_api_change(self: &Arc<Self>, change: Change<Pod>) {
        match change {
            Change::Added(pod) | Change::Updated { new: pod, .. } => {
                if pod.is_mirror() {
                    self.pods
                        .lock()
                        .mirrors
                        .insert(full_name(&pod), pod.clone());
                    self.on_mirror_change(&pod);
                } else {
                    self.pods.lock().all.insert(pod.uid().into(), pod.clone());
                    self.workers.update(self, pod);
                }
            }
            Change::Deleted(pod) => {
                if pod.is_mirror() {
                    let mut pods = self.pods.lock();
                    let key = full_name(&pod);
                    if pods
                        .mirrors
                        .get(&key)
                        .is_some_and(|known| known.uid() == pod.uid())
                    {
                        pods.mirrors.remove(&key);
                    }
                    drop(pods);
                    self.on_mirror_change(&pod);
                } else {
                    self.workers.remove(pod.uid());
                }
            }
        }
    }

    fn on_static_pods(self: &Arc<Self>, now: Vec<Arc<Pod>>) {
        let gone: Vec<Arc<Pod>> = {
            let pods = self.pods.lock();
            let known = pods.all.values().filter(|pod| pod.is_static());
            known
                .filter(|known| !now.iter().any(|pod| pod.uid() == known.uid()))
                .cloned()
                .collect()
        };
        for pod in gone {
            self.workers.remove(pod.uid());
        }
        for pod in now {
            let new = self
                .pods
                .lock()
                .all
                .insert(pod.uid().into(), pod.clone())
                .is_none();
            if new {
                self.workers.update(self, pod.clone());
                self.on_mirror_change(&pod);
            }
        }
    }

    /// Static pod or mirror came, changed or went: bring the mirror in line.
    fn on_mirror_change(self: &Arc<Self>, pod: &Pod) {
        let key = full_name(pod);
        let (static_pod, mirror) = {
            let pods = self.pods.lock();
            let own = pods
                .all
                .values()
                .find(|pod| pod.is_static() && full_name(pod) == key);
            (own.cloned(), pods.mirrors.get(&key).cloned())
        };
        if let Some(own) = &static_pod {
            self.workers.poke(own.uid());
        }
        let kubelet = self.clone();
        tokio::spawn(async move {
            mirror_pods::reconcile(&kubelet, static_pod.as_deref(), mirror.as_deref()).await;
        });
    }

    /// The pod's task has done its last.
    pub fn pod_gone(self: &Arc<Self>, pod: &Pod) {
        self.pods.lock().all.remove(pod.uid());
        self.allocations.forget(pod.uid());
        self.room_has_changed();
        if pod.is_static() {
            self.on_mirror_change(pod);
        }
    }

    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().all.values().cloned().collect()
    }

    /// A pod by name, with the status that this node last made.
    pub fn pod_by_name(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.pods.lock();
        let mut found = pods
            .all
            .values()
            .filter(|pod| pod.namespace() == namespace && pod.name() == name);
        found.next().cloned()
    }

    pub fn knows(&self, uid: &str) -> bool {
        self.pods.lock().all.contains_key(uid) || self.workers.contains(uid)
    }

    pub async fn inspect(&self, uid: &str) -> crate::cri::Result<RuntimePod> {
        self.inspector.inspect(&self.cri, uid).await
    }

    /// The state of one container; `None` when the runtime has it no more.
    pub async fn container_state(&self, container_id: &str) -> Option<State> {
        let request = k8s_cri::v1::ContainerStatusRequest {
            container_id: container_id.to_string(),
            verbose: false,
        };
        let status = self.cri.container_status(request).await.ok()?.status?;
        Some(State::of(status.state()))
    }

    pub fn admit(&self, pod: &Pod) -> Result<(), (String, String)> {
        let node = self.node.get(None, &self.settings.node_name);
        let allocatable = self.machine.allocatable(&self.settings);
        let (active, declared) = (self.active(), self.declared_features);
        admission::admit(pod, node.as_deref(), &allocatable, &active, declared)
    }

    /// Pods that have not ended, with what they were allocated.
    fn active(&self) -> Vec<Arc<Pod>> {
        let active = self.workers.active();
        active
            .iter()
            .map(|pod| self.allocations.apply(pod))
            .collect()
    }

    /// The pod with the resources that it may have: those of its spec as soon as there is room for them.
    pub fn allocate(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        let room = || {
            let allocatable = self.machine.allocatable(&self.settings);
            admission::room(pod, &allocatable, &self.active())
        };
        let event = |kind, reason: &str, message: String| {
            let reference = pod.object_reference();
            self.recorder.event(&reference, kind, reason, message);
        };
        match self.allocations.reconsider(pod, room) {
            Outcome::Unchanged => {}
            Outcome::Allocated => {
                let message = allocation::summary("Pod resize started", pod, None);
                event(EventType::Normal, "ResizeStarted", message);
                self.room_has_changed();
            }
            Outcome::Waits(pending) => {
                let prefix = format!("Pod resize {}", pending.reason);
                let message = allocation::summary(&prefix, pod, Some(&pending.message));
                let reason = format!("Resize{}", pending.reason);
                event(EventType::Warning, &reason, message);
            }
        }
        self.allocations.apply(pod)
    }

    /// Pods whose resize waits are looked at again.
    fn room_has_changed(&self) {
        for uid in self.allocations.waiting() {
            self.workers.poke(&uid);
        }
    }

    pub fn allocatable(&self) -> Allocatable {
        self.volumes.context.allocatable
    }

    /// The node's own addresses as text.
    pub fn host_ips(&self) -> Vec<String> {
        self.node_ips.iter().map(ToString::to_string).collect()
    }

    /// The address of a pod that lives in the node's network.
    pub fn host_ip(&self, pod: &Pod) -> Option<String> {
        pod.host_network()
            .then(|| self.host_ips().into_iter().next())
            .flatten()
    }

    /// A pod's addresses: its sandbox's, or the node's.
    pub fn pod_ips(&self, pod: &Pod, sandbox: &[String]) -> Vec<String> {
        if pod.host_network() {
            self.host_ips()
        } else {
            sandbox.to_vec()
        }
    }

    /// Puts the addresses into a status, for those who show them to the pod itself.
    pub fn fill_addresses(&self, pod: &Pod, status: &mut PodStatus, ips: &[String]) {
        let host = self.host_ips();
        status.host_ip = host.first().cloned();
        status.host_ips = Some(host.into_iter().map(|ip| HostIP { ip }).collect());
        let ips = self.pod_ips(pod, ips);
        status.pod_ip = ips.first().cloned();
        status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }

    /// Makes the pod's status from what is known now, and has it told to the API server.
    pub fn update_status(
        &self,
        pod: &Arc<Pod>,
        runtime: &RuntimePod,
        waiting: &HashMap<String, StartError>,
        stage: Stage,
        verdict: Option<&(String, String)>,
    ) -> PodStatus {
        let mut old = self.status.current(pod);
        // Readiness gates are set in the API by others.
        let api = pod.status();
        let own = status::owned_conditions();
        let conditions = old.conditions.get_or_insert_default();
        conditions.retain(|condition| own.contains(&condition.type_.as_str()));
        let others = api.conditions.iter().flatten();
        conditions.extend(others.filter(|c| !own.contains(&c.type_.as_str())).cloned());
        let sandbox_ips = runtime.ready_sandbox().map(|sandbox| sandbox.ips.clone());
        // The address is known even after the sandbox has stopped.
        let ips = match sandbox_ips {
            Some(ips) => self.pod_ips(pod, &ips),
            None => old
                .pod_ips
                .iter()
                .flatten()
                .map(|ip| ip.ip.clone())
                .collect(),
        };
        let message = |container: &Container, instance: &RuntimeContainer| {
            self.termination_message(pod, container, instance)
        };
        let status = status::generate(&Inputs {
            pod,
            old: &old,
            runtime,
            waiting,
            health: &*self.probes,
            message: &message,
            runtime_name: &self.runtime_name,
            host_ips: &self.host_ips(),
            ips: &ips,
            now: jiff::Timestamp::now(),
            resize: &self.allocations.resize(pod.uid()),
            given: self.cgroups.as_ref().map(|cgroups| cgroups.given(pod)),
            stage,
            verdict,
        });
        let mirror = self.pods.lock().mirrors.get(&full_name(pod)).cloned();
        self.status.set(pod, mirror.as_deref(), status.clone());
        status
    }

    fn termination_message(
        &self,
        pod: &Pod,
        container: &Container,
        instance: &RuntimeContainer,
    ) -> Option<String> {
        let file = termination_message_file(self, pod, &container.name, instance.restart_count());
        let policy = instance.annotation(labels::TERMINATION_MESSAGE_POLICY);
        let fall_back = policy == Some("FallbackToLogsOnError") && instance.exit_code() != 0;
        let log = match instance.status.log_path.as_str() {
            "" => sandbox::log_directory(self, pod)
                .join(&container.name)
                .join(format!("{}.log", instance.restart_count())),
            path => std::path::PathBuf::from(path),
        };
        termination_message::read(&file, Some(&log), fall_back)
    }

    /// Why pods can't have a network yet.
    pub fn network_problem(&self) -> Option<String> {
        self.runtime_state.borrow().network.clone()
    }

    /// Resolves when the runtime's state changes.
    pub async fn wait_for_runtime(&self) {
        let mut state = self.runtime_state.subscribe();
        let _ = state.changed().await;
    }

    /// Of each container the newest ended instance is kept, for its logs; older ones go.
    pub async fn collect_dead_containers(&self, pod: &Pod, runtime: &RuntimePod) {
        let mut seen: HashMap<&str, u32> = HashMap::new();
        for container in &runtime.containers {
            let ended = seen.entry(&container.name).or_default();
            if container.state == State::Exited {
                *ended += 1;
                if *ended > 1
                    && let Err(error) = kill::remove_container(self, &container.id).await
                {
                    warn!(
                        pod = pod.name(),
                        error = error.message(),
                        "an old container stays"
                    );
                }
            }
        }
        let current = runtime.ready_sandbox().map(|sandbox| sandbox.id.as_str());
        for old in runtime.sandboxes.iter().skip(1) {
            let used = runtime
                .containers
                .iter()
                .any(|container| container.sandbox_id == old.id);
            if !used && !old.ready && current != Some(old.id.as_str()) {
                let request = k8s_cri::v1::RemovePodSandboxRequest {
                    pod_sandbox_id: old.id.clone(),
                };
                let _ = self.cri.remove_pod_sandbox(request).await;
            }
        }
    }

    pub fn remove_logs(&self, pod: &Pod) {
        let dir = sandbox::log_directory(self, pod);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                warn!(dir = %dir.display(), %error, "logs stay");
            }
            _ => {}
        }
        let prefix = format!("{}_{}_", pod.name(), pod.namespace());
        let links = std::fs::read_dir("/var/log/containers")
            .into_iter()
            .flatten()
            .flatten();
        for link in links.filter(|link| link.file_name().to_string_lossy().starts_with(&prefix)) {
            // Another pod's of the same name is still whole.
            if !link.path().exists() {
                let _ = std::fs::remove_file(link.path());
            }
        }
    }

    /// An event about the node.
    pub fn node_event(&self, kind: EventType, reason: &str, message: &str) {
        let reference = k8s_openapi::api::core::v1::ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.settings.node_name.clone()),
            uid: Some(self.settings.node_name.clone()),
            ..Default::default()
        };
        self.recorder.event(&reference, kind, reason, message);
    }
}

impl Health for ProbeManager {
    fn ready(&self, container: &Container, id: &str) -> bool {
        self.is_ready(container, id)
    }

    fn started(&self, container: &Container, id: &str) -> bool {
        container.startup_probe.is_none() || self.startup(id) == Some(true)
    }
}

/// Runs the kubelet until shutdown.
pub async fn run(args: crate::Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let client = crate::bootstrap::client(&settings, shutdown.clone()).await?;
    start(settings, client, shutdown).await
}

/// Runs the kubelet with a client that is there already.
pub async fn start(
    settings: Settings,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    info!(
        node = settings.node_name,
        version = settings.kubelet_version,
        "kubelet starts"
    );
    let (kubelet, changes) = Kubelet::new(settings, client, shutdown.clone()).await?;
    kubelet.node_event(EventType::Normal, "Starting", "Starting kubelet.");
    let server = crate::server::Server::bind(kubelet.clone()).await?;
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(Box::pin(runtime_state::run(kubelet.clone())));
    tasks.spawn(Box::pin(crate::node_status::run(kubelet.clone())));
    tasks.spawn(Box::pin(crate::lease::run(kubelet.clone())));
    tasks.spawn(Box::pin(server.run()));
    tasks.spawn(Box::pin(crate::container_log_manager::run(kubelet.clone())));
    tasks.spawn(Box::pin(crate::image_gc::run(kubelet.clone())));
    tasks.spawn(Box::pin(crate::eviction::run(kubelet.clone())));
    tasks.close();
    Box::pin(kubelet.run(changes)).await;
    kubelet.probes.stop();
    tasks.wait().await;
    Ok(())
}
