//! The resolver configuration of a pod, by its `dnsPolicy` and `dnsConfig`.

use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::config::args::Settings;
use crate::pod::PodExt;

const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

/// What to put into the pod's resolv.conf; `node` is the text of the node's own.
pub fn pod_config(settings: &Settings, pod: &Pod, node: &str) -> DnsConfig {
    let spec = pod.spec();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !pod.host_network(),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut config = if policy == "None" {
        DnsConfig::default()
    } else if cluster && !settings.cluster_dns.is_empty() {
        let domain = &settings.cluster_domain;
        let mut searches = vec![
            format!("{}.svc.{domain}", pod.namespace()),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        searches.extend(parse(node).searches);
        DnsConfig {
            servers: settings.cluster_dns.clone(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        parse(node)
    };
    if let Some(own) = &spec.dns_config {
        config
            .servers
            .extend(own.nameservers.iter().flatten().cloned());
        config
            .searches
            .extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            config
                .options
                .retain(|known| known.split(':').next() != Some(name));
            config.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.clone(),
            });
        }
    }
    dedup(&mut config.servers);
    dedup(&mut config.searches);
    config.servers.truncate(MAX_SERVERS);
    config.searches.truncate(MAX_SEARCHES);
    config
}

fn dedup(items: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    items.retain(|item| seen.insert(item.clone()));
}

fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(String::from)),
            // The last line of a kind wins.
            Some("search") => config.searches = words.map(String::from).collect(),
            Some("options") => config.options = words.map(String::from).collect(),
            _ => {}
        }
    }
    config
}

/// Host name and, if the pod has a subdomain, its fully qualified name.
pub fn hostname(settings: &Settings, pod: &Pod) -> (String, Option<String>) {
    let spec = pod.spec();
    if let Some(name) = &spec.hostname_override {
        return (name.clone(), None);
    }
    let mut host = spec
        .hostname
        .clone()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| pod.name().to_string());
    host.truncate(63);
    let host = host.trim_end_matches(['-', '.']).to_string();
    let qualified = spec
        .subdomain
        .as_deref()
        .filter(|subdomain| !subdomain.is_empty())
        .map(|subdomain| {
            format!(
                "{host}.{subdomain}.{}.svc.{}",
                pod.namespace(),
                settings.cluster_domain
            )
        });
    (host, qualified)
}

/// The host name that processes see.
pub fn sandbox_hostname(settings: &Settings, pod: &Pod) -> String {
    match hostname(settings, pod) {
        (_, Some(qualified)) if pod.spec().set_hostname_as_fqdn == Some(true) => qualified,
        (host, _) => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NODE: &str = "nameserver 9.9.9.9\nsearch corp.example\noptions timeout:2\n";

    fn settings() -> Settings {
        let args = crate::config::args::Args {
            kubeconfig: Some("/k".into()),
            cluster_dns: vec!["10.0.0.10".into()],
            ..Default::default()
        };
        args.settings().unwrap()
    }

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn policies() {
        let cluster =
            "10.0.0.10 n.svc.cluster.local svc.cluster.local cluster.local corp.example ndots:5";
        let node = "9.9.9.9 corp.example timeout:2";
        for (spec, expected) in [
            (json!({}), cluster),
            (json!({"dnsPolicy": "Default"}), node),
            (json!({"hostNetwork": true}), node),
            (
                json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                cluster,
            ),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "1.1.1.1 ndots:2 edns0",
            ),
            (
                json!({"dnsPolicy": "Default", "dnsConfig": {"options": [{"name": "timeout", "value": "9"}]}}),
                "9.9.9.9 corp.example timeout:9",
            ),
        ] {
            let config = pod_config(&settings(), &pod(spec.clone()), NODE);
            let all = [config.servers, config.searches, config.options]
                .concat()
                .join(" ");
            assert_eq!(all, expected, "{spec}");
        }
    }

    #[test]
    fn host_names() {
        for (spec, expected) in [
            (json!({}), "p"),
            (json!({"hostname": "h", "subdomain": "s"}), "h"),
            (
                json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}),
                "h.s.n.svc.cluster.local",
            ),
            (json!({"setHostnameAsFQDN": true}), "p"),
        ] {
            assert_eq!(
                sandbox_hostname(&settings(), &pod(spec.clone())),
                expected,
                "{spec}"
            );
        }
    }
}
