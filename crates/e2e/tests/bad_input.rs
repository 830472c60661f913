//! What is wrong is refused in the protocol's own words, with an exit code, and leaves nothing behind.

use std::time::Duration;

use anyhow::ensure;
use fluyt_e2e::World;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// What the service has made: directories, network namespaces, control groups, processes.
fn traces(world: &World) -> anyhow::Result<String> {
    world.ok("ls -d /var/lib/fluyt/clusters/* /run/netns/* 2>/dev/null || true; pgrep -fa '^(/fluyt|/proc/self/exe) ' || true")
}

#[test]
fn service() -> anyhow::Result<()> {
    World::with_service(|world, _service| {
        world.ok("fluyt group create -n rg")?;
        for (message, arguments) in [
            (
                "(VMSizeNotSupported)",
                "-n a --node-vm-size Standard_Nonsense",
            ),
            ("(SkuNotAvailable)", "-n a --node-vm-size Standard_M128s"),
            ("(InvalidParameter)", "-n a --node-count 0"),
            ("(InvalidParameter)", "-n a --node-count -1"),
            ("(InvalidParameter)", "-n a --node-count 1001"),
            ("(QuotaExceeded)", "-n a --node-count 500"),
            ("(InvalidParameter)", "-n -a-"),
            ("(InvalidParameter)", "-n a.b"),
            ("(InvalidParameter)", "-n a --nodepool-name Upper"),
            (
                "(K8sVersionNotSupported)",
                "-n a --kubernetes-version 1.10.1",
            ),
            ("(InvalidParameter)", "-n a --nodepool-taints nonsense"),
        ] {
            let arguments = arguments.replace("-n -a-", "--name=-a-");
            let outcome =
                world.fails(1, message, &format!("fluyt aks create -g rg {arguments}"))?;
            let is_one_line = outcome.stderr.trim_end().lines().count() == 1;
            ensure!(
                outcome.stdout.is_empty() && is_one_line,
                "{arguments}: {}{}",
                outcome.stdout,
                outcome.stderr
            );
        }
        world.fails(3, "(ResourceGroupNotFound)", "fluyt group show -n nowhere")?;
        world.fails(3, "(ResourceNotFound)", "fluyt aks show -g rg -n a")?;
        world.fails(
            3,
            "(ResourceNotFound)",
            "fluyt aks get-credentials -g rg -n a",
        )?;
        world.fails(
            2,
            "unexpected argument",
            "fluyt aks create -g rg -n a --nonsense",
        )?;
        world.fails(1, "Error", "echo junk >$HOME/junk && { fluyt image import $HOME/junk || { echo Error >&2; exit 1; }; }")?;

        arm(world)?;
        ensure!(
            world
                .json("fluyt aks list -o json")?
                .as_array()
                .is_some_and(Vec::is_empty),
            "a cluster is there"
        );
        let left = traces(world)?;
        ensure!(left.is_empty(), "left behind: {left}");

        world.fails(1, "listen", "fluyt serve")?;
        // The executable must be where that user gets at it.
        world.ok("mkdir -m 755 /run/fluyt/bin && cp $HOME/bin/fluyt /run/fluyt/bin")?;
        world.fails(
            1,
            "must be run as root",
            "setpriv --reuid 65534 --clear-groups /run/fluyt/bin/fluyt serve",
        )?;
        Ok(())
    })
}

/// Requests that no command of ours would send.
fn arm(world: &World) -> anyhow::Result<()> {
    let login = world.json("cat $HOME/.fluyt/credentials")?;
    let text = |key: &str| login[key].as_str().unwrap_or_default().to_owned();
    world.write("ca.pem", &text("ca"))?;
    let cluster = format!(
        "{}/subscriptions/{}/resourceGroups/rg/providers/Microsoft.ContainerService/managedClusters/a",
        text("endpoint"),
        text("subscription")
    );
    let authorization = format!("-H 'authorization: Bearer {}'", text("token"));
    let version = "?api-version=2026-08-01";
    let put = |body: &str| {
        format!(
            "-X PUT -H 'content-type: application/json' -d '{body}' {authorization} '{cluster}{version}'"
        )
    };
    let cases = [
        (401, "AuthenticationFailed", format!("'{cluster}{version}'")),
        (
            401,
            "InvalidAuthenticationToken",
            format!("-H 'authorization: Bearer x' '{cluster}{version}'"),
        ),
        (
            400,
            "MissingApiVersionParameter",
            format!("{authorization} '{cluster}'"),
        ),
        (
            400,
            "InvalidApiVersionParameter",
            format!("{authorization} '{cluster}?api-version=new'"),
        ),
        (400, "InvalidRequestContent", put("{\"location\": ")),
        (
            405,
            "MethodNotAllowed",
            format!("-X POST {authorization} '{cluster}{version}'"),
        ),
        (
            404,
            "InvalidResourceType",
            format!("{authorization} '{}/nonsense{version}'", text("endpoint")),
        ),
    ];
    for (status, code, request) in cases {
        let answer = world.ok(&format!(
            "curl -sS --cacert $HOME/ca.pem -w '\\n%{{http_code}}' {request}"
        ))?;
        let (body, given) = answer.rsplit_once('\n').unwrap_or((&answer, ""));
        let body: Value = serde_json::from_str(body)?;
        ensure!(
            given == status.to_string() && body["error"]["code"] == code,
            "{request}\nwas answered {answer}"
        );
        ensure!(
            body["error"]["message"].is_string(),
            "{request}\nwas answered {answer}"
        );
    }
    for (what, body) in [
        (
            "a mistyped count",
            r#"{"location": "local", "properties": {"agentPoolProfiles": [{"name": "p", "count": "two", "mode": "System"}]}}"#,
        ),
        (
            "no location",
            r#"{"properties": {"agentPoolProfiles": [{"name": "p", "count": 1, "mode": "System"}]}}"#,
        ),
        (
            "no pool",
            r#"{"location": "local", "properties": {"dnsPrefix": "a"}}"#,
        ),
    ] {
        let answer = world.ok(&format!(
            "curl -sS --cacert $HOME/ca.pem -o /dev/null -w '%{{http_code}}' {}",
            put(body)
        ))?;
        ensure!(answer == "400", "{what} was answered {answer}");
    }
    Ok(())
}

