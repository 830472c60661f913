//! Security contexts of pod and container, merged, in CRI's terms.

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SELinuxOptions, SeccompProfile};

use crate::config::args::Settings;
use crate::pod::PodExt;

/// `/proc` entries that a container doesn't see, and those it can't write.
const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

pub fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    let spec = pod.spec();
    let node_or_pod = |node: Option<bool>| {
        if node == Some(true) {
            cri::NamespaceMode::Node
        } else {
            cri::NamespaceMode::Pod
        }
    };
    let pid = if spec.host_pid == Some(true) {
        cri::NamespaceMode::Node
    } else if spec.share_process_namespace == Some(true) {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: node_or_pod(spec.host_network).into(),
        ipc: node_or_pod(spec.host_ipc).into(),
        pid: pid.into(),
        ..Default::default()
    }
}

/// Groups beyond the primary one; `fsGroup` is one of them.
fn supplemental_groups(pod: &Pod) -> Vec<i64> {
    let Some(context) = &pod.spec().security_context else {
        return Vec::new();
    };
    let mut groups = context.supplemental_groups.clone().unwrap_or_default();
    groups.extend(context.fs_group);
    groups
}

fn groups_policy(pod: &Pod) -> cri::SupplementalGroupsPolicy {
    let context = pod.spec().security_context.as_ref();
    match context.and_then(|c| c.supplemental_groups_policy.as_deref()) {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict,
        _ => cri::SupplementalGroupsPolicy::Merge,
    }
}

pub fn sandbox(pod: &Pod) -> cri::LinuxSandboxSecurityContext {
    let context = pod.spec().security_context.as_ref();
    let privileged = pod
        .spec()
        .containers
        .iter()
        .chain(pod.init_containers())
        .any(is_privileged);
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        selinux_options: selinux(context.and_then(|c| c.se_linux_options.as_ref())),
        run_as_user: int64(context.and_then(|c| c.run_as_user)),
        run_as_group: int64(
            context
                .and_then(|c| c.run_as_group)
                .filter(|_| context.is_some_and(|c| c.run_as_user.is_some())),
        ),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod).into(),
        privileged,
        seccomp: Some(profile(cri::security_profile::ProfileType::RuntimeDefault)),
        ..Default::default()
    }
}

pub fn is_privileged(container: &Container) -> bool {
    container
        .security_context
        .as_ref()
        .is_some_and(|context| context.privileged == Some(true))
}

/// The user a container starts as, if pod or container name one.
pub fn run_as_user(pod: &Pod, container: &Container) -> Option<i64> {
    let own = container
        .security_context
        .as_ref()
        .and_then(|c| c.run_as_user);
    own.or(pod
        .spec()
        .security_context
        .as_ref()
        .and_then(|c| c.run_as_user))
}

/// `image_user` is the image's own: a number, or a name.
pub fn container(
    settings: &Settings,
    pod: &Pod,
    container: &Container,
    image_user: &ImageUser,
) -> Result<cri::LinuxContainerSecurityContext, String> {
    let pods = pod.spec().security_context.as_ref();
    let own = container.security_context.as_ref();
    let user = run_as_user(pod, container);
    verify_non_root(pod, container, user, image_user)?;
    let group = own
        .and_then(|c| c.run_as_group)
        .or(pods.and_then(|c| c.run_as_group));
    let privileged = is_privileged(container);
    let (run_as_user, run_as_username) = match (user, image_user) {
        (Some(user), _) => (Some(user), String::new()),
        (None, ImageUser::Id(user)) => (Some(*user), String::new()),
        (None, ImageUser::Name(name)) => (None, name.clone()),
        (None, ImageUser::Unset) => (None, String::new()),
    };
    let seccomp = own
        .and_then(|c| c.seccomp_profile.as_ref())
        .or(pods.and_then(|c| c.seccomp_profile.as_ref()));
    let apparmor = own
        .and_then(|c| c.app_armor_profile.as_ref())
        .or(pods.and_then(|c| c.app_armor_profile.as_ref()));
    let unmasked = privileged || own.is_some_and(|c| c.proc_mount.as_deref() == Some("Unmasked"));
    let paths = |paths: &[&str]| {
        if unmasked {
            Vec::new()
        } else {
            paths.iter().map(ToString::to_string).collect()
        }
    };
    let capabilities = own.and_then(|c| c.capabilities.as_ref());
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: capabilities.map(|capabilities| cri::Capability {
            add_capabilities: capabilities.add.clone().unwrap_or_default(),
            drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        selinux_options: selinux(
            own.and_then(|c| c.se_linux_options.as_ref())
                .or(pods.and_then(|c| c.se_linux_options.as_ref())),
        ),
        run_as_user: int64(run_as_user),
        run_as_group: int64(group.filter(|_| run_as_user.is_some() || !run_as_username.is_empty())),
        run_as_username,
        readonly_rootfs: own.is_some_and(|c| c.read_only_root_filesystem == Some(true)),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod).into(),
        no_new_privs: own.is_some_and(|c| c.allow_privilege_escalation == Some(false)),
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp_profile(settings, seccomp, privileged)),
        apparmor: apparmor.map(apparmor_profile),
        ..Default::default()
    })
}

