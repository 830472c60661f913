//! Records as ARM shows them.

use serde_json::{Map, Value, json};

use super::SUBSCRIPTION;
use crate::cluster::record::{Cluster, Outbound, Pool};
use crate::state::Group;
use crate::versions::IMAGE_TAG;

pub fn list(values: Vec<Value>) -> Value {
    json!({"value": values})
}

pub fn subscription() -> Value {
    json!({
        "id": format!("/subscriptions/{SUBSCRIPTION}"), "subscriptionId": SUBSCRIPTION, "tenantId": SUBSCRIPTION,
        "displayName": "Fluyt", "state": "Enabled", "authorizationSource": "RoleBased",
    })
}

pub fn group(group: &Group) -> Value {
    let mut value = json!({
        "id": format!("/subscriptions/{}/resourceGroups/{}", group.subscription, group.name),
        "name": group.name, "type": "Microsoft.Resources/resourceGroups", "location": group.location,
        "properties": {"provisioningState": "Succeeded"},
    });
    if let Some(tags) = &group.tags {
        value["tags"] = json!(tags);
    }
    value
}

/// A managed cluster.
pub fn cluster(cluster: &Cluster) -> Value {
    let mut properties = cluster.properties.clone();
    let defaults = json!({
        "autoUpgradeProfile": {"nodeOSUpgradeChannel": "None", "upgradeChannel": "none"},
        "disableLocalAccounts": false,
        "enableRBAC": true,
        "oidcIssuerProfile": {"enabled": false},
        "securityProfile": {},
        "servicePrincipalProfile": {"clientId": "msi"},
        "storageProfile": {
            "diskCSIDriver": {"enabled": false}, "fileCSIDriver": {"enabled": false}, "snapshotController": {"enabled": false},
        },
        "supportPlan": "KubernetesOfficial",
        "workloadAutoScalerProfile": {},
    });
    add_missing(&mut properties, defaults);
    let profiles: Vec<Value> = cluster
        .pools
        .iter()
        .map(|p| pool_profile(cluster, p))
        .collect();
    let own = json!({
        "provisioningState": cluster.state,
        "powerState": {"code": "Running"},
        "kubernetesVersion": cluster.version,
        "currentKubernetesVersion": cluster.version,
        "dnsPrefix": cluster.dns_prefix,
        "fqdn": cluster.fqdn,
        "agentPoolProfiles": profiles,
        "nodeResourceGroup": cluster.node_resource_group,
        "networkProfile": network_profile(cluster),
        "maxAgentPools": 100,
        "resourceUID": cluster.id,
    });
    set(&mut properties, own);
    let mut top = cluster.top.clone();
    add_missing(
        &mut top,
        json!({
            "identity": {
                "type": "SystemAssigned", "principalId": pseudo_guid(&cluster.id, 1), "tenantId": SUBSCRIPTION,
            },
            "kind": "Base",
            "sku": {"name": "Base", "tier": "Free"},
        }),
    );
    let own = json!({
        "id": cluster.resource_id(),
        "name": cluster.name,
        "type": "Microsoft.ContainerService/ManagedClusters",
        "location": cluster.location,
        "eTag": pseudo_guid(&cluster.id, cluster.generation),
        "systemData": {
            "createdBy": "fluyt", "createdByType": "User", "createdAt": cluster.created.to_string(),
            "lastModifiedBy": "fluyt", "lastModifiedByType": "User", "lastModifiedAt": cluster.changed.to_string(),
        },
        "properties": properties,
    });
    set(&mut top, own);
    if let Some(tags) = &cluster.tags {
        top.insert("tags".to_owned(), json!(tags));
    }
    Value::Object(top)
}

fn network_profile(cluster: &Cluster) -> Value {
    let network = &cluster.network;
    let mut profile = network.profile.clone();
    add_missing(
        &mut profile,
        json!({
            "networkPlugin": "azure",
            "networkPluginMode": "overlay",
            "networkPolicy": "none",
            "networkDataplane": "azure",
            "loadBalancerSku": "standard",
            "ipFamilies": ["IPv4"],
        }),
    );
    set(
        &mut profile,
        json!({
            "podCidr": network.pods,
            "podCidrs": [network.pods],
            "serviceCidr": network.services,
            "serviceCidrs": [network.services],
            "dnsServiceIP": network.dns_service_ip,
            "outboundType": match network.outbound { Outbound::None => "none", Outbound::LoadBalancer => "loadBalancer" },
        }),
    );
    Value::Object(profile)
}

