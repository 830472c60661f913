//! What of the node a pod has been promised. Its spec may come to ask for other resources (the `resize` subresource,
//! KEP-1287): they count once there is room for them, and until then the pod goes on with what it has.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::warn;

use crate::pod::PodExt;

const FILE: &str = "allocated_resources.json";

/// Resources of containers by name, and the pod's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Allocation {
    pod: Option<ResourceRequirements>,
    containers: BTreeMap<String, ResourceRequirements>,
}

/// Why a resize has to wait.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// `Deferred` or `Infeasible`.
    pub reason: &'static str,
    pub message: String,
}

/// Room was found, and not all of the pod has the new resources yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InProgress {
    pub error: Option<String>,
}

/// How far a pod's resize is, as its conditions tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resize {
    pub pending: Option<Pending>,
    pub in_progress: Option<InProgress>,
}

/// What looking at a pod's wishes has led to.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// Nothing new.
    Unchanged,
    /// It gets what it asked for.
    Allocated,
    /// It has to wait, for another reason than before.
    Waits(Pending),
}

#[derive(Default)]
struct Entry {
    allocated: Allocation,
    resize: Resize,
}

/// The promises to all pods of this node. They are kept beside the pods' volumes, so that a restart forgets none.
pub struct Allocations {
    root_dir: PathBuf,
    pods: Mutex<HashMap<String, Entry>>,
}

// === impl Allocation ===

impl Allocation {
    fn of(pod: &Pod) -> Self {
        let containers = pod.init_containers().iter().chain(&pod.spec().containers);
        Self {
            pod: pod.spec().resources.clone(),
            containers: containers
                .map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default()))
                .collect(),
        }
    }

    /// The pod as if its spec asked for this.
    fn applied(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        if let Some(spec) = &mut pod.spec {
            spec.resources = self.pod.clone();
            let containers = spec
                .init_containers
                .iter_mut()
                .flatten()
                .chain(&mut spec.containers);
            for container in containers {
                if let Some(resources) = self.containers.get(&container.name) {
                    container.resources = Some(resources.clone());
                }
            }
        }
        pod
    }
}

// === impl Allocations ===

impl Allocations {
    pub fn new(root_dir: PathBuf) -> Self {
        Self {
            root_dir,
            pods: Mutex::default(),
        }
    }

    fn file(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid).join(FILE)
    }

    /// The pod was admitted: it gets what it asks for, or what it had before this kubelet started.
    pub fn admit(&self, pod: &Pod) {
        let uid = pod.uid();
        let stored = std::fs::read(self.file(uid)).ok();
        let stored = stored.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let allocated = stored.unwrap_or_else(|| {
            let allocated = Allocation::of(pod);
            self.store(uid, &allocated);
            allocated
        });
        let resize = Resize::default();
        let entry = Entry { allocated, resize };
        self.pods.lock().insert(uid.into(), entry);
    }

    fn store(&self, uid: &str, allocated: &Allocation) {
        let file = self.file(uid);
        let draft = file.with_extension("draft");
        let write = || {
            if let Some(dir) = file.parent() {
                std::fs::create_dir_all(dir)?;
            }
            std::fs::write(&draft, serde_json::to_vec(allocated)?)?;
            std::fs::rename(&draft, &file)
        };
        if let Err(error) = write() {
            // The next kubelet would take the spec's word for it.
            warn!(file = %file.display(), %error, "cannot note what was allocated");
        }
    }

    /// The pod with the resources that it may have; one that was not admitted is as its spec says.
    pub fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.pods.lock().get(pod.uid()) {
            Some(entry) if entry.allocated != Allocation::of(pod) => {
                Arc::new(entry.allocated.applied(pod))
            }
            _ => pod.clone(),
        }
    }

    /// Looks at what the pod's spec asks for; `room` says whether it can have it.
    pub fn reconsider(&self, pod: &Pod, room: impl FnOnce() -> Result<(), Pending>) -> Outcome {
        let wanted = Allocation::of(pod);
        let is_allocated = |entry: &mut Entry| {
            if entry.allocated == wanted {
                entry.resize.pending = None;
            }
            entry.allocated == wanted
        };
        if self.pods.lock().get_mut(pod.uid()).is_none_or(is_allocated) {
            return Outcome::Unchanged;
        }
        // Other pods' promises count here: not under the lock.
        let room = room();
        let mut pods = self.pods.lock();
        let Some(entry) = pods.get_mut(pod.uid()) else {
            return Outcome::Unchanged;
        };
        match room {
            Ok(()) => {
                self.store(pod.uid(), &wanted);
                entry.allocated = wanted;
                entry.resize = Resize {
                    pending: None,
                    in_progress: Some(InProgress::default()),
                };
                Outcome::Allocated
            }
            Err(pending) if entry.resize.pending.as_ref() == Some(&pending) => Outcome::Unchanged,
            Err(pending) => {
                entry.resize.pending = Some(pending.clone());
                Outcome::Waits(pending)
            }
        }
    }

    pub fn resize(&self, uid: &str) -> Resize {
        let pods = self.pods.lock();
        pods.get(uid)
            .map(|entry| entry.resize.clone())
            .unwrap_or_default()
    }

    /// Notes how giving the pod its new resources stands (`None`: it has them); whether that is news.
    pub fn progress(&self, uid: &str, progress: Option<InProgress>) -> bool {
        let mut pods = self.pods.lock();
        let Some(entry) = pods.get_mut(uid) else {
            return false;
        };
        std::mem::replace(&mut entry.resize.in_progress, progress.clone()) != progress
    }

    /// Pods whose resize waits for room.
    pub fn waiting(&self) -> Vec<String> {
        let pods = self.pods.lock();
        let waits = |entry: &Entry| entry.resize.pending.is_some();
        pods.iter()
            .filter(|(_, entry)| waits(entry))
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    pub fn forget(&self, uid: &str) {
        self.pods.lock().remove(uid);
        // The rest of the directory goes with the volumes.
        let _ = std::fs::remove_file(self.file(uid));
    }
}

