//! The controls of the Pod Security Standards, one function each, in upstream's words.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Level;

/// What a control objects to: the reason, and which part of the pod gave it.
pub(super) type Verdict = Option<(String, String)>;

/// All controls of a level in a minor version, baseline first, each group in order of upstream's names.
pub(super) fn violations(
    level: Level,
    minor: u32,
    metadata: &Value,
    spec: &Value,
) -> Vec<(String, String)> {
    if level == Level::Privileged {
        return Vec::new();
    }
    let restricted = level == Level::Restricted;
    let pod = Pod {
        metadata,
        spec,
        windows: minor >= 25 && spec["os"]["name"] == "windows",
        // The users of such a pod are nobody outside of it.
        own_users: minor >= 35 && spec["hostUsers"] == false,
        minor,
    };
    let mut verdicts = vec![pod.app_armor()];
    if !restricted || minor < 22 {
        verdicts.push(pod.capabilities_baseline());
    }
    verdicts.push(pod.host_namespaces());
    if !restricted {
        verdicts.push(pod.host_path());
    }
    verdicts.push(pod.host_ports());
    if minor >= 34 {
        verdicts.push(pod.probe_hosts());
    }
    verdicts.extend([pod.privileged(), pod.proc_mount(restricted), pod.se_linux()]);
    if !restricted || minor < 19 {
        verdicts.push(pod.seccomp_baseline());
    }
    verdicts.extend([pod.sysctls(), pod.host_process()]);
    if restricted {
        verdicts.push(pod.privilege_escalation());
        if minor >= 22 {
            verdicts.push(pod.capabilities_restricted());
        }
        verdicts.extend([pod.volumes(), pod.non_root()]);
        if minor >= 23 {
            verdicts.push(pod.root_user());
        }
        if minor >= 19 {
            verdicts.push(pod.seccomp_restricted());
        }
    }
    verdicts.into_iter().flatten().collect()
}

struct Pod<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    windows: bool,
    own_users: bool,
    minor: u32,
}

fn quote<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let items: Vec<String> = items
        .into_iter()
        .map(|i| format!("\"{}\"", i.as_ref()))
        .collect();
    items.join(", ")
}

fn many<'w>(one: &'w str, several: &'w str, count: usize) -> &'w str {
    if count == 1 { one } else { several }
}

/// `container "a"` or `containers "a", "b"`
fn containers(names: &[String]) -> String {
    format!(
        "{} {}",
        many("container", "containers", names.len()),
        quote(names)
    )
}

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

