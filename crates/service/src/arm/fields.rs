//! The fields that requests may have: those of the API's models. One that is not here is a mistake of the client's,
//! and said to be one.

use serde_json::{Map, Value};

use super::error::{ArmError, Result};

pub const RESOURCE: &[&str] = &[
    "eTag",
    "extendedLocation",
    "id",
    "identity",
    "kind",
    "location",
    "name",
    "properties",
    "sku",
    "systemData",
    "tags",
    "type",
];

pub const CLUSTER: &[&str] = &[
    "aadProfile",
    "addonProfiles",
    "agentPoolProfiles",
    "aiToolchainOperatorProfile",
    "apiServerAccessProfile",
    "autoScalerProfile",
    "autoUpgradeProfile",
    "azureMonitorProfile",
    "azurePortalFQDN",
    "bootstrapProfile",
    "currentKubernetesVersion",
    "disableLocalAccounts",
    "diskEncryptionSetID",
    "dnsPrefix",
    "enableFIPS",
    "enablePodSecurityPolicy",
    "enableRBAC",
    "fqdn",
    "fqdnSubdomain",
    "hostedSystemProfile",
    "httpProxyConfig",
    "identityProfile",
    "ingressProfile",
    "kubernetesVersion",
    "linuxProfile",
    "maxAgentPools",
    "metricsProfile",
    "networkProfile",
    "nodeProvisioningProfile",
    "nodeResourceGroup",
    "nodeResourceGroupProfile",
    "oidcIssuerProfile",
    "podIdentityProfile",
    "powerState",
    "privateFQDN",
    "privateLinkResources",
    "provisioningState",
    "publicNetworkAccess",
    "resourceUID",
    "schedulerProfile",
    "securityProfile",
    "serviceMeshProfile",
    "servicePrincipalProfile",
    "status",
    "storageProfile",
    "supportPlan",
    "upgradeSettings",
    "windowsProfile",
    "workloadAutoScalerProfile",
];

pub const POOL: &[&str] = &[
    "artifactStreamingProfile",
    "availabilityZones",
    "capacityReservationGroupID",
    "count",
    "creationData",
    "currentOrchestratorVersion",
    "eTag",
    "enableAutoScaling",
    "enableEncryptionAtHost",
    "enableFIPS",
    "enableNodePublicIP",
    "enableUltraSSD",
    "gatewayProfile",
    "gpuInstanceProfile",
    "gpuProfile",
    "hostGroupID",
    "kubeletConfig",
    "kubeletDiskType",
    "linuxOSConfig",
    "localDNSProfile",
    "maxCount",
    "maxPods",
    "messageOfTheDay",
    "minCount",
    "mode",
    "name",
    "networkProfile",
    "nodeImageVersion",
    "nodeLabels",
    "nodePublicIPPrefixID",
    "nodeTaints",
    "orchestratorVersion",
    "osDiskSizeGB",
    "osDiskType",
    "osSKU",
    "osType",
    "podIPAllocationMode",
    "podSubnetID",
    "powerState",
    "provisioningState",
    "proximityPlacementGroupID",
    "scaleDownMode",
    "scaleSetEvictionPolicy",
    "scaleSetPriority",
    "securityProfile",
    "spotMaxPrice",
    "status",
    "tags",
    "type",
    "upgradeSettings",
    "virtualMachineNodesStatus",
    "virtualMachinesProfile",
    "vmSize",
    "vnetSubnetID",
    "windowsProfile",
    "workloadRuntime",
];

pub const NETWORK: &[&str] = &[
    "advancedNetworking",
    "dnsServiceIP",
    "dockerBridgeCidr",
    "ipFamilies",
    "loadBalancerProfile",
    "loadBalancerSku",
    "natGatewayProfile",
    "networkDataplane",
    "networkMode",
    "networkPlugin",
    "networkPluginMode",
    "networkPolicy",
    "outboundType",
    "podCidr",
    "podCidrs",
    "serviceCidr",
    "serviceCidrs",
    "staticEgressGatewayProfile",
];

/// The object at a place of the request, whose fields are all known.
pub fn object<'a>(value: &'a Value, known: &[&str], place: &str) -> Result<&'a Map<String, Value>> {
    let Value::Object(map) = value else {
        return Err(mistyped(place, "an object", value));
    };
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(map),
        Some(key) => {
            let path = join(place, key);
            Err(ArmError::bad_request(
                "UnmarshalError",
                format!("The request content was invalid: unknown field \"{path}\"."),
            )
            .at(path))
        }
    }
}

pub fn mistyped(place: &str, wanted: &str, found: &Value) -> ArmError {
    let kind = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    ArmError::bad_request(
        "UnmarshalError",
        format!("The request content was invalid: \"{place}\" must be {wanted}, not {kind}."),
    )
    .at(place)
}

pub fn join(place: &str, key: &str) -> String {
    if place.is_empty() {
        key.to_owned()
    } else {
        format!("{place}.{key}")
    }
}

/// Typed reading of one object's fields; null is as good as absent.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    pub map: &'a Map<String, Value>,
    pub place: &'a str,
}

// === impl Fields ===

impl<'a> Fields<'a> {
    fn get(self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn text(self, key: &str) -> Result<Option<&'a str>> {
        let read = |v: &'a Value| {
            v.as_str()
                .ok_or_else(|| mistyped(&join(self.place, key), "a string", v))
        };
        self.get(key).map(read).transpose()
    }

    pub fn number(self, key: &str) -> Result<Option<i64>> {
        let read = |v: &Value| {
            v.as_i64()
                .ok_or_else(|| mistyped(&join(self.place, key), "an integer", v))
        };
        self.get(key).map(read).transpose()
    }

    pub fn boolean(self, key: &str) -> Result<Option<bool>> {
        let read = |v: &Value| {
            v.as_bool()
                .ok_or_else(|| mistyped(&join(self.place, key), "a boolean", v))
        };
        self.get(key).map(read).transpose()
    }

    pub fn list(self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        let read = |v: &'a Value| {
            v.as_array()
                .ok_or_else(|| mistyped(&join(self.place, key), "an array", v))
        };
        self.get(key).map(read).transpose()
    }

    pub fn texts(self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(list) = self.list(key)? else {
            return Ok(None);
        };
        let read = |v: &Value| {
            v.as_str()
                .map(str::to_owned)
                .ok_or_else(|| mistyped(&join(self.place, key), "an array of strings", v))
        };
        list.iter().map(read).collect::<Result<_>>().map(Some)
    }

    /// An object of strings, such as tags.
    pub fn map_of_texts(
        self,
        key: &str,
    ) -> Result<Option<std::collections::BTreeMap<String, String>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let wrong = |v: &Value| mistyped(&join(self.place, key), "an object of strings", v);
        let map = value.as_object().ok_or_else(|| wrong(value))?;
        let read = |(k, v): (&String, &Value)| {
            Ok((k.clone(), v.as_str().ok_or_else(|| wrong(v))?.to_owned()))
        };
        map.iter().map(read).collect::<Result<_>>().map(Some)
    }
}