/// The user that an image names.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ImageUser {
    #[default]
    Unset,
    Id(i64),
    Name(String),
}

impl ImageUser {
    pub fn of(image: &cri::Image) -> Self {
        match (&image.uid, image.username.as_str()) {
            (Some(uid), _) => ImageUser::Id(uid.value),
            (None, "") => ImageUser::Unset,
            (None, name) => ImageUser::Name(name.to_string()),
        }
    }
}

fn verify_non_root(
    pod: &Pod,
    container: &Container,
    user: Option<i64>,
    image: &ImageUser,
) -> Result<(), String> {
    let own = container
        .security_context
        .as_ref()
        .and_then(|c| c.run_as_non_root);
    let pods = pod
        .spec()
        .security_context
        .as_ref()
        .and_then(|c| c.run_as_non_root);
    if own.or(pods) != Some(true) {
        return Ok(());
    }
    let pod_name = pod.event_name();
    let name = &container.name;
    match (user, image) {
        (Some(0), _) => Err(format!(
            "container's runAsUser breaks non-root policy (pod: \"{pod_name}\", container: {name})"
        )),
        (Some(_), _) => Ok(()),
        (None, ImageUser::Name(user)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod_name}\", container: {name})"
        )),
        (None, ImageUser::Id(0) | ImageUser::Unset) => Err(format!(
            "container has runAsNonRoot and image will run as root (pod: \"{pod_name}\", container: {name})"
        )),
        (None, ImageUser::Id(_)) => Ok(()),
    }
}

fn int64(value: Option<i64>) -> Option<cri::Int64Value> {
    value.map(|value| cri::Int64Value { value })
}

fn profile(kind: cri::security_profile::ProfileType) -> cri::SecurityProfile {
    cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: String::new(),
    }
}

fn seccomp_profile(
    settings: &Settings,
    wanted: Option<&SeccompProfile>,
    privileged: bool,
) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    match wanted.map(|wanted| wanted.type_.as_str()) {
        Some("RuntimeDefault") => profile(ProfileType::RuntimeDefault),
        Some("Localhost") => cri::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: settings
                .root_dir
                .join("seccomp")
                .join(
                    wanted
                        .and_then(|w| w.localhost_profile.as_deref())
                        .unwrap_or_default(),
                )
                .to_string_lossy()
                .into_owned(),
        },
        None if settings.seccomp_default && !privileged => profile(ProfileType::RuntimeDefault),
        _ => profile(ProfileType::Unconfined),
    }
}

fn apparmor_profile(wanted: &AppArmorProfile) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    match wanted.type_.as_str() {
        "Unconfined" => profile(ProfileType::Unconfined),
        "Localhost" => cri::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: wanted.localhost_profile.clone().unwrap_or_default(),
        },
        _ => profile(ProfileType::RuntimeDefault),
    }
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<cri::SeLinuxOption> {
    options.map(|options| cri::SeLinuxOption {
        user: options.user.clone().unwrap_or_default(),
        role: options.role.clone().unwrap_or_default(),
        r#type: options.type_.clone().unwrap_or_default(),
        level: options.level.clone().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn make(
        pods: serde_json::Value,
        own: serde_json::Value,
        image: ImageUser,
    ) -> Result<cri::LinuxContainerSecurityContext, String> {
        let args = crate::config::args::Args {
            kubeconfig: Some("/k".into()),
            ..Default::default()
        };
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pods, "containers": [{"name": "c", "securityContext": own}]}}))
        .unwrap();
        container(
            &args.settings().unwrap(),
            &pod,
            &pod.spec().containers[0],
            &image,
        )
    }

    #[test]
    fn non_root() {
        let strict = json!({"runAsNonRoot": true});
        for (own, image, fine) in [
            (json!({}), ImageUser::Unset, false),
            (json!({}), ImageUser::Id(0), false),
            (json!({}), ImageUser::Id(7), true),
            (json!({}), ImageUser::Name("www".into()), false),
            (json!({"runAsUser": 7}), ImageUser::Name("www".into()), true),
            (json!({"runAsUser": 0}), ImageUser::Id(7), false),
            (json!({"runAsNonRoot": false}), ImageUser::Id(0), true),
        ] {
            assert_eq!(
                make(strict.clone(), own.clone(), image.clone()).is_ok(),
                fine,
                "{own} {image:?}"
            );
        }
    }

    #[test]
    fn containers_own_settings_win() {
        let pods = json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
            "seccompProfile": {"type": "RuntimeDefault"}});
        let own = json!({"runAsUser": 9, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false});
        let context = make(pods, own, ImageUser::Unset).unwrap();
        assert_eq!(context.run_as_user.unwrap().value, 9);
        assert_eq!(context.run_as_group.unwrap().value, 2);
        assert_eq!(context.supplemental_groups, [4, 3]);
        assert!(context.no_new_privs && context.readonly_rootfs);
        assert_eq!(context.seccomp.unwrap().profile_type, 0);
        assert!(!context.masked_paths.is_empty());
        let context = make(json!({}), json!({"privileged": true}), ImageUser::Unset).unwrap();
        assert!(context.privileged && context.masked_paths.is_empty());
    }
}
