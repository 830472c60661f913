//! Kubeconfigs: the administrator's, as AKS names things in them, and a new node's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::record::Cluster;
use crate::master;
use crate::master::pki::Keys;

/// The kubeconfig that `get-credentials` gives; YAML.
///
/// # Errors
/// Never for what we put in.
pub fn admin(cluster: &Cluster, keys: &Keys, is_admin: bool) -> anyhow::Result<String> {
    let suffix = if is_admin { "-admin" } else { "" };
    let context = format!("{}{suffix}", cluster.name);
    let user = format!(
        "{}_{}_{}",
        if is_admin {
            "clusterAdmin"
        } else {
            "clusterUser"
        },
        cluster.group,
        cluster.name
    );
    let server = format!("https://127.0.0.1:{}", cluster.port);
    let credentials = json!({
        "client-certificate-data": STANDARD.encode(&keys.admin.certificate_pem),
        "client-key-data": STANDARD.encode(&keys.admin.key_pem),
    });
    render(&cluster.name, &server, keys, &context, &user, credentials)
}

/// The kubeconfig with which a new node asks for its certificate.
///
/// # Errors
/// Never for what we put in.
pub fn bootstrap(cluster: &Cluster, keys: &Keys) -> anyhow::Result<String> {
    let server = format!(
        "https://{}:{}",
        cluster.network.gateway().addr(),
        master::PORT
    );
    render(
        &cluster.name,
        &server,
        keys,
        "bootstrap",
        "kubelet-bootstrap",
        json!({"token": cluster.bootstrap_token}),
    )
}

fn render(
    cluster: &str,
    server: &str,
    keys: &Keys,
    context: &str,
    user: &str,
    credentials: Value,
) -> anyhow::Result<String> {
    let ca = STANDARD.encode(keys.ca.certificate_pem());
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": ca}}],
        "contexts": [{"name": context, "context": {"cluster": cluster, "user": user}}],
        "current-context": context,
        "users": [{"name": user, "user": credentials}],
    });
    Ok(serde_saphyr::to_string(&config)?)
}
