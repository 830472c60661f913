//! The connection to the container runtime: CRI v1 over a unix socket, and nothing else.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint, Uri};

/// Lists of many containers are larger than gRPC's default of 4 MiB.
const MAX_MESSAGE: usize = 16 << 20;
/// Upstream's `runtimeRequestTimeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Clients of the runtime and image services; cheap to clone.
#[derive(Clone)]
pub struct Cri {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

pub type Result<T> = std::result::Result<T, tonic::Status>;

impl Cri {
    /// Connects on first use, and again whenever the runtime comes back.
    pub fn new(runtime_endpoint: &str, image_endpoint: &str) -> anyhow::Result<Self> {
        Ok(Cri {
            runtime: RuntimeServiceClient::new(channel(runtime_endpoint)?)
                .max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel(image_endpoint)?)
                .max_decoding_message_size(MAX_MESSAGE),
        })
    }
}

fn channel(endpoint: &str) -> anyhow::Result<Channel> {
    let path = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    anyhow::ensure!(
        path.is_absolute(),
        "--container-runtime-endpoint {endpoint:?} is not a unix socket"
    );
    // The name only fills the request's authority; the socket is what is connected to.
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move {
            Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?))
        }
    });
    Ok(Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector))
}

/// Bounds a call that the runtime should answer at once.
async fn bounded<T>(call: impl Future<Output = Result<tonic::Response<T>>>) -> Result<T> {
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(tonic::Status::deadline_exceeded(
            "the container runtime does not answer",
        )),
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $service:ident.$name:ident($request:ident) -> $response:ident;)*) => {
        impl Cri {
            $($(#[$doc])*
            pub async fn $name(&self, request: cri::$request) -> Result<cri::$response> {
                let mut client = self.$service.clone();
                // Boxed: a pod's task should be small while it waits.
                bounded(Box::pin(client.$name(request))).await
            })*
        }
    };
}

calls! {
    runtime.version(VersionRequest) -> VersionResponse;
    runtime.status(StatusRequest) -> StatusResponse;
    runtime.update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
    runtime.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    runtime.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    runtime.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    runtime.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    runtime.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    runtime.create_container(CreateContainerRequest) -> CreateContainerResponse;
    runtime.start_container(StartContainerRequest) -> StartContainerResponse;
    runtime.remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    runtime.list_containers(ListContainersRequest) -> ListContainersResponse;
    runtime.container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    runtime.update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    runtime.reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    runtime.exec(ExecRequest) -> ExecResponse;
    runtime.attach(AttachRequest) -> AttachResponse;
    runtime.port_forward(PortForwardRequest) -> PortForwardResponse;
    runtime.container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    runtime.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    images.list_images(ListImagesRequest) -> ListImagesResponse;
    images.image_status(ImageStatusRequest) -> ImageStatusResponse;
    images.remove_image(RemoveImageRequest) -> RemoveImageResponse;
    images.image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
}

impl Cri {
    /// Stops a container within `grace` seconds; the runtime kills it after that, so the call takes that long.
    pub async fn stop_container(&self, container_id: &str, grace: i64) -> Result<()> {
        let request = cri::StopContainerRequest {
            container_id: container_id.to_string(),
            timeout: grace,
        };
        let limit = REQUEST_TIMEOUT + Duration::from_secs(grace.max(0).cast_unsigned());
        match tokio::time::timeout(limit, self.runtime.clone().stop_container(request)).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(tonic::Status::deadline_exceeded(
                "stopping the container takes too long",
            )),
        }
    }

    /// Pulls an image, which may take as long as it takes.
    pub async fn pull_image(&self, request: cri::PullImageRequest) -> Result<String> {
        let answer = self.images.clone().pull_image(request).await?;
        Ok(answer.into_inner().image_ref)
    }

    /// Runs a command to its end. `timeout` is the runtime's to keep; a little more is given for its answer.
    pub async fn exec_sync(
        &self,
        container_id: &str,
        cmd: Vec<String>,
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse> {
        let request = cri::ExecSyncRequest {
            container_id: container_id.to_string(),
            cmd,
            timeout: timeout.as_secs().cast_signed(),
        };
        let mut client = self.runtime.clone();
        if timeout.is_zero() {
            return client
                .exec_sync(request)
                .await
                .map(tonic::Response::into_inner);
        }
        match tokio::time::timeout(timeout + Duration::from_secs(5), client.exec_sync(request))
            .await
        {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(tonic::Status::deadline_exceeded(format!(
                "command timed out after {timeout:?}"
            ))),
        }
    }

    /// Life events of all containers, as they happen.
    pub async fn container_events(&self) -> Result<tonic::Streaming<cri::ContainerEventResponse>> {
        let answer = self
            .runtime
            .clone()
            .get_container_events(cri::GetEventsRequest {})
            .await?;
        Ok(answer.into_inner())
    }
}
