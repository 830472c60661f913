"""Microsoft's own client of AKS against the service: creates, scales and deletes a cluster."""

import json
import os
import time

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.mgmt.containerservice import ContainerServiceClient

with open(os.path.expanduser("~/.fluyt/credentials")) as file:
    login = json.load(file)
authority = os.path.expanduser("~/service-ca.pem")
with open(authority, "w") as file:
    file.write(login["ca"])


class Credential:
    def get_token(self, *_scopes, **_options):
        return AccessToken(login["token"], int(time.time()) + 3600)


client = ContainerServiceClient(
    Credential(),
    login["subscription"],
    base_url=login["endpoint"],
    credential_scopes=["https://fluyt/.default"],
    connection_verify=authority,
    polling_interval=0,
)
clusters, pools = client.managed_clusters, client.agent_pools

pool = {"name": "nodepool1", "count": 1, "vmSize": "Standard_D2s_v3", "mode": "System", "osType": "Linux"}
wanted = {
    "location": "local",
    "tags": {"made-by": "azure-mgmt-containerservice"},
    "identity": {"type": "SystemAssigned"},
    "properties": {"dnsPrefix": "sdk", "agentPoolProfiles": [pool]},
}
made = clusters.begin_create_or_update("rg", "sdk", wanted).result()
assert made.provisioning_state == "Succeeded", made.provisioning_state
assert made.agent_pool_profiles[0].count == 1
assert made.tags == {"made-by": "azure-mgmt-containerservice"}, made.tags
assert made.fqdn, "no fqdn"

listed = [cluster.name for cluster in clusters.list_by_resource_group("rg")]
assert listed == ["sdk"], listed
assert [cluster.name for cluster in clusters.list()] == ["sdk"]

kubeconfig = clusters.list_cluster_admin_credentials("rg", "sdk").kubeconfigs[0].value
with open(os.path.expanduser("~/sdk.kubeconfig"), "wb") as file:
    file.write(bytes(kubeconfig))

grown = pools.begin_create_or_update("rg", "sdk", "nodepool1", {"properties": {**pool, "count": 2}}).result()
assert grown.count == 2, grown.count
added = pools.begin_create_or_update(
    "rg", "sdk", "user1", {"properties": {"count": 1, "vmSize": "Standard_D2s_v3", "mode": "User"}}
).result()
assert added.provisioning_state == "Succeeded", added.provisioning_state
assert sorted(p.name for p in pools.list("rg", "sdk")) == ["nodepool1", "user1"]
pools.begin_delete("rg", "sdk", "user1").result()
assert [p.name for p in pools.list("rg", "sdk")] == ["nodepool1"]

tagged = clusters.begin_update_tags("rg", "sdk", {"tags": {"a": "b"}}).result()
assert tagged.tags == {"a": "b"}, tagged.tags

try:
    clusters.begin_create_or_update(
        "rg", "bad", {"location": "local", "properties": {"dnsPrefix": "b", "agentPoolProfiles": [{**pool, "vmSize": "Standard_None"}]}}
    ).result()
    raise AssertionError("an unknown size was taken")
except HttpResponseError as error:
    assert error.status_code == 400 and error.error.code == "VMSizeNotSupported", error

os.system("kubectl --kubeconfig ~/sdk.kubeconfig get nodes --no-headers >~/sdk.nodes")
clusters.begin_delete("rg", "sdk").result()
try:
    clusters.get("rg", "sdk")
    raise AssertionError("the cluster is still there")
except ResourceNotFoundError as error:
    assert error.error.code == "ResourceNotFound", error
print("done")
