"""A cluster through the Python client, as programs use it: typed, dynamic, watching, streaming."""

import json
import sys

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward, stream

IMAGE = sys.argv[1]
NAMESPACE = "python"
SOON = 30


def fails(status, reason, call, *args, **more):
    """The call ends with a Status of this code and reason, which is returned."""
    try:
        call(*args, **more)
    except ApiException as error:
        said = json.loads(error.body)
        assert (error.status, said["reason"]) == (status, reason), error
        assert said["kind"] == "Status" and said["code"] == status, said
        return said
    raise AssertionError(f"{call.__name__} went through")


def until(list_call, holds, **more):
    """The first object of a watch for which `holds`."""
    events = watch.Watch()
    for event in events.stream(list_call, NAMESPACE, timeout_seconds=SOON, **more):
        if holds(event):
            events.stop()
            return event["object"]
    raise AssertionError("the watch ended first")


def objects(core):
    made = core.create_namespaced_config_map(
        NAMESPACE, {"metadata": {"generateName": "c-", "labels": {"n": "0"}}, "data": {"a": "1"}}
    )
    name = made.metadata.name
    assert name.startswith("c-") and made.metadata.uid
    fails(409, "AlreadyExists", core.create_namespaced_config_map, NAMESPACE, {"metadata": {"name": name}})
    fails(404, "NotFound", core.read_namespaced_config_map, "none", NAMESPACE)
    said = fails(422, "Invalid", core.create_namespaced_config_map, NAMESPACE, {"metadata": {"name": "No"}})
    assert said["details"]["causes"][0]["field"] == "metadata.name", said

    stale = core.read_namespaced_config_map(name, NAMESPACE)
    made.data = {"a": "2"}
    made = core.replace_namespaced_config_map(name, NAMESPACE, made)
    fails(409, "Conflict", core.replace_namespaced_config_map, name, NAMESPACE, stale)
    # The client takes a list for a JSON patch, and a map for a strategic merge patch.
    core.patch_namespaced_config_map(name, NAMESPACE, [{"op": "add", "path": "/data/b", "value": "3"}])
    patched = core.patch_namespaced_config_map(name, NAMESPACE, {"data": {"a": None}})
    assert patched.data == {"b": "3"}, patched.data
    unchanged = core.patch_namespaced_config_map(name, NAMESPACE, {"data": {"b": "4"}}, dry_run="All")
    assert unchanged.data == {"b": "4"}
    assert core.read_namespaced_config_map(name, NAMESPACE).data == {"b": "3"}

    for n in range(1, 10):
        core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": f"n{n}", "labels": {"n": str(n)}}})
    page, names = core.list_namespaced_config_map(NAMESPACE, limit=4), []
    while True:
        names += [item.metadata.name for item in page.items]
        if not page.metadata._continue:
            break
        page = core.list_namespaced_config_map(NAMESPACE, limit=4, _continue=page.metadata._continue)
    # With the authority's, which every namespace has.
    assert len(names) == len(set(names)) == 11, names
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="n in (1,2,3)")
    left = core.list_namespaced_config_map(NAMESPACE, label_selector="n,n!=0")
    assert len(left.items) == 6, left


def workloads(api, core):
    apps = client.AppsV1Api(api)
    labels = {"app": "sleeper"}
    container = client.V1Container(
        name="sleeper",
        image=IMAGE,
        command=["sh", "-c", "echo ready; httpd -p 8080 -h /etc; exec sleep 1000000"],
        resources=client.V1ResourceRequirements(requests={"cpu": "10m"}),
    )
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels),
        spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=0),
    )
    deployment = client.V1Deployment(
        metadata=client.V1ObjectMeta(name="sleeper"),
        spec=client.V1DeploymentSpec(
            replicas=1, selector=client.V1LabelSelector(match_labels=labels), template=template
        ),
    )
    apps.create_namespaced_deployment(NAMESPACE, deployment)
    apps.patch_namespaced_deployment_scale("sleeper", NAMESPACE, {"spec": {"replicas": 2}})
    until(
        apps.list_namespaced_deployment,
        lambda event: event["object"].status.ready_replicas == 2,
        field_selector="metadata.name=sleeper",
    )
    pods = core.list_namespaced_pod(NAMESPACE, label_selector="app=sleeper").items
    assert len(pods) == 2
    streams(core, pods[0].metadata.name)

    before = core.list_namespaced_pod(NAMESPACE).metadata.resource_version
    victim = pods[1].metadata
    core.create_namespaced_pod_eviction(
        victim.name, NAMESPACE, client.V1Eviction(metadata=client.V1ObjectMeta(name=victim.name))
    )
    until(
        core.list_namespaced_pod,
        lambda event: event["type"] == "DELETED" and event["object"].metadata.uid == victim.uid,
        resource_version=before,
    )
    apps.delete_namespaced_deployment("sleeper", NAMESPACE, propagation_policy="Foreground")


