//! Starting one container: image, configuration, create, start, post-start hook.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use fluyt_client::EventType;
use fluyt_volumes::{Mounted, subpath};
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::security_context::{self, ImageUser};
use super::{labels, lifecycle};
use crate::kubelet::Kubelet;
use crate::pod::{Kind, PodExt};
use crate::qos::{Amounts, QosClass};
use crate::{cgroups, env, etc_hosts, expansion};

/// Why a container doesn't run: its waiting reason, and when to try again.
#[derive(Clone, Debug)]
pub struct StartError {
    pub reason: String,
    pub message: String,
    pub retry: Option<Duration>,
}

impl StartError {
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        StartError {
            reason: reason.into(),
            message: message.into(),
            retry: Some(Duration::from_secs(2)),
        }
    }
}

/// What a container is started with.
pub struct Place<'a> {
    pub sandbox_id: &'a str,
    pub sandbox_config: &'a cri::PodSandboxConfig,
    pub ips: &'a [String],
    pub volumes: &'a BTreeMap<String, Mounted>,
    pub kind: Kind,
    pub restart_count: u32,
    /// For an ephemeral container: whose process namespace it joins.
    pub target_id: Option<String>,
}

/// Starts the container and returns its id.
pub async fn start(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
    place: Place<'_>,
) -> Result<String, StartError> {
    let reference = pod.container_reference(place.kind, &container.name);
    let warn = |reason: &str, message: &str| {
        kubelet
            .recorder
            .event(&reference, EventType::Warning, reason, message);
    };
    let image = kubelet
        .images
        .ensure(
            pod,
            container,
            Some(place.sandbox_config),
            &*kubelet.objects,
            &kubelet.recorder,
            &reference,
        )
        .await
        .map_err(|error| {
            warn("Failed", &format!("Error: {}", error.reason));
            StartError {
                reason: error.reason.into(),
                message: error.message,
                retry: error.retry,
            }
        })?;
    let config = config(kubelet, pod, container, &place, &image.id)
        .await
        .map_err(|message| {
            warn("Failed", &format!("Error: {message}"));
            StartError::new("CreateContainerConfigError", message)
        })?;
    let log = PathBuf::from(&place.sandbox_config.log_directory).join(&config.log_path);
    let created = kubelet
        .cri
        .create_container(cri::CreateContainerRequest {
            pod_sandbox_id: place.sandbox_id.into(),
            config: Some(config),
            sandbox_config: Some(place.sandbox_config.clone()),
        })
        .await;
    let id = match created {
        Ok(answer) => answer.container_id,
        Err(error) => {
            warn("Failed", &format!("Error: {}", error.message()));
            return Err(StartError::new("CreateContainerError", error.message()));
        }
    };
    let normal = |reason: &str, message: &str| {
        kubelet
            .recorder
            .event(&reference, EventType::Normal, reason, message);
    };
    normal("Created", "Container created");
    let started = kubelet
        .cri
        .start_container(cri::StartContainerRequest {
            container_id: id.clone(),
        })
        .await;
    if let Err(error) = started {
        warn("Failed", &format!("Error: {}", error.message()));
        return Err(StartError::new("RunContainerError", error.message()));
    }
    normal("Started", "Container started");
    link_log(pod, container, &id, &log);
    if let Some(hook) = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.post_start.as_ref())
        && let Err(why) =
            lifecycle::run(kubelet, pod, container, &id, place.ips.first(), hook).await
    {
        let message = format!("PostStartHook failed: {why}");
        warn("FailedPostStartHook", &message);
        normal("Killing", "FailedPostStartHook");
        let grace = pod.grace_period();
        let _ = kubelet.cri.stop_container(&id, grace).await;
        return Err(StartError::new("PostStartHookError", message));
    }
    Ok(id)
}

/// `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`, where log collectors look.
fn link_log(pod: &Pod, container: &Container, id: &str, log: &std::path::Path) {
    let dir = std::path::Path::new("/var/log/containers");
    let name = format!(
        "{}_{}_{}-{id}.log",
        pod.name(),
        pod.namespace(),
        container.name
    );
    // A convenience; nothing of ours depends on it.
    if std::fs::create_dir_all(dir).is_ok() {
        let _ = std::os::unix::fs::symlink(log, dir.join(name));
    }
}

