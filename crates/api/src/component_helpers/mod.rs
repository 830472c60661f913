//! What several components work out of the same objects (upstream's `k8s.io/component-helpers`), so that they agree.

pub mod nodedeclaredfeatures;
pub mod qos;
pub mod resource;
