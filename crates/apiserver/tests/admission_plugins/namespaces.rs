//! `NamespaceAutoProvision` and `NamespaceExists`.

use super::*;
use crate::common::pod;

const ABSENT: &str = "/api/v1/namespaces/absent/configmaps";

#[tokio::test]
async fn namespaces_are_provided_where_something_is_created() {
    let providing = Plugged::start(&["NamespaceAutoProvision"], json!([])).await;
    let api = &providing.api;
    let map = json!({"metadata": {"name": "m"}});
    let tried = api.post(&format!("{ABSENT}?dryRun=All"), map.clone()).await;
    assert_refused(tried, 404, "namespaces \"absent\" not found");
    made(api.post(ABSENT, map.clone()).await);
    let namespace = made(api.get("/api/v1/namespaces/absent").await);
    assert_eq!(namespace["status"]["phase"], "Active");
    made(
        api.post(ABSENT, json!({"metadata": {"name": "another"}}))
            .await,
    );
    // A name that no namespace can have is one that none gets.
    let (status, answer) = api.post("/api/v1/namespaces/A_B/configmaps", map).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
}

#[tokio::test]
async fn nothing_is_written_where_there_is_no_namespace() {
    let start = async |enabled: &'static [&'static str]| {
        Api::configured(|config, _| {
            config.admission.enabled = enabled.iter().map(|p| (*p).to_owned()).collect();
            config.admission.disabled = vec!["NamespaceLifecycle".into()];
        })
        .await
    };
    let map = || json!({"metadata": {"name": "m"}});
    let careless = start(&[]).await;
    made(careless.post(ABSENT, map()).await);
    let careful = start(&["NamespaceExists"]).await;
    let refused = careful.post(ABSENT, map()).await;
    assert_refused(refused, 404, "namespaces \"absent\" not found");
    careful.namespace().await;
    made(careful.post(PODS, pod("p")).await);
}
