//! What of the metrics is shown.

use fluyt_apiserver::Exposition;
use http::Request;
use http_body_util::Full;

use crate::common::Api;
use crate::flags::{given, refused_or};

async fn metrics(api: &Api) -> String {
    let mut request = Request::get("/metrics").body(Full::default()).unwrap();
    request.extensions_mut().insert(api.user.clone());
    let (_, _, body) = api.send(request).await;
    body.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn metrics_are_left_out_and_labels_are_held_together() {
    let api = Api::configured(|config, _| {
        config.metrics = given(&[
            "--disabled-metrics=kubernetes_build_info,etcd_requests_total",
            "--allow-metric-labels=apiserver_request_total,verb=LIST",
        ]);
    })
    .await;
    for path in ["/api/v1/namespaces", "/api/v1/namespaces/default"] {
        api.get(path).await;
    }
    let shown = metrics(&api).await;
    for name in ["kubernetes_build_info", "etcd_requests_total"] {
        assert!(!shown.contains(name), "{name}");
    }
    let verbs: Vec<&str> = shown
        .lines()
        .filter(|line| line.starts_with("apiserver_request_total{"))
        .filter_map(|line| line.split("verb=\"").nth(1)?.split('"').next())
        .collect();
    assert!(
        verbs.contains(&"LIST") && verbs.contains(&"unexpected"),
        "{verbs:?}"
    );
    assert!(!verbs.contains(&"GET"), "{verbs:?}");

    let error = refused_or::<Exposition>(&["--disabled-metrics=a-b"]).unwrap_err();
    assert!(
        error.contains("must be fully qualified metric names matching"),
        "{error}"
    );
    let error = refused_or::<Exposition>(&["--allow-metric-labels=a=b"]).unwrap_err();
    assert!(
        error.contains("must have keys with format `metricName,labelName`"),
        "{error}"
    );
}

#[tokio::test]
async fn hidden_metrics_are_shown_on_request() {
    for (flags, shown) in [
        (&[][..], false),
        (&["--show-hidden-metrics-for-version=1.35"], true),
    ] {
        let api = Api::configured(|config, _| config.metrics = given(flags)).await;
        let metrics = metrics(&api).await;
        for line in [
            "apiserver_flowcontrol_request_concurrency_limit{priority_level=\"exempt\"} ",
            "apiserver_flowcontrol_request_concurrency_in_use{",
        ] {
            assert_eq!(metrics.contains(line), shown, "{line}");
        }
        // How large the store is everybody may know.
        let size = metrics.lines().find_map(|line| {
            line.strip_prefix("apiserver_storage_size_bytes{storage_cluster_id=\"etcd-0\"} ")
        });
        assert!(size.unwrap().parse::<u64>().unwrap() > 0);
    }
    let error = refused_or::<Exposition>(&["--show-hidden-metrics-for-version=1.36"]).unwrap_err();
    assert!(
        error.contains("must be omitted or have the value '1.35'"),
        "{error}"
    );
}

#[tokio::test]
async fn objects_are_counted_unless_that_is_off() {
    for (flags, counted) in [
        (&[][..], true),
        (&["--etcd-count-metric-poll-period=0"], false),
    ] {
        let api = Api::configured(|config, _| config.etcd_checks = given(flags)).await;
        let shown = metrics(&api).await;
        let line = "apiserver_storage_objects{resource=\"namespaces\"} 4";
        assert_eq!(shown.contains(line), counted);
    }
}
