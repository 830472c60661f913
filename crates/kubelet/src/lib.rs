//! fluyt's kubelet: brings the pods of one node up through CRI, keeps them so, and tells how they are.
//!
//! A file is one idea. The way of a pod: [`config`] (where it comes from) → [`kubelet`] (who knows it) → `pod_workers`
//! (its task) → [`kuberuntime`] (what has to be done, and doing it) → `status` (how it is) → `status_manager` (telling
//! so). `pleg` and `prober` wake the pod's task when something has happened to it.

mod admission;
mod allocation;
mod annotations;
mod backoff;
mod bootstrap;
mod certificate;
mod cgroups;
pub mod config;
mod container_log_manager;
mod cri;
mod declared_features;
mod dns;
mod env;
mod etc_hosts;
mod eviction;
mod expansion;
mod hash;
mod image_gc;
mod images;
pub mod kubelet;
pub mod kuberuntime;
mod lease;
mod machine;
mod mirror_pods;
mod node_status;
mod object_cache;
mod orphans;
mod pleg;
mod pod;
mod pod_workers;
mod prober;
mod qos;
mod runtime_state;
mod server;
mod stats;
mod status;
mod status_manager;
mod volume_manager;

pub use config::args::{Args, Settings};
pub use kubelet::{run, start};
