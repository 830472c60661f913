//! Security contexts of pods and containers, and what an operating system rules out.

use std::collections::HashSet;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::CONTAINER_LISTS;
use super::container::Context;
use super::options::Options;
use crate::validation::{At, Errors, descending_path, dns_subdomain, pattern};

const MAX_ID: i64 = i32::MAX as i64;
const PROFILE_TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
const MAX_APPARMOR_PROFILE: usize = 4095;
const MAX_SYSCTL: usize = 253;
const SYSCTL_PATTERN: &str =
    r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
static SYSCTL: LazyLock<Regex> = LazyLock::new(|| pattern(SYSCTL_PATTERN));
const MAX_CREDENTIAL_SPEC: usize = 64 * 1024;
const MAX_USER_DOMAIN: usize = 256;
const MAX_USER: usize = 104;
static NET_BIOS: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"^[^\\/:\*\?"<>|\.][^\\/:\*\?"<>|]{0,14}$"#));
static USER_DOMAIN: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$",
    )
});

/// A user's or group's number.
fn id(at: &At<'_, '_>, errors: &mut Errors) {
    errors.in_range(at, 0, MAX_ID);
}

pub(super) fn validate_pod(spec: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    let context = spec.field("securityContext");
    if context.is_set() && !context.is_empty() {
        for field in ["fsGroup", "runAsUser", "runAsGroup"] {
            id(&context.field(field), errors);
        }
        for group in context.field("supplementalGroups").items() {
            id(&group, errors);
        }
    }
    if spec.field("shareProcessNamespace").is_true() && spec.field("hostPID").is_true() {
        errors.invalid(
            context.field("shareProcessNamespace"),
            &true.into(),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    if context.is_empty() {
        return;
    }
    validate_sysctls(spec, &context.field("sysctls"), options, errors);
    errors.one_of_optional(
        &context.field("fsGroupChangePolicy"),
        &["Always", "OnRootMismatch"],
    );
    validate_seccomp(&context.field("seccompProfile"), errors);
    validate_windows_options(&context.field("windowsOptions"), errors);
    validate_apparmor(&context.field("appArmorProfile"), errors);
    errors.one_of_optional(
        &context.field("supplementalGroupsPolicy"),
        &["Merge", "Strict"],
    );
    // Mounting with a label is behind a gate that is closed; who has it may keep it.
    let policies: &[&str] = if options.mount_option_policy {
        &["MountOption", "Recursive"]
    } else {
        &["Recursive"]
    };
    errors.one_of_optional(&context.field("seLinuxChangePolicy"), policies);
}

fn validate_sysctls(
    spec: &At<'_, '_>,
    sysctls: &At<'_, '_>,
    options: &Options,
    errors: &mut Errors,
) {
    let mut names = HashSet::new();
    for sysctl in sysctls.items() {
        let name = sysctl.field("name");
        if name.is_empty() {
            errors.required(name, "");
        } else if name.str().len() > MAX_SYSCTL || !SYSCTL.is_match(name.str()) {
            let detail = format!(
                "must have at most {MAX_SYSCTL} characters and match regex {SYSCTL_PATTERN}"
            );
            errors.bad(&name, &detail);
        } else if names.contains(name.str()) {
            errors.duplicate(name, name.value());
        }
        if !options.host_sysctls
            && let Some(field) = is_host_sysctl(spec.value(), name.str())
        {
            let detail = format!("may not be specified when '{field}' is true");
            errors.bad(&name, &detail);
        }
        names.insert(name.str());
    }
}

/// Which of the spec's fields makes a kernel parameter one of the host's.
pub(super) fn is_host_sysctl(spec: &Value, name: &str) -> Option<&'static str> {
    let name = name.replace('/', ".");
    let of_ipc = ["kernel.sem", "kernel.msg", "kernel.shm", "fs.mqueue."]
        .iter()
        .any(|prefix| name.starts_with(prefix) && *prefix != "kernel.sem" || name == *prefix);
    match () {
        () if spec["hostNetwork"] == true && name.starts_with("net.") => Some("hostNetwork"),
        () if spec["hostIPC"] == true && of_ipc => Some("hostIPC"),
        () => None,
    }
}

fn validate_seccomp(profile: &At<'_, '_>, errors: &mut Errors) {
    if !profile.is_set() {
        return;
    }
    let (ty, local) = (profile.field("type"), profile.field("localhostProfile"));
    if ty.is_empty() {
        errors.required(ty, "type is required when seccompProfile is set");
    } else {
        errors.member(&ty, PROFILE_TYPES);
    }
    match (ty.str() == "Localhost", local.is_set()) {
        (true, false) => errors.required(local, "must be set when seccomp type is Localhost"),
        (true, true) => descending_path(errors, &local),
        (false, true) => {
            let whole = format!(
                "{{\"Type\":{},\"LocalhostProfile\":{}}}",
                ty.value(),
                local.value()
            );
            let detail = "can only be set when seccomp type is Localhost";
            errors.invalid_as(local, &whole, detail);
        }
        (false, false) => {}
    }
}

pub(super) fn validate_apparmor(profile: &At<'_, '_>, errors: &mut Errors) {
    const NEEDED: &str = "must be set when AppArmor type is Localhost";
    if !profile.is_set() {
        return;
    }
    let (ty, local) = (profile.field("type"), profile.field("localhostProfile"));
    match ty.str() {
        "Localhost" if !local.is_set() => errors.required(local, NEEDED),
        "Localhost" => {
            if local.str().trim() != local.str() {
                errors.bad(&local, "must not be padded with whitespace");
            } else if local.is_empty() {
                errors.required(local, NEEDED);
            }
            if local.str().len() > MAX_APPARMOR_PROFILE {
                errors.too_long(local, MAX_APPARMOR_PROFILE);
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if local.is_set() {
                errors.bad(&local, "can only be set when AppArmor type is Localhost");
            }
        }
        "" => errors.required(ty, "type is required when appArmorProfile is set"),
        _ => errors.unsupported(&ty, PROFILE_TYPES),
    }
}

pub(super) fn validate_container(at: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    if at.is_empty() {
        return;
    }
    id(&at.field("runAsUser"), errors);
    id(&at.field("runAsGroup"), errors);
    let proc_mount = at.field("procMount");
    if proc_mount.is_set() {
        errors.member(&proc_mount, &["Default", "Unmasked"]);
        if context.host_users && proc_mount.str() == "Unmasked" {
            errors.bad(&proc_mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    validate_seccomp(&at.field("seccompProfile"), errors);
    if *at.get("allowPrivilegeEscalation") == false {
        if at.field("privileged").is_true() {
            errors.invalid_as(
                at,
                &internal_context(at),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        for capability in super::options::list(&at.get("capabilities")["add"]) {
            if capability == "CAP_SYS_ADMIN" {
                errors.invalid_as(
                    at,
                    &internal_context(at),
                    "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
                );
            }
        }
    }
    validate_windows_options(&at.field("windowsOptions"), errors);
    validate_apparmor(&at.field("appArmorProfile"), errors);
}

/// A container's security context as messages show it: all of it, in upstream's internal form.
fn internal_context(at: &At<'_, '_>) -> String {
    crate::validation::internal("io.k8s.api.core.v1.SecurityContext", at.value())
}

fn validate_windows_options(options: &At<'_, '_>, errors: &mut Errors) {
    if !options.is_set() {
        return;
    }
    let name = options.field("gmsaCredentialSpecName");
    if name.is_set() {
        errors.problems(&name, dns_subdomain(name.str()));
    }
    let spec = options.field("gmsaCredentialSpec");
    if spec.is_set() {
        if spec.is_empty() {
            errors.bad(&spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.str().len() > MAX_CREDENTIAL_SPEC {
            errors.bad(&spec, "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    let user = options.field("runAsUserName");
    if user.is_set() {
        validate_windows_user(&user, errors);
    }
}

fn validate_windows_user(at: &At<'_, '_>, errors: &mut Errors) {
    let name = at.str();
    let whole = if name.is_empty() {
        Some("runAsUserName cannot be an empty string")
    } else if name.chars().any(|c| c.is_ascii_control()) {
        Some("runAsUserName cannot contain control characters")
    } else if name.matches('\\').count() > 1 {
        Some("runAsUserName cannot contain more than one backslash")
    } else {
        None
    };
    if let Some(problem) = whole {
        errors.bad(at, problem);
        return;
    }
    let (domain, user) = match name.split_once('\\') {
        Some((domain, user)) => (Some(domain), user),
        None => (None, name),
    };
    if let Some(domain) = domain {
        if domain.len() >= MAX_USER_DOMAIN {
            errors.bad(
                at,
                "runAsUserName's Domain length must be under 256 characters",
            );
        }
        if !NET_BIOS.is_match(domain) && !USER_DOMAIN.is_match(domain) {
            let detail = "runAsUserName's Domain doesn't match the NetBios nor the DNS format";
            errors.bad(at, detail);
        }
    }
    if user.is_empty() {
        errors.bad(at, "runAsUserName's User cannot be empty");
    } else if user.len() > MAX_USER {
        let detail = "runAsUserName's User length must not be longer than 104 characters";
        errors.bad(at, detail);
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        let detail = "runAsUserName's User cannot contain only periods or spaces";
        errors.bad(at, detail);
    }
    if user.contains([
        '"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']',
    ]) {
        errors.bad(
            at,
            "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]",
        );
    }
}

/// Host processes of Windows: all containers of a pod or none.
pub(super) fn validate_windows_host_process(spec: &At<'_, '_>, errors: &mut Errors) {
    let pod = &spec.get("securityContext")["windowsOptions"]["hostProcess"];
    let (mut all, mut host) = (0, 0);
    for list in CONTAINER_LISTS {
        for container in spec.field(list).items() {
            all += 1;
            let context = container.field("securityContext");
            let options = context.field("windowsOptions");
            let own = options.field("hostProcess");
            if own.is_set() && !pod.is_null() && own.value() != pod {
                let detail = format!(
                    "pod hostProcess value must be identical if both are specified, was {pod}"
                );
                errors.bad(&own, &detail);
            }
            if own.is_true() || (!own.is_set() && *pod == true) {
                host += 1;
            }
        }
    }
    if host == 0 {
        return;
    }
    if host != all {
        errors.invalid_text(spec, "", "If pod contains any hostProcess containers then all containers must be HostProcess containers");
    }
    if !spec.field("hostNetwork").is_true() {
        errors.invalid(
            spec.field("hostNetwork"),
            &false.into(),
            "hostNetwork must be true if pod contains any hostProcess containers",
        );
    }
}

const NOT_ON_WINDOWS: &str = "cannot be set for a windows pod";
/// Fields of a pod, and of its security context where a name has a dot, that Windows does not have.
const NOT_ON_WINDOWS_PODS: [(&str, bool); 15] = [
    ("appArmorProfile", true),
    ("seLinuxOptions", true),
    ("hostUsers", false),
    ("hostPID", false),
    ("hostIPC", false),
    ("seccompProfile", true),
    ("fsGroup", true),
    ("fsGroupChangePolicy", true),
    ("sysctls", true),
    ("shareProcessNamespace", false),
    ("runAsUser", true),
    ("runAsGroup", true),
    ("supplementalGroups", true),
    ("supplementalGroupsPolicy", true),
    ("seLinuxChangePolicy", true),
];
const NOT_ON_WINDOWS_CONTAINERS: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// The operating system that a pod says it is for.
pub(super) fn validate_os(spec: &At<'_, '_>, errors: &mut Errors) {
    let os = spec.field("os");
    if !os.is_set() {
        return;
    }
    let name = os.field("name");
    match name.str() {
        "" => errors.required(name, ""),
        "linux" => validate_linux(spec, errors),
        "windows" => validate_windows(spec, errors),
        other => errors.not_supported(os, &other.into(), &["linux", "windows"]),
    }
}

fn validate_linux(spec: &At<'_, '_>, errors: &mut Errors) {
    let check = |holder: &At<'_, '_>, errors: &mut Errors| {
        let context = holder.field("securityContext");
        let options = context.field("windowsOptions");
        if options.is_set() {
            errors.forbidden(options, "windows options cannot be set for a linux pod");
        }
    };
    check(spec, errors);
    for list in CONTAINER_LISTS {
        for container in spec.field(list).items() {
            check(&container, errors);
        }
    }
}

fn validate_windows(spec: &At<'_, '_>, errors: &mut Errors) {
    let context = spec.field("securityContext");
    for (field, in_context) in NOT_ON_WINDOWS_PODS {
        let at = if in_context {
            context.field(field)
        } else {
            spec.field(field)
        };
        // Plain flags are set only when they are true, and a list when it has items.
        let is_set = match field {
            "hostPID" | "hostIPC" => at.is_true(),
            "sysctls" => !at.is_empty(),
            _ => at.is_set(),
        };
        if is_set {
            errors.forbidden(at, NOT_ON_WINDOWS);
        }
    }
    for list in CONTAINER_LISTS {
        for container in spec.field(list).items() {
            let context = container.field("securityContext");
            for field in NOT_ON_WINDOWS_CONTAINERS {
                let at = context.field(field);
                if at.is_set() {
                    errors.forbidden(at, NOT_ON_WINDOWS);
                }
            }
        }
    }
}
