//! Groups of pods, and the jobs whose pods are in them.

use fluyt_apiserver::{Feature, Features, Served};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::{Api, pod};

const GROUPS: &str = "/apis/scheduling.k8s.io/v1alpha2/namespaces/n/podgroups";
const JOBS: &str = "/apis/batch/v1/namespaces/n/jobs";
const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

async fn api() -> Api {
    let features = Features::default().with(Feature::GenericWorkload);
    let served = Served::configured("scheduling.k8s.io/v1alpha2=true", features).unwrap();
    let api = Api::configured(|config, _| {
        config.features = features;
        config.served = served;
    })
    .await;
    api.namespace().await;
    api
}

async fn created(api: &Api, path: &str, object: Value) -> Value {
    let (status, made) = api.post(path, object).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    made
}

fn group(name: &str, policy: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"schedulingPolicy": policy}})
}

fn gang() -> Value {
    json!({"gang": {"minCount": 2}})
}

#[tokio::test]
async fn groups_stay_until_they_are_let_go() {
    let api = api().await;
    let made = created(&api, GROUPS, group("g", gang())).await;
    assert_eq!(made["metadata"]["finalizers"], json!([FINALIZER]));
    let mut own = group("own", gang());
    own["metadata"]["finalizers"] = json!(["example.com/a", FINALIZER]);
    let made = created(&api, GROUPS, own).await;
    let finalizers = &made["metadata"]["finalizers"];
    assert_eq!(*finalizers, json!(["example.com/a", FINALIZER]));
    let path = format!("{GROUPS}/g");
    api.call(Method::DELETE, &path, Value::Null).await;
    let (_, leaving) = api.get(&path).await;
    assert!(leaving["metadata"]["deletionTimestamp"].is_string());
    let nothing = json!({"metadata": {"finalizers": null}});
    api.patch(&path, "merge-patch", nothing).await;
    assert_eq!(api.get(&path).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn pods_say_of_which_group_they_are_only_where_there_are_groups() {
    let mut grouped = pod("p");
    grouped["spec"]["schedulingGroup"] = json!({"podGroupName": "g"});
    let path = "/api/v1/namespaces/n/pods";
    let made = created(&api().await, path, grouped.clone()).await;
    assert_eq!(made["spec"]["schedulingGroup"]["podGroupName"], "g");
    let without = Api::start().await;
    without.namespace().await;
    let made = created(&without, path, grouped).await;
    assert!(made["spec"]["schedulingGroup"].is_null());
}

#[tokio::test]
async fn jobs_of_gangs_keep_their_parallelism() {
    let api = api().await;
    created(&api, GROUPS, group("gang", gang())).await;
    created(&api, GROUPS, group("basic", json!({"basic": {}}))).await;
    let job = |name: &str, group: Option<&str>| {
        let mut job = json!({"metadata": {"name": name}, "spec": {"parallelism": 2, "suspend": true,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        if let Some(group) = group {
            job["spec"]["template"]["spec"]["schedulingGroup"] = json!({"podGroupName": group});
        }
        job
    };
    let more = json!({"spec": {"parallelism": 3}});
    let refused = |name: &str, group: &str| {
        format!(
            "jobs.batch \"{name}\" is forbidden: cannot change parallelism for a Job referencing gang-scheduled PodGroup \"{group}\""
        )
    };
    let scaled = async |name: &str, change: &Value| {
        let path = format!("{JOBS}/{name}");
        let (status, body) = api.patch(&path, "merge-patch", change.clone()).await;
        (status.as_u16(), body["message"].as_str().map(str::to_owned))
    };
    created(&api, JOBS, job("of-gang", Some("gang"))).await;
    let why = refused("of-gang", "gang");
    assert_eq!(scaled("of-gang", &more).await, (403, Some(why)));
    let other = json!({"spec": {"activeDeadlineSeconds": 60}});
    assert_eq!(scaled("of-gang", &other).await, (200, None));
    created(&api, JOBS, job("of-basic", Some("basic"))).await;
    created(&api, JOBS, job("of-none", Some("none"))).await;
    let owner = created(&api, JOBS, job("owner", None)).await;
    for name in ["of-basic", "of-none", "owner"] {
        assert_eq!(scaled(name, &more).await, (200, None), "{name}");
    }
    // A group that was made for a job whose template does not name it.
    let mut own = group("own", gang());
    own["metadata"]["ownerReferences"] = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "owner",
        "uid": owner["metadata"]["uid"], "controller": true}]);
    created(&api, GROUPS, own).await;
    let fewer = json!({"spec": {"parallelism": 1}});
    let why = refused("owner", "own");
    assert_eq!(scaled("owner", &fewer).await, (403, Some(why)));
}
