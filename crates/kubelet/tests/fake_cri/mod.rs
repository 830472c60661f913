//! A container runtime in memory behind a real CRI socket. What a container does is told by its image: `exit-N` ends at
//! once with code N, `missing` can't be pulled, anything else runs until it is stopped.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::Stream;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use k8s_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

#[derive(Clone)]
pub struct FakeCri {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<cri::ContainerEventResponse>,
}

#[derive(Default)]
struct State {
    sandboxes: HashMap<String, cri::PodSandboxStatus>,
    containers: HashMap<String, (cri::ContainerConfig, cri::ContainerStatus, String)>,
    pulled: Vec<String>,
    calls: Vec<String>,
    serial: i64,
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}

impl FakeCri {
    pub fn serve(socket: &Path) -> Self {
        let fake = FakeCri {
            state: Arc::default(),
            events: broadcast::channel(1024).0,
        };
        let listener = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(fake.clone()))
            .add_service(ImageServiceServer::new(fake.clone()));
        tokio::spawn(server.serve_with_incoming(listener));
        fake
    }

    /// What was done so far: `run`, `create NAME`, `start NAME`, `stop NAME GRACE`, `stop-sandbox`, …
    pub fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    pub fn running(&self) -> usize {
        let running = cri::ContainerState::ContainerRunning as i32;
        self.state
            .lock()
            .containers
            .values()
            .filter(|(_, status, _)| status.state == running)
            .count()
    }

    pub fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.containers.is_empty() && state.sandboxes.is_empty()
    }

    /// The container ends by itself.
    pub fn exit(&self, name: &str, code: i32) {
        let running = cri::ContainerState::ContainerRunning as i32;
        let id = {
            let state = self.state.lock();
            let mut all = state.containers.iter();
            let found = all.find(|(_, (config, status, _))| {
                status.state == running && config.metadata.as_ref().unwrap().name == name
            });
            found.unwrap().0.clone()
        };
        self.end(&id, code);
    }

    fn end(&self, id: &str, code: i32) {
        let mut state = self.state.lock();
        let Some((_, status, _)) = state.containers.get_mut(id) else {
            return;
        };
        if status.state == cri::ContainerState::ContainerRunning as i32 {
            status.state = cri::ContainerState::ContainerExited.into();
            status.exit_code = code;
            status.finished_at = now();
            status.reason = if code == 0 { "Completed" } else { "Error" }.into();
            self.tell(&state, id, cri::ContainerEventType::ContainerStoppedEvent);
        }
    }

    fn tell(&self, state: &State, id: &str, kind: cri::ContainerEventType) {
        let sandbox = &state.containers[id].2;
        let _ = self.events.send(cri::ContainerEventResponse {
            container_id: id.to_string(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: state.sandboxes.get(sandbox).cloned(),
            containers_statuses: Vec::new(),
        });
    }
}

fn selected(labels: &HashMap<String, String>, selector: Option<&HashMap<String, String>>) -> bool {
    selector.is_none_or(|selector| {
        selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    })
}

