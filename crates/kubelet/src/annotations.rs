//! Annotation keys that the kubelet reads or writes on pods.

/// Content hash of a static pod's manifest.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Where the pod came from: `file` or `api`.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// When the kubelet first saw it.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
/// Marks the API object that mirrors a static pod; its value is the static pod's hash.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
