//! `AlwaysPullImages` and `ImagePolicyWebhook`.

use super::*;
use crate::common::pod;
use crate::common::service::Service;

#[tokio::test]
async fn images_are_always_pulled() {
    let pulling = Plugged::start(&["AlwaysPullImages"], json!([]))
        .await
        .with_namespace()
        .await;
    let container =
        |name: &str, policy: &str| json!({"name": name, "image": "i:1", "imagePullPolicy": policy});
    let spec = json!({"containers": [container("c", "IfNotPresent")], "initContainers": [container("i", "Never")]});
    let pulled = made(pulling.api.post(PODS, pod_with("p", spec)).await);
    for list in ["containers", "initContainers"] {
        assert_eq!(
            pulled["spec"][list][0]["imagePullPolicy"], "Always",
            "{list}"
        );
    }
    // A pod that brings no image with it stays as it is.
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    made(
        pulling
            .api
            .patch(&format!("{PODS}/p"), "merge-patch", labels)
            .await,
    );
}

/// A server that asks a kubeconfig's service about images.
async fn asking(kubeconfig: &str, default_allow: bool) -> Plugged {
    let policy =
        json!({"kubeConfigFile": kubeconfig, "retryBackoff": -1, "defaultAllow": default_allow});
    let configuration = json!({"imagePolicy": policy});
    let plugins = json!([{"name": "ImagePolicyWebhook", "configuration": configuration}]);
    let asking = Plugged::start(&["ImagePolicyWebhook"], plugins).await;
    asking.with_namespace().await
}

fn with_image(name: &str, image: &str) -> Value {
    pod_with(name, json!({"containers": [{"name": "c", "image": image}]}))
}

#[tokio::test]
async fn a_service_judges_images() {
    let service = Service::start(|_, review| {
        let image = review["spec"]["containers"][0]["image"].as_str().unwrap();
        let status = match image {
            "good" => json!({"allowed": true, "auditAnnotations": {"seen": "yes"}}),
            "bad" => json!({"allowed": false, "reason": "rotten"}),
            _ => json!({"allowed": false}),
        };
        (200, json!({"apiVersion": "imagepolicy.k8s.io/v1alpha1", "kind": "ImageReview", "status": status}))
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = service.kubeconfig(&directory);
    let asking = asking(kubeconfig.to_str().unwrap(), false).await;
    let api = &asking.api;
    let mut good = with_image("good", "good");
    good["metadata"]["annotations"] = json!({"x.image-policy.k8s.io/ticket": "1", "other": "2"});
    made(api.post(PODS, good).await);
    let key = "imagepolicywebhook.image-policy.k8s.io/seen";
    assert_eq!(asking.annotations()[key], "yes");
    let (path, review) = service.received.lock()[0].clone();
    assert_eq!(path, "/hook");
    assert_eq!(
        review,
        json!({"apiVersion": "imagepolicy.k8s.io/v1alpha1", "kind": "ImageReview", "metadata": {}, "status": {"allowed": false},
            "spec": {"containers": [{"image": "good"}], "namespace": "n", "annotations": {"x.image-policy.k8s.io/ticket": "1"}}})
    );
    for (image, why) in [
        (
            "bad",
            "image policy webhook backend denied one or more images: rotten",
        ),
        ("odd", "one or more images rejected by webhook backend"),
    ] {
        let why = format!("pods {image:?} is forbidden: {why}");
        assert_refused(api.post(PODS, with_image(image, image)).await, 403, &why);
    }
    // What has been said about the same images is remembered.
    let asked = service.count();
    assert_refused(
        api.post(PODS, with_image("again", "odd")).await,
        403,
        "pods \"again\" is forbidden: one or more images rejected by webhook backend",
    );
    assert_eq!(service.count(), asked);
    made(
        api.post(
            &PODS.replace("pods", "configmaps"),
            json!({"metadata": {"name": "m"}}),
        )
        .await,
    );
    assert_eq!(service.count(), asked);
}

#[tokio::test]
async fn without_an_answer_the_default_decides() {
    let service = Service::start(|_, _| (418, json!({}))).await;
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = service.kubeconfig(&directory);
    let strict = asking(kubeconfig.to_str().unwrap(), false).await;
    let refused = strict.api.post(PODS, pod("p")).await;
    assert_refused(
        refused,
        403,
        "pods \"p\" is forbidden: the server responded with the status code 418 but did not return more information",
    );
    let lax = asking(kubeconfig.to_str().unwrap(), true).await;
    made(lax.api.post(PODS, pod("p")).await);
    let key = "imagepolicywebhook.image-policy.k8s.io/failed-open";
    assert_eq!(lax.annotations()[key], "true");
    assert_eq!(service.count(), 2);
}