#[test]
fn kubernetes() -> anyhow::Result<()> {
    World::with_cluster(1, |world, _service| {
        let existing = world.sh("fluyt aks create -g rg -n demo")?;
        ensure!(
            existing.code == 1 && existing.stderr.contains("already exists"),
            "{}{}",
            existing.stdout,
            existing.stderr
        );

        let pod = |spec: &str| {
            format!(
                "kubectl create --validate=strict -f - <<'END'\n{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {{\"name\": \"bad\"}}, \"spec\": {spec}}}\nEND"
            )
        };
        for (message, line) in [
            ("error parsing", "printf 'a: [1\\nb' | kubectl apply -f -".to_owned()),
            ("unknown field \"spec.nonsense\"", pod(r#"{"nonsense": 1, "containers": [{"name": "a", "image": "b"}]}"#)),
            ("spec.containers", pod(r#"{"containers": []}"#)),
            ("spec.containers[0].name", pod(r#"{"containers": [{"name": "Not a name", "image": "b"}]}"#)),
            ("BadRequest", pod(r#"{"containers": "none"}"#)),
            ("no matches for kind \"Nonsense\"", "printf 'apiVersion: v1\\nkind: Nonsense\\nmetadata: {name: a}' | kubectl create --validate=false -f -".to_owned()),
            ("not found", "kubectl get pod bad".to_owned()),
            ("AlreadyExists", "kubectl create namespace default".to_owned()),
            ("namespaces \"nowhere\" not found", "kubectl -n nowhere create configmap a".to_owned()),
        ] {
            world.fails(1, message, &line)?;
        }
        let server = world.ok("kubectl config view -o jsonpath='{.clusters[0].cluster.server}'")?;
        let status = world.json(&format!("curl -sk {server}/api/v1/secrets"))?;
        ensure!(
            status["kind"] == "Status" && status["status"] == "Failure",
            "{status}"
        );
        let raw = world
            .sh("echo '{\"kind\": ' | kubectl create --raw /api/v1/namespaces/default/pods -f -")?;
        ensure!(
            raw.code == 1 && raw.stderr.contains("BadRequest"),
            "{}",
            raw.stderr
        );
        ensure!(world.ok("kubectl get pods -o name")?.is_empty());

        // An image that cannot be had: said in the container's state and in an event, and it is tried again.
        world.ok("kubectl run absent --image=e2e.invalid/absent:1")?;
        let reason = "kubectl get pod absent -o jsonpath='{.status.containerStatuses[0].state.waiting.reason}'";
        world.until(SOON, reason, |reason| {
            matches!(reason, "ErrImagePull" | "ImagePullBackOff")
        })?;
        world.until(
            SOON,
            "kubectl get events --field-selector reason=Failed,involvedObject.name=absent -o name",
            |e| !e.is_empty(),
        )?;
        let overrides =
            r#"{"spec": {"containers": [{"name": "misnamed", "image": "e2e.local/UPPER:1"}]}}"#;
        world.ok(&format!(
            "kubectl run misnamed --image=a --overrides='{overrides}'"
        ))?;
        world.until(SOON, &reason.replace("absent", "misnamed"), |reason| {
            reason == "InvalidImageName"
        })?;
        // A command that is not there.
        world.ok(
            "kubectl run wordless --image=mcr.fluyt.local/sample-web:v0.1.0 --command -- /nonsense",
        )?;
        let reason = "kubectl get pod wordless -o jsonpath='{.status.containerStatuses[0].state} {.status.containerStatuses[0].lastState}'";
        world.until(SOON, reason, |state| {
            state.contains("StartError") || state.contains("RunContainerError")
        })?;
        world.ok("kubectl delete pods --all --now")?;
        Ok(())
    })
}
