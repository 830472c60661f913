//! Workloads.

use serde_json::Value;

use super::{
    AGE, Column, NAME, age, column, human_duration, items, number, or, selector, string, wide,
};

fn joined(object: &Value, pointer: &str, field: &str) -> Value {
    items(object, pointer)
        .filter_map(|c| c[field].as_str())
        .collect::<Vec<_>>()
        .join(",")
        .into()
}

const TEMPLATE: &str = "/spec/template/spec/containers";
const CONTAINERS: Column = wide("Containers", "string", |o| joined(o, TEMPLATE, "name"));
const IMAGES: Column = wide("Images", "string", |o| joined(o, TEMPLATE, "image"));
const SELECTOR: Column = wide("Selector", "string", |o| selector(o, "/spec/selector"));

pub(super) static DEPLOYMENT: &[Column] = &[
    NAME,
    column("Ready", "string", |o| {
        format!(
            "{}/{}",
            number(o, "/status/readyReplicas"),
            number(o, "/spec/replicas")
        )
        .into()
    }),
    column("Up-to-date", "string", |o| {
        number(o, "/status/updatedReplicas").into()
    }),
    column("Available", "string", |o| {
        number(o, "/status/availableReplicas").into()
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) static REPLICA_SET: &[Column] = &[
    NAME,
    column("Desired", "integer", |o| number(o, "/spec/replicas").into()),
    column("Current", "integer", |o| {
        number(o, "/status/replicas").into()
    }),
    column("Ready", "integer", |o| {
        number(o, "/status/readyReplicas").into()
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) static REPLICATION_CONTROLLER: &[Column] = REPLICA_SET;

pub(super) static DAEMON_SET: &[Column] = &[
    NAME,
    column("Desired", "integer", |o| {
        number(o, "/status/desiredNumberScheduled").into()
    }),
    column("Current", "integer", |o| {
        number(o, "/status/currentNumberScheduled").into()
    }),
    column("Ready", "integer", |o| {
        number(o, "/status/numberReady").into()
    }),
    column("Up-to-date", "integer", |o| {
        number(o, "/status/updatedNumberScheduled").into()
    }),
    column("Available", "integer", |o| {
        number(o, "/status/numberAvailable").into()
    }),
    column("Node Selector", "string", |o| {
        selector(o, "/spec/template/spec/nodeSelector")
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) static STATEFUL_SET: &[Column] = &[
    NAME,
    column("Ready", "string", |o| {
        format!(
            "{}/{}",
            number(o, "/status/readyReplicas"),
            number(o, "/spec/replicas")
        )
        .into()
    }),
    AGE,
    CONTAINERS,
    IMAGES,
];

pub(super) static CONTROLLER_REVISION: &[Column] = &[
    NAME,
    column("Controller", "string", |o| {
        let owner = items(o, "/metadata/ownerReferences").find(|r| r["controller"] == true);
        owner.map_or("<none>".into(), |r| {
            let group = r["apiVersion"]
                .as_str()
                .and_then(|v| v.split_once('/'))
                .map_or("", |(g, _)| g);
            let kind = r["kind"].as_str().unwrap_or_default().to_lowercase();
            format!("{kind}.{group}/{}", r["name"].as_str().unwrap_or_default()).into()
        })
    }),
    column("Revision", "string", |o| number(o, "/revision").into()),
    AGE,
];

pub(super) static POD_TEMPLATE: &[Column] = &[
    NAME,
    column("Containers", "string", |o| {
        joined(o, "/template/spec/containers", "name")
    }),
    column("Images", "string", |o| {
        joined(o, "/template/spec/containers", "image")
    }),
    column("Pod Labels", "string", |o| {
        selector(o, "/template/metadata/labels")
    }),
];

pub(super) static JOB: &[Column] = &[
    NAME,
    column("Status", "string", |o| job_status(o).into()),
    column("Completions", "string", |o| {
        let done = number(o, "/status/succeeded");
        match (
            o["spec"]["completions"].as_i64(),
            o["spec"]["parallelism"].as_i64(),
        ) {
            (Some(wanted), _) => format!("{done}/{wanted}").into(),
            (None, Some(parallel)) if parallel > 1 => format!("{done}/1 of {parallel}").into(),
            _ => format!("{done}/1").into(),
        }
    }),
    column("Duration", "string", |o| {
        let time = |p: &str| o.pointer(p)?.as_str()?.parse::<jiff::Timestamp>().ok();
        match (time("/status/startTime"), time("/status/completionTime")) {
            (None, _) => "".into(),
            (Some(start), end) => {
                let end = end.unwrap_or_else(jiff::Timestamp::now);
                human_duration(end.as_second() - start.as_second()).into()
            }
        }
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn job_status(job: &Value) -> &'static str {
    let is = |ty: &str| {
        items(job, "/status/conditions").any(|c| c["type"] == ty && c["status"] == "True")
    };
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if job["metadata"]["deletionTimestamp"].is_string() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

pub(super) static CRON_JOB: &[Column] = &[
    NAME,
    column("Schedule", "string", |o| string(o, "/spec/schedule").into()),
    column("Timezone", "string", |o| {
        or(string(o, "/spec/timeZone"), "<none>")
    }),
    column("Suspend", "boolean", |o| {
        if o["spec"]["suspend"] == true {
            "True".into()
        } else {
            "False".into()
        }
    }),
    column("Active", "integer", |o| {
        items(o, "/status/active").count().into()
    }),
    column("Last Schedule", "string", |o| {
        let last = &o["status"]["lastScheduleTime"];
        if last.is_string() {
            age(last).into()
        } else {
            "<none>".into()
        }
    }),
    AGE,
    wide("Containers", "string", |o| {
        joined(o, "/spec/jobTemplate/spec/template/spec/containers", "name")
    }),
    wide("Images", "string", |o| {
        joined(
            o,
            "/spec/jobTemplate/spec/template/spec/containers",
            "image",
        )
    }),
    wide("Selector", "string", |o| {
        selector(o, "/spec/jobTemplate/spec/selector")
    }),
];

pub(super) static HORIZONTAL_POD_AUTOSCALER: &[Column] = &[
    NAME,
    column("Reference", "string", |o| {
        format!(
            "{}/{}",
            string(o, "/spec/scaleTargetRef/kind"),
            string(o, "/spec/scaleTargetRef/name")
        )
        .into()
    }),
    column("Targets", "string", targets),
    column("MinPods", "string", |o| {
        or(string(o, "/spec/minReplicas"), "<unset>")
    }),
    column("MaxPods", "string", |o| {
        number(o, "/spec/maxReplicas").into()
    }),
    column("Replicas", "string", |o| {
        number(o, "/status/currentReplicas").into()
    }),
    AGE,
];

/// Metrics that are shown; of more it is said how many.
const SHOWN_METRICS: usize = 2;

fn targets(hpa: &Value) -> Value {
    let current: Vec<&Value> = items(hpa, "/status/currentMetrics").collect();
    let metrics = items(hpa, "/spec/metrics").enumerate();
    let list: Vec<String> = metrics
        .map(|(i, metric)| target(metric, current.get(i).copied().unwrap_or(&Value::Null)))
        .collect();
    let shown = list.iter().take(SHOWN_METRICS).cloned().collect::<Vec<_>>();
    match list.len().saturating_sub(SHOWN_METRICS) {
        0 => or(shown.join(", "), "<none>"),
        more => format!("{} + {more} more...", shown.join(", ")).into(),
    }
}

/// What a metric is, and what it should be.
fn target(metric: &Value, status: &Value) -> String {
    const SOURCES: [(&str, &str); 5] = [
        ("External", "external"),
        ("Object", "object"),
        ("Pods", "pods"),
        ("Resource", "resource"),
        ("ContainerResource", "containerResource"),
    ];
    let ty = metric["type"].as_str().unwrap_or_default();
    let Some((_, field)) = SOURCES.iter().find(|(name, _)| *name == ty) else {
        return "<unknown type>".into();
    };
    let (wanted, now) = (&metric[*field]["target"], &status[*field]["current"]);
    let of = |values: &Value, field: &str, unit: &str, otherwise: &str| match &values[field] {
        Value::Null => otherwise.to_owned(),
        Value::String(text) => text.clone(),
        number => format!("{number}{unit}"),
    };
    let pair = |field: &str, unit: &str, otherwise: &str| {
        let now = of(now, field, unit, "<unknown>");
        format!("{now}/{}", of(wanted, field, unit, otherwise))
    };
    let is_average = !wanted["averageValue"].is_null();
    match *field {
        "pods" => pair("averageValue", "", ""),
        "external" | "object" if is_average => format!("{} (avg)", pair("averageValue", "", "")),
        "external" | "object" => pair("value", "", ""),
        source => {
            let name = metric[source]["name"].as_str().unwrap_or_default();
            let pair = match is_average {
                true => pair("averageValue", "", ""),
                false => pair("averageUtilization", "%", "<auto>"),
            };
            format!("{name}: {pair}")
        }
    }
}

pub(super) static POD_DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    column("Min Available", "string", |o| {
        or(string(o, "/spec/minAvailable"), "N/A")
    }),
    column("Max Unavailable", "string", |o| {
        or(string(o, "/spec/maxUnavailable"), "N/A")
    }),
    column("Allowed Disruptions", "integer", |o| {
        number(o, "/status/disruptionsAllowed").into()
    }),
    AGE,
];
