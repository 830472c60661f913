//! The flow schemas and priority levels that every cluster has. The mandatory ones have a fixed spec; the suggested ones
//! are an administrator's to change.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::meta;

/// With this annotation the server keeps an object's spec as it suggests it.
pub const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// What must match no other object, and what catches the rest.
pub const EXEMPT: &str = "exempt";
pub const CATCH_ALL: &str = "catch-all";

/// Bits of entropy that dealing queues may take.
const MAX_ENTROPY: f64 = 60.0;

/// The objects of one kind.
#[derive(Debug)]
pub struct Bootstrap {
    pub mandatory: Vec<Value>,
    pub suggested: Vec<Value>,
}

impl Bootstrap {
    /// The fixed spec of a mandatory object.
    #[must_use]
    pub fn fixed_spec(&self, name: &str) -> Option<&Value> {
        let object = self.mandatory.iter().find(|o| meta::name(o) == name)?;
        Some(&object["spec"])
    }
}

pub static PRIORITY_LEVELS: LazyLock<Bootstrap> = LazyLock::new(|| Bootstrap {
    mandatory: vec![
        object(
            EXEMPT,
            json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}),
        ),
        limited(CATCH_ALL, 5, 0, None),
    ],
    suggested: vec![
        limited("system", 30, 33, Some((64, 6))),
        limited("node-high", 40, 25, Some((64, 6))),
        limited("leader-election", 10, 0, Some((16, 4))),
        limited("workload-high", 40, 50, Some((128, 6))),
        limited("workload-low", 100, 90, Some((128, 6))),
        limited("global-default", 20, 50, Some((128, 6))),
    ],
});

pub static FLOW_SCHEMAS: LazyLock<Bootstrap> = LazyLock::new(|| {
    let masters = || groups(&["system:masters"]);
    let everybody = || groups(&["system:unauthenticated", "system:authenticated"]);
    let nodes = || groups(&["system:nodes"]);
    let user = |name: &str| json!([{"kind": "User", "user": {"name": name}}]);
    let kube_system = json!({"kind": "ServiceAccount",
        "serviceAccount": {"name": "*", "namespace": "kube-system"}});
    let leaders = json!([
        {"kind": "User", "user": {"name": "system:kube-controller-manager"}},
        {"kind": "User", "user": {"name": "system:kube-scheduler"}},
        kube_system,
    ]);
    let leases = |verbs: &[&str]| resources(verbs, "coordination.k8s.io", &["leases"], false);
    let node_rules = json!([
        resources(&["*"], "", &["nodes", "nodes/status"], true),
        leases(&["*"])
    ]);
    let probes = json!({"subjects": everybody(),
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]});
    Bootstrap {
        mandatory: vec![
            schema(EXEMPT, EXEMPT, 1, "", anything(masters())),
            schema(
                CATCH_ALL,
                CATCH_ALL,
                10_000,
                "ByUser",
                anything(everybody()),
            ),
        ],
        suggested: vec![
            schema("system-nodes", "system", 500, "ByUser", anything(nodes())),
            schema(
                "system-node-high",
                "node-high",
                400,
                "ByUser",
                json!({"subjects": nodes(), "resourceRules": node_rules}),
            ),
            schema("probes", EXEMPT, 2, "", probes),
            schema(
                "system-leader-election",
                "leader-election",
                100,
                "ByUser",
                json!({"subjects": leaders, "resourceRules": [leases(&["get", "create", "update"])]}),
            ),
            schema(
                "kube-controller-manager",
                "workload-high",
                800,
                "ByNamespace",
                anything(user("system:kube-controller-manager")),
            ),
            schema(
                "kube-scheduler",
                "workload-high",
                800,
                "ByNamespace",
                anything(user("system:kube-scheduler")),
            ),
            schema(
                "kube-system-service-accounts",
                "workload-high",
                900,
                "ByNamespace",
                anything(json!([kube_system])),
            ),
            schema(
                "service-accounts",
                "workload-low",
                9000,
                "ByUser",
                anything(groups(&["system:serviceaccounts"])),
            ),
            schema(
                "global-default",
                "global-default",
                9900,
                "ByUser",
                anything(everybody()),
            ),
        ],
    }
});

fn object(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec})
}

/// A limited level; with queues their number and the hand's size, else it rejects.
fn limited(name: &str, shares: i64, lendable: i64, queues: Option<(i64, i64)>) -> Value {
    let response = match queues {
        Some((queues, hand)) => json!({"type": "Queue",
            "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50}}),
        None => json!({"type": "Reject"}),
    };
    let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
    object(name, json!({"type": "Limited", "limited": limited}))
}

fn schema(name: &str, level: &str, precedence: i64, distinguisher: &str, rule: Value) -> Value {
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rule],
    });
    if !distinguisher.is_empty() {
        spec["distinguisherMethod"] = json!({"type": distinguisher});
    }
    object(name, spec)
}

fn groups(names: &[&str]) -> Value {
    let subject = |name: &&str| json!({"kind": "Group", "group": {"name": name}});
    names.iter().map(subject).collect::<Vec<_>>().into()
}

fn resources(verbs: &[&str], group: &str, resources: &[&str], cluster: bool) -> Value {
    let mut rule =
        json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster {
        rule["clusterScope"] = true.into();
    }
    rule
}

fn anything(subjects: Value) -> Value {
    json!({
        "subjects": subjects,
        "resourceRules": [resources(&["*"], "*", &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    })
}

/// Whether hands of this size can be dealt with the bits of a hash.
#[must_use]
pub fn can_deal(queues: f64, hand: f64) -> bool {
    (queues.log2() * hand).ceil() <= MAX_ENTROPY
}
