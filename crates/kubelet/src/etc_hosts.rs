//! The `/etc/hosts` that the kubelet manages for a pod.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::config::args::Settings;
use crate::dns;
use crate::pod::PodExt;

const HEADER: &str = "# Kubernetes-managed hosts file.\n";
const HOST_HEADER: &str = "# Kubernetes-managed hosts file (host network).\n";

/// Whether `container` gets it: not when it mounts something of its own there.
pub fn is_managed_for(container: &Container, pod: &Pod, has_ip: bool) -> bool {
    let own = container
        .volume_mounts
        .iter()
        .flatten()
        .any(|mount| mount.mount_path == "/etc/hosts");
    !own && (has_ip || pod.host_network())
}

/// Writes the pod's file and says where it is.
pub fn write(settings: &Settings, pod: &Pod, ips: &[String]) -> std::io::Result<PathBuf> {
    let path = settings
        .root_dir
        .join("pods")
        .join(pod.uid())
        .join("etc-hosts");
    let node = if pod.host_network() {
        std::fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        String::new()
    };
    std::fs::write(&path, content(settings, pod, ips, &node))?;
    Ok(path)
}

fn content(settings: &Settings, pod: &Pod, ips: &[String], node: &str) -> String {
    let mut text = String::new();
    if pod.host_network() {
        text.push_str(HOST_HEADER);
        text.push_str(node);
    } else {
        text.push_str(HEADER);
        text.push_str(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let (host, qualified) = dns::hostname(settings, pod);
        for ip in ips {
            match &qualified {
                Some(qualified) => text.push_str(&format!("{ip}\t{qualified}\t{host}\n")),
                None => text.push_str(&format!("{ip}\t{host}\n")),
            }
        }
    }
    let mut aliases = pod.spec().host_aliases.iter().flatten().peekable();
    if aliases.peek().is_some() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_and_aliases() {
        let args = crate::config::args::Args {
            kubeconfig: Some("/k".into()),
            ..Default::default()
        };
        let settings = args.settings().unwrap();
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [], "subdomain": "s",
                "hostAliases": [{"ip": "1.1.1.1", "hostnames": ["a", "b"]}]}
        }))
        .unwrap();
        let text = content(&settings, &pod, &["10.244.0.2".into()], "");
        assert!(
            text.contains("\n10.244.0.2\tp.s.n.svc.cluster.local\tp\n"),
            "{text}"
        );
        assert!(
            text.ends_with("# Entries added by HostAliases.\n1.1.1.1\ta\tb\n"),
            "{text}"
        );
        pod.spec.as_mut().unwrap().host_network = Some(true);
        let text = content(&settings, &pod, &[], "127.0.0.1 node\n");
        assert!(
            text.starts_with("# Kubernetes-managed hosts file (host network).\n127.0.0.1 node\n"),
            "{text}"
        );
    }
}