async fn config(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
    place: &Place<'_>,
    image_id: &str,
) -> Result<cri::ContainerConfig, String> {
    // Fields of the status that the API server doesn't know yet.
    let mut seen = pod.clone();
    let status = seen.status.get_or_insert_default();
    kubelet.fill_addresses(pod, status, place.ips);
    let services = kubelet.services.list();
    let allocatable = kubelet.allocatable();
    let env = env::make(&seen, container, &services, &*kubelet.objects, &allocatable)
        .await
        .map_err(|error| error.to_string())?;
    let lookup = |name: &str| {
        env.iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.clone())
    };
    let expand = |texts: &Option<Vec<String>>| -> Vec<String> {
        texts
            .iter()
            .flatten()
            .map(|text| expansion::expand(text, lookup))
            .collect()
    };
    let image_user = image_user(kubelet, image_id).await?;
    let mut context = security_context::container(&kubelet.settings, pod, container, &image_user)?;
    if let Some(target) = &place.target_id
        && let Some(options) = &mut context.namespace_options
    {
        options.pid = cri::NamespaceMode::Target.into();
        options.target_id = target.clone();
    }
    let mounts = mounts(kubelet, pod, container, place, lookup)?;
    let image = cri::ImageSpec {
        image: image_id.to_string(),
        user_specified_image: container.image.clone().unwrap_or_default(),
        ..Default::default()
    };
    let log_path = format!("{}/{}.log", container.name, place.restart_count);
    std::fs::create_dir_all(
        PathBuf::from(&place.sandbox_config.log_directory).join(&container.name),
    )
    .map_err(|error| format!("creating the log directory: {error}"))?;
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: container.name.clone(),
            attempt: place.restart_count,
        }),
        image: Some(image),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels: labels::container_labels(pod, container),
        annotations: labels::container_annotations(pod, container, place.restart_count),
        log_path,
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(kubelet, pod, container)),
            security_context: Some(context),
        }),
        mounts,
        envs: env
            .into_iter()
            .map(|(key, value)| cri::KeyValue { key, value })
            .collect(),
        ..Default::default()
    })
}

async fn image_user(kubelet: &Kubelet, image_id: &str) -> Result<ImageUser, String> {
    let request = cri::ImageStatusRequest {
        image: Some(cri::ImageSpec {
            image: image_id.into(),
            ..Default::default()
        }),
        verbose: false,
    };
    let answer = kubelet.cri.image_status(request).await;
    let image = answer.map_err(|error| error.message().to_string())?.image;
    Ok(image.as_ref().map(ImageUser::of).unwrap_or_default())
}

pub fn resources(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
) -> cri::LinuxContainerResources {
    let amounts = Amounts::of(container);
    let class = QosClass::of(pod);
    let memory = kubelet.machine.memory;
    let mut resources = cri::LinuxContainerResources {
        cpu_shares: cgroups::shares(amounts.milli_cpu_request.unwrap_or(0)),
        memory_limit_in_bytes: amounts.memory_limit.unwrap_or(0),
        oom_score_adj: class.oom_score_adj(pod, amounts.memory_request.unwrap_or(0), memory),
        ..Default::default()
    };
    if let Some(limit) = amounts.milli_cpu_limit {
        resources.cpu_period = cgroups::period();
        resources.cpu_quota = cgroups::quota(limit);
    }
    resources
}

fn mounts(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
    place: &Place<'_>,
    lookup: impl Fn(&str) -> Option<String> + Copy,
) -> Result<Vec<cri::Mount>, String> {
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = place.volumes.get(&mount.name).ok_or_else(|| {
            format!(
                "cannot find volume {:?} to mount into container {:?}",
                mount.name, container.name
            )
        })?;
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => Some(path.clone()),
            (_, Some(text)) if !text.is_empty() => {
                let path = expansion::expand(text, lookup);
                if path.contains("$(") {
                    return Err(format!("missing value for subPathExpr {text:?}"));
                }
                Some(path)
            }
            _ => None,
        };
        let host_path = match sub_path {
            Some(path) => subpath::prepare(
                &kubelet.volumes.context,
                pod.uid(),
                &mount.name,
                volume,
                &container.name,
                index,
                &path,
            )
            .map_err(|error| error.to_string())?,
            None => volume.host_path.clone(),
        };
        let read_only = mount.read_only.unwrap_or(false) || volume.read_only;
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
            _ => cri::MountPropagation::PropagationPrivate,
        };
        let recursive = mount.recursive_read_only.as_deref();
        mounts.push(cri::Mount {
            container_path: absolute(&mount.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: read_only,
            propagation: propagation.into(),
            recursive_read_only: read_only && matches!(recursive, Some("Enabled")),
            ..Default::default()
        });
    }
    let uses = |path: &str| {
        container
            .volume_mounts
            .iter()
            .flatten()
            .any(|mount| mount.mount_path == path)
    };
    if etc_hosts::is_managed_for(container, pod, !place.ips.is_empty()) {
        let file = etc_hosts::write(&kubelet.settings, pod, place.ips)
            .map_err(|error| format!("writing etc-hosts: {error}"))?;
        mounts.push(bind("/etc/hosts", &file));
    }
    let message_path = labels::termination_message_path(container);
    if !uses(message_path) {
        let file = termination_message_file(kubelet, pod, &container.name, place.restart_count);
        create_message_file(&file)
            .map_err(|error| format!("creating {}: {error}", file.display()))?;
        mounts.push(bind(message_path, &file));
    }
    Ok(mounts)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_string()
    } else {
        format!("/{path}")
    }
}

fn bind(container_path: &str, file: &std::path::Path) -> cri::Mount {
    cri::Mount {
        container_path: container_path.into(),
        host_path: file.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

/// What the container writes to its termination message path lands here.
pub fn termination_message_file(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &str,
    restart_count: u32,
) -> PathBuf {
    kubelet
        .settings
        .root_dir
        .join("pods")
        .join(pod.uid())
        .join("containers")
        .join(container)
        .join(format!("{restart_count:08x}"))
}

/// Any user may write it: the container's is not known here.
fn create_message_file(file: &std::path::Path) -> std::io::Result<()> {
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(file, "")?;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o666))
}
