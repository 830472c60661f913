//! CreateContainer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_cri::v1 as cri;

use super::container::{Container, ContainerRecord, Phase};
use super::{Error, Result, Runtime, Sandbox, blocking, new_id, now};
use crate::image::Image;
use crate::shim::mount_overlay_here;
use crate::shim::protocol::{Answer, Create, Operation, Overlay};
use crate::spec::user::Accounts;
use crate::spec::{self, HostMount, ImageMount};

impl Runtime {
    /// Makes a container in a sandbox, not yet started, and returns its id. On failure nothing of it is left.
    pub async fn create_container(
        self: &Arc<Self>,
        sandbox: &str,
        config: cri::ContainerConfig,
    ) -> Result<String> {
        let sandbox = self.sandbox(sandbox)?;
        if !sandbox.is_ready() {
            return Err(Error::FailedPrecondition(format!(
                "sandbox {} is not running",
                sandbox.id
            )));
        }
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| Error::InvalidArgument("container config has no metadata".to_owned()))?;
        if let Some(other) = self
            .containers_of(&sandbox.id)
            .into_iter()
            .find(|other| other.metadata() == metadata)
        {
            return Err(Error::AlreadyExists(format!(
                "failed to reserve container name: {}_{} is reserved for {}",
                metadata.name, metadata.attempt, other.id
            )));
        }
        let reference = config
            .image
            .as_ref()
            .map(|image| image.image.clone())
            .unwrap_or_default();
        let id = new_id();
        let images = self.images.clone();
        let (owner, name) = (self.owner.clone(), id.clone());
        let image = blocking(move || {
            // Between finding and holding it, garbage collection must not take it.
            let _lease = images.lease()?;
            let image = images.get(&reference)?;
            images.hold(&owner, &name, &image)?;
            Ok(image)
        })
        .await?;
        let result = self.make(&sandbox, id.clone(), config, &image).await;
        if result.is_err() {
            self.forget(&sandbox, &id);
        }
        result
    }

    async fn make(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        id: String,
        config: cri::ContainerConfig,
        image: &Image,
    ) -> Result<String> {
        let sandbox_record = sandbox.record();
        let directory = sandbox.directory.join("containers").join(&id);
        let log_path = (!config.log_path.is_empty()
            && !sandbox_record.config.log_directory.is_empty())
        .then(|| Path::new(&sandbox_record.config.log_directory).join(&config.log_path));
        let execution = image.config.config.clone().unwrap_or_default();
        let security = config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.clone())
            .unwrap_or_default();
        let lower = self.images.lower_directories(image);
        let user = Accounts::of_layers(&lower)
            .resolve(&security, execution.user.as_deref().unwrap_or_default())?;
        let record = ContainerRecord {
            image_id: image.id.clone(),
            image_ref: image
                .repo_digests
                .iter()
                .next()
                .unwrap_or(&image.id)
                .clone(),
            stop_signal: execution.stop_signal.unwrap_or_default(),
            user,
            cgroup: sandbox_record.cgroup_parent().join(&id),
            log_path: log_path.clone(),
            created_at: now(),
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            phase: Phase::Created,
            pid: 0,
            resources: config
                .linux
                .as_ref()
                .and_then(|linux| linux.resources.clone()),
            config,
        };
        let container = Arc::new(Container::new(
            id.clone(),
            Arc::clone(sandbox),
            directory,
            record.clone(),
        ));
        let mounts = host_mounts(&record.config)?;
        let spec = spec::generate(&spec::Input {
            sandbox: &sandbox_record.config,
            container: &record.config,
            image,
            user: &record.user,
            mounts: &mounts,
            image_mounts: &self.image_mounts(&id, &record.config)?,
            cgroup: &record.cgroup,
            shim_pid: sandbox_record.shim_pid,
            pid_namespace: self.pid_namespace(&security, sandbox_record.pid_namespace)?,
            sandbox_files: &sandbox.files(),
        })?;
        let overlay = prepare(&container, &spec, lower)
            .map_err(|error| Error::internal("preparing the container's files", error))?;
        let overlay = if spec::shares_mounts(&mounts) {
            // Its mounts are to be seen by the node, so it can't have the root in a mount namespace apart.
            let target = container.bundle().join("rootfs");
            mount_overlay_here(&overlay, &target)
                .map_err(|error| Error::internal("mounting the root filesystem", error))?;
            None
        } else {
            Some(overlay)
        };
        let create = Create {
            container: id.clone(),
            bundle: container.bundle(),
            state: self.options.state.join("c"),
            overlay,
            working_directory: PathBuf::from(spec::working_directory(&record.config, image)),
            log: log_path,
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            tty: record.config.tty,
            cgroup: record.cgroup.clone(),
            kill_all: !spec::owns_pid_namespace(&security),
        };
        // Before there is a process, so that a restart finds whose it is.
        container.update(|_| {})?;
        self.containers
            .lock()
            .insert(id.clone(), Arc::clone(&container));
        let reply = sandbox
            .shim()?
            .call(Operation::Create(create), &[])
            .await
            .map_err(|error| Error::internal("failed to create container", error))?;
        let Answer::Created { pid } = reply.answer else {
            return Err(Error::Internal("unexpected answer of the shim".to_owned()));
        };
        container.update(|record| record.pid = pid)?;
        self.publish(&container, cri::ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    /// Undoes what a failed creation did.
    fn forget(&self, sandbox: &Sandbox, id: &str) {
        self.containers.lock().remove(id);
        self.clean_up(sandbox, id);
    }

    /// Removes a container's files and its hold on its image.
    pub(super) fn clean_up(&self, sandbox: &Sandbox, id: &str) {
        let directory = sandbox.directory.join("containers").join(id);
        let _ = nix::mount::umount2(
            &directory.join("bundle/rootfs"),
            nix::mount::MntFlags::MNT_DETACH,
        );
        let _ = std::fs::remove_dir_all(directory);
        let _ = std::fs::remove_file(sandbox.exits().join(id));
        let _ = std::fs::remove_dir_all(self.options.state.join("c").join(id));
        let released = self.images.release(&self.owner, id);
        if let Err(error) = released {
            tracing::warn!(container = id, %error, "releasing an image");
        }
    }

    fn pid_namespace(
        &self,
        security: &cri::LinuxContainerSecurityContext,
        of_pod: Option<i32>,
    ) -> Result<Option<i32>> {
        let options = security.namespace_options.clone().unwrap_or_default();
        match options.pid() {
            cri::NamespaceMode::Pod => Ok(of_pod),
            cri::NamespaceMode::Target => {
                let target = self.container(&options.target_id)?.record();
                if target.phase != Phase::Running {
                    return Err(Error::FailedPrecondition(format!(
                        "target container {} is not running",
                        options.target_id
                    )));
                }
                Ok(Some(target.pid))
            }
            cri::NamespaceMode::Container | cri::NamespaceMode::Node => Ok(None),
        }
    }

    fn image_mounts(&self, id: &str, config: &cri::ContainerConfig) -> Result<Vec<ImageMount>> {
        let volumes = config
            .mounts
            .iter()
            .filter_map(|mount| Some((mount, mount.image.as_ref()?)))
            .filter(|(_, image)| !image.image.is_empty());
        let mut mounts = Vec::new();
        for (index, (mount, volume)) in volumes.enumerate() {
            let image = self.images.get(&volume.image)?;
            self.images
                .hold(&self.owner, &format!("{id}-{index}"), &image)?;
            mounts.push(ImageMount {
                lower: self.images.lower_directories(&image),
                target: mount.container_path.clone(),
            });
        }
        Ok(mounts)
    }
}

