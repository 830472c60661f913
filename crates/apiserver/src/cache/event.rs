//! One change of an object, as all its watchers share it.

use std::sync::Arc;

use super::Entry;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    /// As events name it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change. Its encoded forms are those of the entry.
#[derive(Debug)]
pub struct WatchEvent {
    pub revision: i64,
    /// The object, or what it was last, as of the change.
    pub entry: Arc<Entry>,
    pub previous: Option<Arc<Entry>>,
}

impl WatchEvent {
    #[must_use]
    pub fn is_deletion(&self) -> bool {
        self.entry.arrived == Change::Deleted
    }

    /// What happened to the object, for those who see every state of it.
    #[must_use]
    pub fn change(&self) -> Change {
        if self.is_deletion() {
            Change::Deleted
        } else if self.previous.is_some() {
            Change::Modified
        } else {
            Change::Added
        }
    }

    /// The state before the change, at the revision of the change: how those see it for whom the object is gone.
    #[must_use]
    pub fn last(&self) -> Arc<Entry> {
        match &self.previous {
            Some(previous) if !self.is_deletion() => Arc::new(previous.gone_at(self.revision)),
            _ => self.entry.clone(),
        }
    }
}