/// A pool as part of its cluster.
fn pool_profile(cluster: &Cluster, pool: &Pool) -> Value {
    let mut properties = pool_properties(cluster, pool);
    properties.insert("name".to_owned(), pool.name.as_str().into());
    Value::Object(properties)
}

/// A pool as a resource.
pub fn pool(cluster: &Cluster, pool: &Pool) -> Value {
    json!({
        "id": format!("{}/agentPools/{}", cluster.resource_id(), pool.name),
        "name": pool.name,
        "type": "Microsoft.ContainerService/managedClusters/agentPools",
        "properties": pool_properties(cluster, pool),
    })
}

fn pool_properties(cluster: &Cluster, pool: &Pool) -> Map<String, Value> {
    let mut properties = pool.properties.clone();
    add_missing(
        &mut properties,
        json!({
            "enableAutoScaling": false,
            "enableEncryptionAtHost": false,
            "enableFIPS": false,
            "enableNodePublicIP": false,
            "enableUltraSSD": false,
            "kubeletDiskType": "OS",
            "osDiskSizeGB": 128,
            "osDiskType": "Managed",
            "osSKU": "Ubuntu",
            "scaleDownMode": "Delete",
            "upgradeSettings": {"maxSurge": "10%", "maxUnavailable": "0"},
        }),
    );
    set(
        &mut properties,
        json!({
            "count": pool.count,
            "vmSize": pool.vm_size,
            "osType": "Linux",
            "type": "VirtualMachineScaleSets",
            "mode": pool.mode,
            "maxPods": pool.max_pods,
            "orchestratorVersion": pool.version,
            "currentOrchestratorVersion": pool.version,
            "nodeImageVersion": format!("Fluyt-sandbox-{IMAGE_TAG}"),
            "provisioningState": pool.state,
            "powerState": {"code": "Running"},
            "eTag": pseudo_guid(&format!("{}{}", cluster.id, pool.name), pool.generation),
        }),
    );
    if !pool.labels.is_empty() {
        properties.insert("nodeLabels".to_owned(), json!(pool.labels));
    }
    if !pool.taints.is_empty() {
        properties.insert("nodeTaints".to_owned(), json!(pool.taints));
    }
    if let Some(tags) = &pool.tags {
        properties.insert("tags".to_owned(), json!(tags));
    }
    properties
}

fn add_missing(map: &mut Map<String, Value>, defaults: Value) {
    let Value::Object(defaults) = defaults else {
        return;
    };
    for (key, value) in defaults {
        if map.get(&key).is_none_or(Value::is_null) {
            map.insert(key, value);
        }
    }
}

fn set(map: &mut Map<String, Value>, values: Value) {
    let Value::Object(values) = values else {
        return;
    };
    map.extend(values);
}

/// Always the same for the same text and number, and in the shape that clients expect of ids and eTags.
pub fn pseudo_guid(text: &str, number: u64) -> String {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(format!("{text}/{number}"));
    let hex: String = hash.iter().take(16).map(|b| format!("{b:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::record::tests::cluster as record;

    #[test]
    fn a_cluster_shows_what_azure_shows() {
        let record = record(2);
        let value = cluster(&record);
        assert_eq!(value["properties"]["provisioningState"], "Creating");
        assert_eq!(value["properties"]["powerState"]["code"], "Running");
        assert_eq!(
            value["properties"]["networkProfile"]["dnsServiceIP"],
            "10.0.0.10"
        );
        assert_eq!(
            value["properties"]["networkProfile"]["outboundType"],
            "none"
        );
        assert_eq!(
            value["properties"]["agentPoolProfiles"][0]["name"],
            "nodepool1"
        );
        assert_eq!(value["properties"]["agentPoolProfiles"][0]["count"], 2);
        assert!(
            value["id"]
                .as_str()
                .unwrap()
                .ends_with("/managedClusters/demo")
        );
        let pool = pool(&record, &record.pools[0]);
        assert_eq!(pool["properties"]["vmSize"], "Standard_D2s_v3");
        assert!(pool["properties"].get("name").is_none());
    }

    #[test]
    fn etags_change_with_the_generation_only() {
        assert_eq!(pseudo_guid("a", 1), pseudo_guid("a", 1));
        assert_ne!(pseudo_guid("a", 1), pseudo_guid("a", 2));
        assert_eq!(pseudo_guid("a", 1).len(), 36);
    }
}
