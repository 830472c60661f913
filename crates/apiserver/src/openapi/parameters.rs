//! Parameters of operations.

use serde_json::{Value, json};

/// Name, type, and what it does.
pub type Parameter = (&'static str, &'static str, &'static str);

const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "Whether the request shall stop short of storing anything. The one value is All: every stage is processed.",
);
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "Who comes to own the fields that this request sets: up to 128 printable characters.",
);
const APPLY_FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "Who comes to own the fields that this request sets: up to 128 printable characters. Apply requests must say it.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: Ignore drops them, Warn drops them and says so in a warning (the default), Strict refuses the request.",
);
const FORCE: Parameter = (
    "force",
    "boolean",
    "Whether an apply request takes over fields that others own. For apply requests only.",
);

pub const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
pub const PATCH: &[Parameter] = &[DRY_RUN, APPLY_FIELD_MANAGER, FIELD_VALIDATION, FORCE];
pub const DELETE: &[Parameter] = &[
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "Seconds until the object is deleted: not negative, and zero means at once. The kind has a default.",
    ),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Whether an object that cannot be read from the store shall be removed all the same, without finalizers or preconditions. This may break the cluster.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Deprecated, use propagationPolicy: whether dependents are orphaned. Only one of the two may be set.",
    ),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents: Orphan leaves them, Background deletes them afterwards, Foreground deletes them first. The default is the kind's and that of the finalizers that are set.",
    ),
];
pub const LIST: &[Parameter] = &[
    (
        "allowWatchBookmarks",
        "boolean",
        "Whether a watch may send events of type BOOKMARK, which tell how far it has got.",
    ),
    (
        "continue",
        "string",
        "Goes on with a list that a limit has cut, by the token of its last chunk. Everything else must be as in the first request. A token that is too old is answered with 410 and another one that goes on inconsistently.",
    ),
    (
        "fieldSelector",
        "string",
        "Restricts the list to objects with these fields. Everything by default.",
    ),
    (
        "labelSelector",
        "string",
        "Restricts the list to objects with these labels. Everything by default.",
    ),
    (
        "limit",
        "integer",
        "How many objects to return at most. When there are more, the list's metadata has a token to continue with.",
    ),
    (
        "resourceVersion",
        "string",
        "The version that the answer is at least, or exactly, as new as; see resourceVersionMatch.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion is meant: NotOlderThan or Exact.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Whether a watch begins with an event for every present object and a bookmark after them. Needs resourceVersionMatch=NotOlderThan.",
    ),
    (
        "shardSelector",
        "string",
        "Restricts the list to objects whose hash of a field is in certain ranges, as an expression of shardRange() joined by ||. Alpha.",
    ),
    (
        "timeoutSeconds",
        "integer",
        "After how many seconds a list or watch ends.",
    ),
    (
        "watch",
        "boolean",
        "Whether to answer with a stream of changes, instead of a list.",
    ),
];

pub const PRETTY: Parameter = (
    "pretty",
    "string",
    "If 'true', the answer is indented; by default for browsers, curl and wget.",
);
const LOG: &[Parameter] = &[
    (
        "container",
        "string",
        "Whose log, if the pod has more than one container.",
    ),
    (
        "follow",
        "boolean",
        "Whether to go on with what is logged later.",
    ),
    (
        "insecureSkipTLSVerifyBackend",
        "boolean",
        "Whether to read from a kubelet whose certificate cannot be verified. What it sends may be forged.",
    ),
    (
        "limitBytes",
        "integer",
        "How many bytes to read at most; the last line may be cut.",
    ),
    PRETTY,
    (
        "previous",
        "boolean",
        "Whether to read the log of the container's previous run.",
    ),
    (
        "sinceSeconds",
        "integer",
        "How many seconds back the log begins.",
    ),
    (
        "stream",
        "string",
        "Which stream: All (the default), Stdout or Stderr.",
    ),
    (
        "tailLines",
        "integer",
        "How many lines back the log begins.",
    ),
    (
        "timestamps",
        "boolean",
        "Whether every line begins with its time.",
    ),
];
const ATTACH: &[Parameter] = &[
    (
        "container",
        "string",
        "Which container, if the pod has more than one.",
    ),
    ("stderr", "boolean", "Whether to receive standard error."),
    ("stdin", "boolean", "Whether to send standard input."),
    ("stdout", "boolean", "Whether to receive standard output."),
    ("tty", "boolean", "Whether there is a terminal."),
];
const EXEC: &[Parameter] = &[
    (
        "command",
        "string",
        "The program and its arguments, one per parameter. No shell is involved.",
    ),
    ATTACH[0],
    ATTACH[1],
    ATTACH[2],
    ATTACH[3],
    ATTACH[4],
];
const PORT_FORWARD: &[Parameter] = &[("ports", "integer", "The ports, for WebSockets.")];
const PROXY: &[Parameter] = &[("path", "string", "The path behind the proxy.")];

/// The options of a connection, or of a log, by the kind of options.
#[must_use]
pub fn options(kind: &str) -> &'static [Parameter] {
    match kind {
        "PodLogOptions" => LOG,
        "PodAttachOptions" => ATTACH,
        "PodExecOptions" => EXEC,
        "PodPortForwardOptions" => PORT_FORWARD,
        _ => PROXY,
    }
}

/// A parameter of the query.
#[must_use]
pub fn query((name, of, description): &Parameter) -> Value {
    json!({
        "name": name, "in": "query", "description": description,
        "schema": {"type": of, "uniqueItems": true},
    })
}

/// A part of the path.
#[must_use]
pub fn path(name: &str, description: &str) -> Value {
    json!({
        "name": name, "in": "path", "required": true, "description": description,
        "schema": {"type": "string", "uniqueItems": true},
    })
}