/// What the events of a resize say.
pub fn summary(prefix: &str, pod: &Pod, error: Option<&str>) -> String {
    let list = |containers: &[Container]| -> Vec<serde_json::Value> {
        let entry = |c: &Container| json!({"name": c.name, "resources": c.resources.clone().unwrap_or_default()});
        containers.iter().map(entry).collect()
    };
    let mut summary = json!({
        "containers": list(&pod.spec().containers),
        "generation": pod.metadata.generation.unwrap_or_default(),
    });
    if !pod.init_containers().is_empty() {
        summary["initContainers"] = list(pod.init_containers()).into();
    }
    if let Some(error) = error {
        summary["error"] = error.into();
    }
    format!("{prefix}: {summary}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(cpu: &str) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn deferred() -> Result<(), Pending> {
        Err(Pending {
            reason: "Deferred",
            message: "no room".into(),
        })
    }

    #[test]
    fn a_resize_waits_for_room_and_survives_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let allocations = Allocations::new(directory.path().into());
        allocations.admit(&pod("1"));
        assert_eq!(
            allocations.reconsider(&pod("1"), || unreachable!()),
            Outcome::Unchanged
        );
        let wish = pod("2");
        assert!(matches!(
            allocations.reconsider(&wish, deferred),
            Outcome::Waits(_)
        ));
        assert_eq!(allocations.reconsider(&wish, deferred), Outcome::Unchanged);
        assert_eq!(allocations.waiting(), ["u"]);
        assert_eq!(allocations.apply(&wish).spec, pod("1").spec);
        // The next kubelet remembers what was promised, not what is wished for.
        let next = Allocations::new(directory.path().into());
        next.admit(&wish);
        assert_eq!(next.apply(&wish).spec, pod("1").spec);
        assert_eq!(next.reconsider(&wish, || Ok(())), Outcome::Allocated);
        assert_eq!(next.apply(&wish).spec, wish.spec);
        assert_eq!(
            next.resize("u").in_progress,
            Some(InProgress { error: None })
        );
        assert!(next.progress("u", None));
        assert!(!next.progress("u", None));
        let last = Allocations::new(directory.path().into());
        last.admit(&pod("5"));
        assert_eq!(last.apply(&pod("5")).spec, wish.spec);
    }

    #[test]
    fn a_wish_that_is_taken_back_waits_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let allocations = Allocations::new(directory.path().into());
        allocations.admit(&pod("1"));
        allocations.reconsider(&pod("2"), deferred);
        allocations.reconsider(&pod("1"), || unreachable!());
        assert_eq!(allocations.resize("u"), Resize::default());
    }
}
