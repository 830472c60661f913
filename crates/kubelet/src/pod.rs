//! Short ways to what the kubelet asks of a pod all the time.

use k8s_openapi::api::core::v1::{
    Container, EphemeralContainer, ObjectReference, Pod, PodSpec, PodStatus,
};

use crate::annotations;

/// How often a container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// Which of a pod's three lists a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Init,
    Main,
    Ephemeral,
}

/// Reading a pod; every pod the kubelet works on has a spec, a name, a namespace and a uid.
pub trait PodExt {
    fn uid(&self) -> &str;
    fn name(&self) -> &str;
    fn namespace(&self) -> &str;
    fn spec(&self) -> &PodSpec;
    fn status(&self) -> &PodStatus;
    fn object_reference(&self) -> ObjectReference;
    /// A reference whose field path names one container.
    fn container_reference(&self, kind: Kind, container: &str) -> ObjectReference;
    fn is_static(&self) -> bool;
    fn is_mirror(&self) -> bool;
    fn is_being_deleted(&self) -> bool;
    /// The API says that all of it has ended.
    fn is_terminal(&self) -> bool;
    fn host_network(&self) -> bool;
    fn restart_policy(&self) -> RestartPolicy;
    /// Seconds that its containers get to end by themselves.
    fn grace_period(&self) -> i64;
    fn init_containers(&self) -> &[Container];
    /// Ephemeral containers in the shape of ordinary ones.
    fn ephemeral_containers(&self) -> Vec<Container>;
    /// `name_namespace(uid)`, as upstream's events name a pod.
    fn event_name(&self) -> String;
}

static EMPTY_SPEC: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
static EMPTY_STATUS: std::sync::LazyLock<PodStatus> = std::sync::LazyLock::new(PodStatus::default);

impl PodExt for Pod {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("default")
    }

    fn spec(&self) -> &PodSpec {
        self.spec.as_ref().unwrap_or(&EMPTY_SPEC)
    }

    fn status(&self) -> &PodStatus {
        self.status.as_ref().unwrap_or(&EMPTY_STATUS)
    }

    fn object_reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: self.metadata.name.clone(),
            namespace: Some(self.namespace().into()),
            uid: self.metadata.uid.clone(),
            resource_version: self.metadata.resource_version.clone(),
            field_path: None,
        }
    }

    fn container_reference(&self, kind: Kind, container: &str) -> ObjectReference {
        let list = match kind {
            Kind::Init => "initContainers",
            Kind::Main => "containers",
            Kind::Ephemeral => "ephemeralContainers",
        };
        ObjectReference {
            field_path: Some(format!("spec.{list}{{{container}}}")),
            ..self.object_reference()
        }
    }

    fn is_static(&self) -> bool {
        annotation(self, annotations::CONFIG_SOURCE).is_some_and(|source| source != "api")
    }

    fn is_mirror(&self) -> bool {
        annotation(self, annotations::CONFIG_MIRROR).is_some()
    }

    fn is_being_deleted(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    fn is_terminal(&self) -> bool {
        matches!(self.status().phase.as_deref(), Some("Failed" | "Succeeded"))
    }

    fn host_network(&self) -> bool {
        self.spec().host_network.unwrap_or(false)
    }

    fn restart_policy(&self) -> RestartPolicy {
        match self.spec().restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    fn grace_period(&self) -> i64 {
        self.metadata
            .deletion_grace_period_seconds
            .or(self.spec().termination_grace_period_seconds)
            .unwrap_or(30)
    }

    fn init_containers(&self) -> &[Container] {
        self.spec().init_containers.as_deref().unwrap_or_default()
    }

    fn ephemeral_containers(&self) -> Vec<Container> {
        self.spec()
            .ephemeral_containers
            .iter()
            .flatten()
            .map(as_container)
            .collect()
    }

    fn event_name(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a String> {
    pod.metadata.annotations.as_ref()?.get(key)
}

/// A restartable init container: started in its turn, then kept running (a sidecar).
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn as_container(container: &EphemeralContainer) -> Container {
    let c = container.clone();
    Container {
        args: c.args,
        command: c.command,
        env: c.env,
        env_from: c.env_from,
        image: c.image,
        image_pull_policy: c.image_pull_policy,
        name: c.name,
        resources: c.resources,
        security_context: c.security_context,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path,
        termination_message_policy: c.termination_message_policy,
        tty: c.tty,
        volume_devices: c.volume_devices,
        volume_mounts: c.volume_mounts,
        working_dir: c.working_dir,
        ..Container::default()
    }
}

/// The number a port reference means: itself, or that of the container's port of this name.
pub fn resolve_port(
    port: &k8s_openapi::apimachinery::pkg::util::intstr::IntOrString,
    container: &Container,
) -> Option<u16> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok())?,
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}