macro_rules! not_needed {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        $(fn $name<'s, 'f>(&'s self, _: Request<cri::$request>) -> Pin<Box<dyn Future<Output = Answer<cri::$response>> + Send + 'f>>
        where
            's: 'f,
            Self: 'f,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[async_trait::async_trait]
impl RuntimeService for FakeCri {
    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send>>;

    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        Ok(Response::new(cri::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "1.0".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, _: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        let condition = |kind: &str| cri::RuntimeCondition {
            r#type: kind.into(),
            status: true,
            ..Default::default()
        };
        Ok(Response::new(cri::StatusResponse {
            status: Some(cri::RuntimeStatus {
                conditions: vec![condition("RuntimeReady"), condition("NetworkReady")],
            }),
            ..Default::default()
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Answer<cri::RunPodSandboxResponse> {
        let config = request.into_inner().config.unwrap();
        let mut state = self.state.lock();
        state.serial += 1;
        let id = format!("sandbox-{}", state.serial);
        let status = cri::PodSandboxStatus {
            id: id.clone(),
            metadata: config.metadata,
            created_at: now(),
            network: Some(cri::PodSandboxNetworkStatus {
                ip: format!("127.0.0.{}", state.serial + 1),
                ..Default::default()
            }),
            labels: config.labels,
            annotations: config.annotations,
            ..Default::default()
        };
        state.calls.push("run".into());
        state.sandboxes.insert(id.clone(), status);
        Ok(Response::new(cri::RunPodSandboxResponse {
            pod_sandbox_id: id,
        }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.state.lock();
        if let Some(sandbox) = state.sandboxes.get_mut(&id) {
            sandbox.state = cri::PodSandboxState::SandboxNotready.into();
        }
        state.calls.push("stop-sandbox".into());
        Ok(Response::new(cri::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        self.state
            .lock()
            .sandboxes
            .remove(&request.into_inner().pod_sandbox_id);
        Ok(Response::new(cri::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let state = self.state.lock();
        let status = state
            .sandboxes
            .get(&request.into_inner().pod_sandbox_id)
            .cloned();
        let status = status.ok_or_else(|| Status::not_found("no such sandbox"))?;
        Ok(Response::new(cri::PodSandboxStatusResponse {
            status: Some(status),
            ..Default::default()
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter;
        let state = self.state.lock();
        let items = state.sandboxes.values();
        let items =
            items.filter(|s| selected(&s.labels, filter.as_ref().map(|f| &f.label_selector)));
        let items = items.map(|sandbox| cri::PodSandbox {
            id: sandbox.id.clone(),
            metadata: sandbox.metadata.clone(),
            state: sandbox.state,
            created_at: sandbox.created_at,
            labels: sandbox.labels.clone(),
            ..Default::default()
        });
        Ok(Response::new(cri::ListPodSandboxResponse {
            items: items.collect(),
        }))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap();
        let mut state = self.state.lock();
        state.serial += 1;
        let id = format!("container-{}", state.serial);
        let name = config.metadata.as_ref().unwrap().name.clone();
        let status = cri::ContainerStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            created_at: now(),
            image: config.image.clone(),
            image_ref: "sha256:0".into(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            ..Default::default()
        };
        state.calls.push(format!("create {name}"));
        state
            .containers
            .insert(id.clone(), (config, status, request.pod_sandbox_id));
        Ok(Response::new(cri::CreateContainerResponse {
            container_id: id,
        }))
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let code = {
            let mut state = self.state.lock();
            let (config, status, _) = state.containers.get_mut(&id).unwrap();
            status.state = cri::ContainerState::ContainerRunning.into();
            status.started_at = now();
            let name = config.metadata.as_ref().unwrap().name.clone();
            let image = config.image.as_ref().unwrap().user_specified_image.clone();
            state.calls.push(format!("start {name}"));
            self.tell(&state, &id, cri::ContainerEventType::ContainerStartedEvent);
            image
                .strip_prefix("exit-")
                .and_then(|code| code.split(':').next()?.parse().ok())
        };
        if let Some(code) = code {
            self.end(&id, code);
        }
        Ok(Response::new(cri::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        {
            let mut state = self.state.lock();
            let name = state
                .containers
                .get(&request.container_id)
                .map(|(config, _, _)| config.metadata.as_ref().unwrap().name.clone());
            let name = name.unwrap_or_default();
            state.calls.push(format!("stop {name} {}", request.timeout));
        }
        self.end(&request.container_id, 143);
        Ok(Response::new(cri::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        self.state
            .lock()
            .containers
            .remove(&request.into_inner().container_id);
        Ok(Response::new(cri::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let filter = request.into_inner().filter;
        let state = self.state.lock();
        let all = state.containers.iter();
        let all = all.filter(|(_, (_, status, _))| {
            selected(&status.labels, filter.as_ref().map(|f| &f.label_selector))
        });
        let containers = all.map(|(id, (config, status, sandbox))| cri::Container {
            id: id.clone(),
            pod_sandbox_id: sandbox.clone(),
            metadata: config.metadata.clone(),
            state: status.state,
            created_at: status.created_at,
            labels: status.labels.clone(),
            ..Default::default()
        });
        Ok(Response::new(cri::ListContainersResponse {
            containers: containers.collect(),
        }))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let state = self.state.lock();
        let found = state.containers.get(&request.into_inner().container_id);
        let (_, status, _) = found.ok_or_else(|| Status::not_found("no such container"))?;
        Ok(Response::new(cri::ContainerStatusResponse {
            status: Some(status.clone()),
            ..Default::default()
        }))
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Answer<cri::ExecSyncResponse> {
        let mut state = self.state.lock();
        let command = request.into_inner().cmd.join(" ");
        state.calls.push(format!("exec {command}"));
        Ok(Response::new(cri::ExecSyncResponse::default()))
    }

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        use futures::StreamExt;
        let events = BroadcastStream::new(self.events.subscribe());
        let events =
            events.map(|event| event.map_err(|error| Status::data_loss(error.to_string())));
        Ok(Response::new(Box::pin(events)))
    }

    not_needed! {
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
    }
}

#[async_trait::async_trait]
impl ImageService for FakeCri {
    async fn list_images(
        &self,
        _: Request<cri::ListImagesRequest>,
    ) -> Answer<cri::ListImagesResponse> {
        Ok(Response::new(cri::ListImagesResponse::default()))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Answer<cri::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap().image;
        let known = self.state.lock().pulled.contains(&name);
        let image = known.then(|| cri::Image {
            id: name,
            size: 7,
            ..Default::default()
        });
        Ok(Response::new(cri::ImageStatusResponse {
            image,
            ..Default::default()
        }))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Answer<cri::PullImageResponse> {
        let name = request.into_inner().image.unwrap().image;
        if name.starts_with("missing") {
            return Err(Status::not_found(format!("{name}: not found")));
        }
        self.state.lock().pulled.push(name.clone());
        Ok(Response::new(cri::PullImageResponse { image_ref: name }))
    }

    not_needed! {
        remove_image(RemoveImageRequest) -> RemoveImageResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }
}