impl Pod<'_> {
    fn containers(&self) -> impl Iterator<Item = &Value> {
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|list| self.spec[list].as_array().into_iter().flatten())
    }

    /// Names of the containers that do something.
    fn that(&self, does: impl Fn(&Value) -> bool) -> Vec<String> {
        self.containers()
            .filter(|c| does(c))
            .map(|c| c["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// `pod`, the containers, or both, when any of them has a bad setting at a path of its security context.
    fn setters(&self, bad: impl Fn(&Value) -> bool) -> Option<String> {
        let mut setters = Vec::new();
        if bad(&self.spec["securityContext"]) {
            setters.push("pod".to_owned());
        }
        let names = self.that(|c| bad(&c["securityContext"]));
        if !names.is_empty() {
            setters.push(containers(&names));
        }
        (!setters.is_empty()).then(|| setters.join(" and "))
    }

    /// The distinct strings at a path, of the pod and its containers, that are bad.
    fn values(&self, pointer: &str, bad: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let contexts = self.containers().map(|c| &c["securityContext"]);
        std::iter::once(&self.spec["securityContext"])
            .chain(contexts)
            .filter_map(|c| c.pointer(pointer)?.as_str())
            .filter(|v| bad(v))
            .map(str::to_owned)
            .collect()
    }

    fn app_armor(&self) -> Verdict {
        let bad = |ty: &str| ty != "RuntimeDefault" && ty != "Localhost";
        let mut setters: Vec<String> = Vec::new();
        setters.extend(self.setters(|c| c["appArmorProfile"]["type"].as_str().is_some_and(bad)));
        let mut values: Vec<String> = self
            .values("/appArmorProfile/type", bad)
            .into_iter()
            .collect();
        let annotations: Vec<String> = self.metadata["annotations"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| key.starts_with("container.apparmor.security.beta.kubernetes.io/"))
            .filter_map(|(key, value)| Some((key, value.as_str()?)))
            .filter(|(_, v)| {
                !v.is_empty() && *v != "runtime/default" && !v.starts_with("localhost/")
            })
            .map(|(key, value)| format!("{key}={value:?}"))
            .collect();
        if !annotations.is_empty() {
            setters.push(many("annotation", "annotations", annotations.len()).to_owned());
            values.extend(annotations);
        }
        (!setters.is_empty()).then(|| {
            let reason = many(
                "forbidden AppArmor profile",
                "forbidden AppArmor profiles",
                values.len(),
            );
            (
                reason.to_owned(),
                format!(
                    "{} must not set AppArmor profile type to {}",
                    setters.join(" and "),
                    quote(&values)
                ),
            )
        })
    }

    fn added(&self, allowed: &[&str]) -> (Vec<String>, BTreeSet<String>) {
        let added = |c: &Value| -> Vec<String> {
            let list = c["securityContext"]["capabilities"]["add"].as_array();
            let list = list.into_iter().flatten().filter_map(Value::as_str);
            list.filter(|cap| !allowed.contains(cap))
                .map(str::to_owned)
                .collect()
        };
        let names = self.that(|c| !added(c).is_empty());
        (names, self.containers().flat_map(added).collect())
    }

    fn capabilities_baseline(&self) -> Verdict {
        let (names, capabilities) = self.added(&CAPABILITIES);
        (!names.is_empty()).then(|| {
            let detail = format!(
                "{} must not include {} in securityContext.capabilities.add",
                containers(&names),
                quote(&capabilities)
            );
            ("non-default capabilities".to_owned(), detail)
        })
    }

    fn capabilities_restricted(&self) -> Verdict {
        if self.windows {
            return None;
        }
        let missing = self.that(|c| {
            let drop = c["securityContext"]["capabilities"]["drop"].as_array();
            !drop.is_some_and(|d| d.iter().any(|cap| cap == "ALL"))
        });
        let (adding, capabilities) = self.added(&["NET_BIND_SERVICE"]);
        let mut details = Vec::new();
        if !missing.is_empty() {
            details.push(format!(
                "{} must set securityContext.capabilities.drop=[\"ALL\"]",
                containers(&missing)
            ));
        }
        if !adding.is_empty() {
            details.push(format!(
                "{} must not include {} in securityContext.capabilities.add",
                containers(&adding),
                quote(&capabilities)
            ));
        }
        (!details.is_empty()).then(|| ("unrestricted capabilities".to_owned(), details.join("; ")))
    }

    fn host_namespaces(&self) -> Verdict {
        let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
            .iter()
            .filter(|field| self.spec[**field] == true)
            .map(|field| format!("{field}=true"))
            .collect();
        (!used.is_empty()).then(|| ("host namespaces".to_owned(), used.join(", ")))
    }

    fn volumes_that(&self, does: impl Fn(&Value) -> bool) -> Vec<&Value> {
        let volumes = self.spec["volumes"].as_array().into_iter().flatten();
        volumes.filter(|v| does(v)).collect()
    }

    fn host_path(&self) -> Verdict {
        let bad = self.volumes_that(|v| v["hostPath"].is_object());
        (!bad.is_empty()).then(|| {
            let names = bad.iter().filter_map(|v| v["name"].as_str());
            let detail = format!("{} {}", many("volume", "volumes", bad.len()), quote(names));
            ("hostPath volumes".to_owned(), detail)
        })
    }

    fn volumes(&self) -> Verdict {
        let bad = self.volumes_that(|v| !VOLUMES.iter().any(|allowed| v[*allowed].is_object()));
        (!bad.is_empty()).then(|| {
            let types: BTreeSet<&str> = bad
                .iter()
                .flat_map(|v| v.as_object().into_iter().flatten())
                .map(|(field, _)| field.as_str())
                .filter(|field| *field != "name")
                .collect();
            let types = if types.is_empty() {
                BTreeSet::from(["unknown"])
            } else {
                types
            };
            let names = bad.iter().filter_map(|v| v["name"].as_str());
            let detail = format!(
                "{} {} {} {} {}",
                many("volume", "volumes", bad.len()),
                quote(names),
                many("uses", "use", bad.len()),
                many(
                    "restricted volume type",
                    "restricted volume types",
                    types.len()
                ),
                quote(types)
            );
            ("restricted volume types".to_owned(), detail)
        })
    }

    fn host_ports(&self) -> Verdict {
        let ports = |c: &Value| -> Vec<String> {
            let ports = c["ports"].as_array().into_iter().flatten();
            let ports = ports.filter_map(|p| p["hostPort"].as_i64());
            ports.filter(|p| *p != 0).map(|p| p.to_string()).collect()
        };
        let names = self.that(|c| !ports(c).is_empty());
        (!names.is_empty()).then(|| {
            let all: BTreeSet<String> = self.containers().flat_map(ports).collect();
            let list: Vec<&str> = all.iter().map(String::as_str).collect();
            let detail = format!(
                "{} {} {} {}",
                containers(&names),
                many("uses", "use", names.len()),
                many("hostPort", "hostPorts", all.len()),
                list.join(", ")
            );
            ("hostPort".to_owned(), detail)
        })
    }

    fn probe_hosts(&self) -> Verdict {
        let hosts = |c: &Value| -> Vec<String> {
            [
                "/livenessProbe",
                "/readinessProbe",
                "/startupProbe",
                "/lifecycle/postStart",
                "/lifecycle/preStop",
            ]
            .iter()
            .filter_map(|at| c.pointer(at))
            .flat_map(|handler| [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]])
            .filter_map(|host| host.as_str().filter(|h| !h.is_empty()).map(str::to_owned))
            .collect()
        };
        let names = self.that(|c| !hosts(c).is_empty());
        (!names.is_empty()).then(|| {
            let all: BTreeSet<String> = self.containers().flat_map(hosts).collect();
            let detail = format!(
                "{} {} {} {}",
                containers(&names),
                many("uses", "use", names.len()),
                many(
                    "probe or lifecycle host",
                    "probe or lifecycle hosts",
                    all.len()
                ),
                quote(&all)
            );
            ("probe or lifecycle host".to_owned(), detail)
        })
    }

    fn privileged(&self) -> Verdict {
        let names = self.that(|c| c["securityContext"]["privileged"] == true);
        (!names.is_empty()).then(|| {
            (
                "privileged".to_owned(),
                format!(
                    "{} must not set securityContext.privileged=true",
                    containers(&names)
                ),
            )
        })
    }

    fn proc_mount(&self, restricted: bool) -> Verdict {
        if self.own_users && !restricted {
            return None;
        }
        let bad = |c: &Value| {
            c["securityContext"]["procMount"]
                .as_str()
                .is_some_and(|p| !p.is_empty() && p != "Default")
        };
        let names = self.that(bad);
        (!names.is_empty()).then(|| {
            let values: BTreeSet<&str> = self
                .containers()
                .filter(|c| bad(c))
                .filter_map(|c| c["securityContext"]["procMount"].as_str())
                .collect();
            (
                "procMount".to_owned(),
                format!(
                    "{} must not set securityContext.procMount to {}",
                    containers(&names),
                    quote(values)
                ),
            )
        })
    }

    fn se_linux(&self) -> Verdict {
        let mut allowed = vec!["", "container_t", "container_init_t", "container_kvm_t"];
        if self.minor >= 31 {
            allowed.push("container_engine_t");
        }
        let set =
            |options: &Value, field: &str| options[field].as_str().is_some_and(|v| !v.is_empty());
        let bad_type = |ty: &str| !allowed.contains(&ty);
        let setters = self.setters(|context| {
            let options = &context["seLinuxOptions"];
            options["type"].as_str().is_some_and(bad_type)
                || set(options, "user")
                || set(options, "role")
        })?;
        let types = self.values("/seLinuxOptions/type", bad_type);
        let mut data = Vec::new();
        if !types.is_empty() {
            data.push(format!(
                "{} {}",
                many("type", "types", types.len()),
                quote(&types)
            ));
        }
        for field in ["user", "role"] {
            if !self
                .values(&format!("/seLinuxOptions/{field}"), |v| !v.is_empty())
                .is_empty()
            {
                data.push(format!("{field} may not be set"));
            }
        }
        Some((
            "seLinuxOptions".to_owned(),
            format!(
                "{setters} set forbidden securityContext.seLinuxOptions: {}",
                data.join("; ")
            ),
        ))
    }

    fn seccomp_baseline(&self) -> Verdict {
        let bad = |ty: &str| ty != "RuntimeDefault" && ty != "Localhost";
        let setters = self.setters(|c| c["seccompProfile"]["type"].as_str().is_some_and(bad))?;
        let values = self.values("/seccompProfile/type", bad);
        Some((
            "seccompProfile".to_owned(),
            format!(
                "{setters} must not set securityContext.seccompProfile.type to {}",
                quote(&values)
            ),
        ))
    }

    fn seccomp_restricted(&self) -> Verdict {
        if self.windows {
            return None;
        }
        if let Some(bad) = self.seccomp_baseline() {
            return Some(bad);
        }
        if self.spec["securityContext"]["seccompProfile"]["type"].is_string() {
            return None;
        }
        let names = self.that(|c| !c["securityContext"]["seccompProfile"]["type"].is_string());
        (!names.is_empty()).then(|| {
            let detail = format!("pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"", containers(&names));
            ("seccompProfile".to_owned(), detail)
        })
    }

    fn sysctls(&self) -> Verdict {
        let mut allowed = vec![
            "kernel.shm_rmid_forced",
            "net.ipv4.ip_local_port_range",
            "net.ipv4.tcp_syncookies",
            "net.ipv4.ping_group_range",
            "net.ipv4.ip_unprivileged_port_start",
        ];
        if self.minor >= 27 {
            allowed.push("net.ipv4.ip_local_reserved_ports");
        }
        if self.minor >= 29 {
            allowed.extend([
                "net.ipv4.tcp_keepalive_time",
                "net.ipv4.tcp_fin_timeout",
                "net.ipv4.tcp_keepalive_intvl",
                "net.ipv4.tcp_keepalive_probes",
            ]);
        }
        if self.minor >= 32 {
            allowed.extend(["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"]);
        }
        let sysctls = self.spec["securityContext"]["sysctls"]
            .as_array()
            .into_iter()
            .flatten();
        let bad: Vec<&str> = sysctls
            .filter_map(|s| s["name"].as_str())
            .filter(|name| !allowed.contains(name))
            .collect();
        (!bad.is_empty()).then(|| ("forbidden sysctls".to_owned(), bad.join(", ")))
    }

    fn host_process(&self) -> Verdict {
        let setters = self.setters(|c| c["windowsOptions"]["hostProcess"] == true)?;
        Some((
            "hostProcess".to_owned(),
            format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"),
        ))
    }

    fn privilege_escalation(&self) -> Verdict {
        if self.windows {
            return None;
        }
        let names = self.that(|c| c["securityContext"]["allowPrivilegeEscalation"] != false);
        (!names.is_empty()).then(|| {
            let detail = format!(
                "{} must set securityContext.allowPrivilegeEscalation=false",
                containers(&names)
            );
            ("allowPrivilegeEscalation != false".to_owned(), detail)
        })
    }

    fn non_root(&self) -> Verdict {
        if self.own_users {
            return None;
        }
        let reason = || "runAsNonRoot != true".to_owned();
        if let Some(setters) = self.setters(|c| c["runAsNonRoot"] == false) {
            return Some((
                reason(),
                format!("{setters} must not set securityContext.runAsNonRoot=false"),
            ));
        }
        if self.spec["securityContext"]["runAsNonRoot"] == true {
            return None;
        }
        let names = self.that(|c| !c["securityContext"]["runAsNonRoot"].is_boolean());
        (!names.is_empty()).then(|| {
            (
                reason(),
                format!(
                    "pod or {} must set securityContext.runAsNonRoot=true",
                    containers(&names)
                ),
            )
        })
    }

    fn root_user(&self) -> Verdict {
        if self.own_users {
            return None;
        }
        let setters = self.setters(|c| c["runAsUser"] == 0)?;
        Some((
            "runAsUser=0".to_owned(),
            format!("{setters} must not set runAsUser=0"),
        ))
    }
}
