//! cloud-controller-manager
