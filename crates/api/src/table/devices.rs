//! The kinds of `resource.k8s.io`.

use serde_json::Value;

use super::{AGE, Column, NAME, age, column, items, number, string};
use crate::meta;

pub(super) static RESOURCE_CLAIM: &[Column] =
    &[NAME, column("State", "string", |o| state(o).into()), AGE];

pub(super) static RESOURCE_SLICE: &[Column] = &[
    NAME,
    column("Node", "string", |o| string(o, "/spec/nodeName").into()),
    column("Driver", "string", |o| string(o, "/spec/driver").into()),
    column("Pool", "string", |o| string(o, "/spec/pool/name").into()),
    AGE,
];

pub(super) static DEVICE_TAINT_RULE: &[Column] = &[
    NAME,
    column("Key", "string", |o| string(o, "/spec/taint/key").into()),
    column("Value", "string", |o| string(o, "/spec/taint/value").into()),
    column("Effect", "string", |o| {
        string(o, "/spec/taint/effect").into()
    }),
    column("TimeAdded", "string", |o| {
        let added = &o["spec"]["taint"]["timeAdded"];
        if added.is_null() {
            "".into()
        } else {
            age(added).into()
        }
    }),
    AGE,
];

pub(super) static RESOURCE_POOL_STATUS_REQUEST: &[Column] = &[
    NAME,
    column("Driver", "string", |o| string(o, "/spec/driver").into()),
    column("Total", "string", |o| sum(o, "totalDevices")),
    column("Available", "string", |o| sum(o, "availableDevices")),
    column("Allocated", "string", |o| sum(o, "allocatedDevices")),
    column("Unavailable", "string", |o| sum(o, "unavailableDevices")),
    column("Errors", "string", |o| {
        counted(o, |o| {
            items(o, "/status/pools")
                .filter(|pool| !pool["validationError"].is_null())
                .count()
                .to_string()
        })
    }),
    column("Pools", "integer", |o| {
        number(o, "/status/poolCount").into()
    }),
    column("Status", "string", |o| {
        let Some((ty, _)) = outcome(o) else {
            return "Pending".into();
        };
        let (all, shown) = (
            number(o, "/status/poolCount"),
            items(o, "/status/pools").count(),
        );
        if ty == "Complete" && usize::try_from(all).is_ok_and(|all| all > shown) {
            return format!("Complete ({shown}/{all} pools)").into();
        }
        ty.into()
    }),
    column("Completed", "string", |o| match outcome(o) {
        Some(("Complete", condition)) => age(&condition["lastTransitionTime"]).into(),
        _ => "<none>".into(),
    }),
];

fn state(claim: &Value) -> String {
    let is_deleted = meta::is_terminating(claim);
    let mut states = Vec::new();
    if is_deleted {
        states.push("deleted");
    }
    if claim["status"]["allocation"].is_null() {
        if !is_deleted {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        if items(claim, "/status/reservedFor").next().is_some() {
            states.push("reserved");
        }
    }
    states.join(",")
}

/// How a request for the state of pools has ended.
fn outcome(request: &Value) -> Option<(&'static str, &Value)> {
    let holds = |condition: &&Value| condition["status"] == "True";
    items(request, "/status/conditions")
        .filter(holds)
        .find_map(|condition| match condition["type"].as_str()? {
            "Complete" => Some(("Complete", condition)),
            "Failed" => Some(("Failed", condition)),
            _ => None,
        })
}

/// What is counted once the request has an answer that is none of failure.
fn counted(request: &Value, count: impl Fn(&Value) -> String) -> Value {
    let failed = matches!(outcome(request), Some(("Failed", _)));
    if request["status"].is_null() || failed {
        "-".into()
    } else {
        count(request).into()
    }
}

fn sum(request: &Value, field: &str) -> Value {
    counted(request, |request| {
        let counts = items(request, "/status/pools").filter_map(|pool| pool[field].as_i64());
        counts.sum::<i64>().to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::super::cells;
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_have_a_state() {
        let claim = |status: Value| cells(RESOURCE_CLAIM, &json!({"status": status}))[1].clone();
        assert_eq!(claim(json!({})), "pending");
        assert_eq!(
            claim(json!({"allocation": {}, "reservedFor": [{}]})),
            "allocated,reserved"
        );
    }

    #[test]
    fn pools_are_summed_up() {
        let mut request = json!({"metadata": {"name": "a"}, "spec": {"driver": "d"}});
        let row = cells(RESOURCE_POOL_STATUS_REQUEST, &request);
        assert_eq!(
            row,
            json!(["a", "d", "-", "-", "-", "-", "-", 0, "Pending", "<none>"])
        );
        request["status"] = json!({"poolCount": 3, "pools": [{"totalDevices": 2}, {"totalDevices": 3, "validationError": "x"}],
            "conditions": [{"type": "Complete", "status": "True"}]});
        let row = cells(RESOURCE_POOL_STATUS_REQUEST, &request);
        assert_eq!(
            (&row[2], &row[6], &row[8]),
            (&json!("5"), &json!("1"), &json!("Complete (2/3 pools)"))
        );
    }
}