/// The mounts of node files. A directory that is missing is made, as the kubelet relies on for hostPath volumes.
fn host_mounts(config: &cri::ContainerConfig) -> Result<Vec<HostMount>> {
    let mut mounts = Vec::new();
    for mount in &config.mounts {
        if mount
            .image
            .as_ref()
            .is_some_and(|image| !image.image.is_empty())
        {
            continue;
        }
        let source = PathBuf::from(&mount.host_path);
        if !source.is_absolute() || !Path::new(&mount.container_path).is_absolute() {
            return Err(Error::InvalidArgument(format!(
                "mount of {:?} on {:?} needs absolute paths",
                mount.host_path, mount.container_path
            )));
        }
        if !source.exists() {
            std::fs::create_dir_all(&source).map_err(|error| {
                Error::Internal(format!("failed to mkdir {}: {error}", source.display()))
            })?;
        }
        mounts.push(HostMount {
            source,
            target: mount.container_path.clone(),
            readonly: mount.readonly,
            recursive_read_only: mount.recursive_read_only,
            propagation: mount.propagation(),
        });
    }
    Ok(mounts)
}

fn prepare(
    container: &Container,
    spec: &serde_json::Value,
    lower: Vec<PathBuf>,
) -> std::io::Result<Overlay> {
    let overlay = Overlay {
        lower,
        upper: container.upper(),
        work: container.directory.join("work"),
    };
    std::fs::create_dir_all(container.bundle().join("rootfs"))?;
    std::fs::create_dir_all(&overlay.upper)?;
    std::fs::create_dir_all(&overlay.work)?;
    std::fs::write(
        container.bundle().join("config.json"),
        serde_json::to_vec(spec)?,
    )?;
    Ok(overlay)
}