def execute(core, pod, script, **streams):
    return stream(
        core.connect_get_namespaced_pod_exec,
        pod,
        NAMESPACE,
        command=["sh", "-c", script],
        stdout=True,
        stderr=True,
        _preload_content=False,
        **streams,
    )


def streams(core, pod):
    assert core.read_namespaced_pod_log(pod, NAMESPACE) == "ready\n"
    said = execute(core, pod, "cat", stdin=True)
    said.write_stdin("to and fro\n")
    assert said.readline_stdout(timeout=SOON) == "to and fro"
    said.close()
    ended = execute(core, pod, "echo err >&2; exit 3")
    ended.run_forever(timeout=SOON)
    assert ended.read_stderr() == "err\n"
    assert ended.returncode == 3, ended.returncode

    forwarded = portforward(core.connect_get_namespaced_pod_portforward, pod, NAMESPACE, ports="8080")
    socket = forwarded.socket(8080)
    socket.settimeout(SOON)
    socket.sendall(b"GET /hostname HTTP/1.0\r\n\r\n")
    answer = b""
    while part := socket.recv(4096):
        answer += part
    assert b" 200 OK\r\n" in answer and answer.endswith(pod.encode() + b"\n"), answer


def custom_resources(api):
    crds = client.ApiextensionsV1Api(api)
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {"size": {"type": "integer", "minimum": 1, "default": 3}},
            }
        },
    }
    crds.create_custom_resource_definition(
        {
            "metadata": {"name": "boats.python.example"},
            "spec": {
                "group": "python.example",
                "scope": "Namespaced",
                "names": {"plural": "boats", "kind": "Boat"},
                "versions": [
                    {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
                ],
            },
        }
    )
    for event in watch.Watch().stream(crds.list_custom_resource_definition, timeout_seconds=SOON):
        conditions = event["object"].status and event["object"].status.conditions or []
        if any(c.type == "Established" and c.status == "True" for c in conditions):
            break
    custom = client.CustomObjectsApi(api)
    where = ("python.example", "v1", NAMESPACE, "boats")
    boat = {"apiVersion": "python.example/v1", "kind": "Boat", "metadata": {"name": "one"}, "spec": {}}
    assert custom.create_namespaced_custom_object(*where, boat)["spec"] == {"size": 3}
    fails(422, "Invalid", custom.create_namespaced_custom_object, *where, boat | {"spec": {"size": 0}})

    boats = dynamic.DynamicClient(api).resources.get(api_version="python.example/v1", kind="Boat")
    # The default belongs to whoever created the object.
    applied = boats.server_side_apply(
        namespace=NAMESPACE,
        name="one",
        body=boat | {"spec": {"size": 5}},
        field_manager="python",
        force_conflicts=True,
    )
    assert applied.spec.size == 5
    assert [m.manager for m in applied.metadata.managedFields if m.operation == "Apply"] == ["python"]
    try:
        boats.server_side_apply(namespace=NAMESPACE, name="one", body=boat | {"spec": {"size": 6}}, field_manager="other")
        raise AssertionError("no conflict")
    except dynamic.exceptions.ConflictError as conflict:
        assert 'conflict with \\"python\\"' in conflict.body, conflict.body
    assert [event["type"] for event in boats.watch(namespace=NAMESPACE, timeout=1)] == ["ADDED"]
    crds.delete_custom_resource_definition("boats.python.example")


def identities(api, core):
    token = core.create_namespaced_service_account_token(
        "default", NAMESPACE, {"spec": {"expirationSeconds": 600, "audiences": []}}
    )
    review = client.AuthenticationV1Api(api).create_token_review({"spec": {"token": token.status.token}})
    assert review.status.user.username == f"system:serviceaccount:{NAMESPACE}:default", review
    other = client.Configuration.get_default_copy()
    other.cert_file = other.key_file = None
    other.api_key = {"authorization": "Bearer " + token.status.token}
    someone = client.CoreV1Api(client.ApiClient(other))
    said = fails(403, "Forbidden", someone.list_namespaced_secret, NAMESPACE)
    assert f'User "system:serviceaccount:{NAMESPACE}:default" cannot list' in said["message"], said


def main():
    config.load_kube_config()
    api = client.ApiClient()
    core = client.CoreV1Api(api)
    assert client.VersionApi(api).get_code().major == "1"
    assert {"v1"} <= set(client.CoreApi(api).get_api_versions().versions)
    # A document, as `kubectl create -f` takes it.
    utils.create_from_dict(api, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for list_call, name in (
        (core.list_namespaced_service_account, "default"),
        (core.list_namespaced_config_map, "kube-root-ca.crt"),
    ):
        until(list_call, lambda event: event["object"].metadata.name == name)
    objects(core)
    workloads(api, core)
    custom_resources(api)
    identities(api, core)
    core.delete_namespace(NAMESPACE)
    print("done")


main()
