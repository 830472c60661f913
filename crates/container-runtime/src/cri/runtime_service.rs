//! `runtime.v1.RuntimeService`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_cri::v1 as cri;
use k8s_cri::v1::runtime_service_server::RuntimeService as Service;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use super::{RUNTIME_NAME, runtime_version};
use crate::runtime::Runtime;
use crate::streaming::{Grant, StreamingServer, Wanted};

/// Serves [`Runtime`] as CRI.
#[derive(Clone, Debug)]
pub struct RuntimeService {
    runtime: Arc<Runtime>,
    streaming: StreamingServer,
}

type Reply<T> = Result<Response<T>, Status>;

// === impl RuntimeService ===

impl RuntimeService {
    pub fn new(runtime: Arc<Runtime>, streaming: StreamingServer) -> Self {
        Self { runtime, streaming }
    }
}

#[tonic::async_trait]
impl Service for RuntimeService {
    async fn version(&self, _request: Request<cri::VersionRequest>) -> Reply<cri::VersionResponse> {
        Ok(Response::new(cri::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: RUNTIME_NAME.to_owned(),
            runtime_version: runtime_version(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    // --- sandboxes ---

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Reply<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("no sandbox config"))?;
        let runtime = Arc::clone(&self.runtime);
        let pod_sandbox_id = detached(async move {
            runtime
                .run_pod_sandbox(config, request.runtime_handler)
                .await
        })
        .await?;
        Ok(Response::new(cri::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Reply<cri::StopPodSandboxResponse> {
        self.runtime
            .stop_pod_sandbox(&request.into_inner().pod_sandbox_id)
            .await?;
        Ok(Response::new(cri::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Reply<cri::RemovePodSandboxResponse> {
        self.runtime
            .remove_pod_sandbox(&request.into_inner().pod_sandbox_id)
            .await?;
        Ok(Response::new(cri::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Reply<cri::PodSandboxStatusResponse> {
        let status = self
            .runtime
            .pod_sandbox_status(&request.into_inner().pod_sandbox_id)?;
        let containers_statuses = self
            .runtime
            .containers()
            .iter()
            .filter(|container| container.sandbox.id == status.id)
            .map(|container| container.status())
            .collect();
        Ok(Response::new(cri::PodSandboxStatusResponse {
            status: Some(status),
            info: Default::default(),
            containers_statuses,
            timestamp: now(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Reply<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(cri::ListPodSandboxResponse {
            items: self.runtime.list_pod_sandbox(&filter),
        }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Reply<cri::PodSandboxStatsResponse> {
        let stats = self
            .runtime
            .pod_sandbox_stats(&request.into_inner().pod_sandbox_id)
            .await?;
        Ok(Response::new(cri::PodSandboxStatsResponse {
            stats: Some(stats),
        }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Reply<cri::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(cri::ListPodSandboxStatsResponse {
            stats: self.runtime.list_pod_sandbox_stats(&filter).await?,
        }))
    }

    // --- containers ---

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Reply<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("no container config"))?;
        let runtime = Arc::clone(&self.runtime);
        let container_id = detached(async move {
            runtime
                .create_container(&request.pod_sandbox_id, config)
                .await
        })
        .await?;
        Ok(Response::new(cri::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Reply<cri::StartContainerResponse> {
        let runtime = Arc::clone(&self.runtime);
        let id = request.into_inner().container_id;
        detached(async move { runtime.start_container(&id).await }).await?;
        Ok(Response::new(cri::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Reply<cri::StopContainerResponse> {
        let request = request.into_inner();
        self.runtime
            .stop_container(&request.container_id, request.timeout)
            .await?;
        Ok(Response::new(cri::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Reply<cri::RemoveContainerResponse> {
        self.runtime
            .remove_container(&request.into_inner().container_id)
            .await?;
        Ok(Response::new(cri::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Reply<cri::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(cri::ListContainersResponse {
            containers: self.runtime.list_containers(&filter),
        }))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Reply<cri::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.runtime.container(&request.container_id)?;
        let mut info = std::collections::HashMap::new();
        if request.verbose {
            let pid = container.record().pid;
            info.insert("info".to_owned(), format!("{{\"pid\":{pid}}}"));
        }
        Ok(Response::new(cri::ContainerStatusResponse {
            status: Some(container.status()),
            info,
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Reply<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        self.runtime
            .update_container_resources(&request.container_id, request.linux.unwrap_or_default())
            .await?;
        Ok(Response::new(cri::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Reply<cri::ReopenContainerLogResponse> {
        self.runtime
            .reopen_container_log(&request.into_inner().container_id)
            .await?;
        Ok(Response::new(cri::ReopenContainerLogResponse {}))
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Reply<cri::ContainerStatsResponse> {
        let stats = self
            .runtime
            .container_stats(&request.into_inner().container_id)
            .await?;
        Ok(Response::new(cri::ContainerStatsResponse {
            stats: Some(stats),
        }))
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Reply<cri::ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(cri::ListContainerStatsResponse {
            stats: self.runtime.list_container_stats(&filter).await?,
        }))
    }

    // --- streams ---

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Reply<cri::ExecSyncResponse> {
        let request = request.into_inner();
        let timeout = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        let output = self
            .runtime
            .exec_sync(&request.container_id, request.cmd, timeout)
            .await?;
        Ok(Response::new(cri::ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.exit_code,
        }))
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Reply<cri::ExecResponse> {
        let request = request.into_inner();
        let container = self.runtime.container(&request.container_id)?;
        if request.cmd.is_empty() {
            return Err(Status::invalid_argument("no command specified"));
        }
        let url = self.streaming.grant(Grant::Exec {
            container: container.id.clone(),
            command: request.cmd,
            streams: Wanted {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                tty: request.tty,
            },
        });
        Ok(Response::new(cri::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Reply<cri::AttachResponse> {
        let request = request.into_inner();
        let container = self.runtime.container(&request.container_id)?;
        let url = self.streaming.grant(Grant::Attach {
            container: container.id.clone(),
            streams: Wanted {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                tty: request.tty,
            },
        });
        Ok(Response::new(cri::AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Reply<cri::PortForwardResponse> {
        let request = request.into_inner();
        let sandbox = self.runtime.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.is_ready() {
            return Err(Status::failed_precondition(format!(
                "sandbox container {} is not running",
                sandbox.id
            )));
        }
        let ports = request
            .port
            .iter()
            .map(|port| {
                u16::try_from(*port)
                    .map_err(|_| Status::invalid_argument(format!("{port} is not a port")))
            })
            .collect::<Result<_, _>>()?;
        let url = self.streaming.grant(Grant::PortForward {
            sandbox: sandbox.id.clone(),
            ports,
        });
        Ok(Response::new(cri::PortForwardResponse { url }))
    }

    // --- the runtime ---

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Reply<cri::UpdateRuntimeConfigResponse> {
        let cidr = request
            .into_inner()
            .runtime_config
            .and_then(|config| config.network_config)
            .map(|network| network.pod_cidr)
            .unwrap_or_default();
        if !cidr.is_empty() {
            // The first of a dual-stack pair; pods have IPv4 addresses.
            let first = cidr.split(',').next().unwrap_or_default();
            let cidr = first.parse().map_err(|_| {
                Status::invalid_argument(format!("{first:?} is not an IPv4 network"))
            })?;
            self.runtime
                .network
                .set_pod_cidr(cidr)
                .await
                .map_err(|error| Status::unknown(error.to_string()))?;
        }
        Ok(Response::new(cri::UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, _request: Request<cri::StatusRequest>) -> Reply<cri::StatusResponse> {
        let network = self.runtime.network.is_ready().await;
        let condition =
            |kind: &str, status: bool, reason: &str, message: &str| cri::RuntimeCondition {
                r#type: kind.to_owned(),
                status,
                reason: if status { "" } else { reason }.to_owned(),
                message: if status { "" } else { message }.to_owned(),
            };
        Ok(Response::new(cri::StatusResponse {
            status: Some(cri::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", true, "", ""),
                    condition(
                        "NetworkReady",
                        network,
                        "NetworkPluginNotReady",
                        "Network plugin returns error: the node has no pod CIDR yet",
                    ),
                ],
            }),
            info: Default::default(),
            runtime_handlers: vec![cri::RuntimeHandler {
                name: String::new(),
                features: Some(cri::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: true,
                    user_namespaces: false,
                }),
            }],
            features: Some(cri::RuntimeFeatures {
                supplemental_groups_policy: true,
            }),
        }))
    }

    async fn runtime_config(
        &self,
        _request: Request<cri::RuntimeConfigRequest>,
    ) -> Reply<cri::RuntimeConfigResponse> {
        Ok(Response::new(cri::RuntimeConfigResponse {
            linux: Some(cri::LinuxRuntimeConfiguration {
                cgroup_driver: cri::CgroupDriver::Cgroupfs.into(),
            }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _request: Request<cri::CheckpointContainerRequest>,
    ) -> Reply<cri::CheckpointContainerResponse> {
        Err(Status::unimplemented(
            "method CheckpointContainer not implemented",
        ))
    }

    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _request: Request<cri::GetEventsRequest>,
    ) -> Reply<Self::GetContainerEventsStream> {
        let events = BroadcastStream::new(self.runtime.subscribe()).map(|event| {
            // The listener lost events and has to list anew, which it does when the stream ends.
            event.map_err(|error| Status::data_loss(error.to_string()))
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Reply<cri::ListMetricDescriptorsResponse> {
        Err(Status::unimplemented(
            "method ListMetricDescriptors not implemented",
        ))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Reply<cri::ListPodSandboxMetricsResponse> {
        Err(Status::unimplemented(
            "method ListPodSandboxMetrics not implemented",
        ))
    }
}

/// Runs a multi-step operation to its end even if the caller hangs up, so that it never stops half way.
async fn detached<T: Send + 'static>(
    operation: impl Future<Output = crate::runtime::Result<T>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(operation).await {
        Ok(result) => result.map_err(Status::from),
        Err(error) => Err(Status::internal(format!("the operation panicked: {error}"))),
    }
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
