//! The recent events of a resource: for watches that start in the past, and for lists of a moment ago.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Objects, WatchEvent};

/// So many are kept however old they are.
pub(super) const LEAST: usize = 1000;

/// Never more than these.
const MOST: usize = 100_000;

/// How long events are of use, upstream's figure: clients that lost a connection are back by then.
pub(super) const FRESH: Duration = Duration::from_secs(75);

/// What objects that have been superseded may take, in bytes.
const SUPERSEDED: usize = 16 << 20;

/// Events in order, without a gap after `oldest`.
#[derive(Default)]
pub(super) struct History {
    events: VecDeque<(Instant, Arc<WatchEvent>)>,
    /// All later ones are here.
    oldest: i64,
    /// The length of all objects that only events keep.
    superseded: usize,
}

impl History {
    /// Nothing is known of what was before.
    pub(super) fn restart(&mut self, revision: i64) {
        *self = Self {
            oldest: revision,
            ..Self::default()
        };
    }

    /// Whether everything after a revision is here.
    pub(super) fn covers(&self, revision: i64) -> bool {
        revision >= self.oldest
    }

    pub(super) fn push(&mut self, event: Arc<WatchEvent>) {
        self.superseded += superseded(&event);
        self.events.push_back((Instant::now(), event));
        self.trim();
    }

    /// Forgets what is old or too much.
    pub(super) fn trim(&mut self) {
        while self.events.len() > LEAST
            && self.events.front().is_some_and(|(at, _)| {
                self.events.len() > MOST || self.superseded > SUPERSEDED || at.elapsed() > FRESH
            })
            && let Some((_, dropped)) = self.events.pop_front()
        {
            self.superseded -= superseded(&dropped);
            self.oldest = dropped.revision;
        }
    }

    /// The events after a revision.
    pub(super) fn since(&self, revision: i64) -> impl Iterator<Item = &Arc<WatchEvent>> {
        let first = self
            .events
            .partition_point(|(_, event)| event.revision <= revision);
        self.events.range(first..).map(|(_, event)| event)
    }

    /// Makes of the present objects those of an earlier revision, which is covered.
    pub(super) fn undo(&self, objects: &mut Objects, revision: i64) {
        let first = self
            .events
            .partition_point(|(_, event)| event.revision <= revision);
        for (_, event) in self.events.range(first..).rev() {
            match &event.previous {
                Some(previous) => drop(objects.insert(previous.clone())),
                None => drop(objects.remove(&event.entry.key)),
            }
        }
    }
}

fn superseded(event: &WatchEvent) -> usize {
    event.previous.as_ref().map_or(0, |entry| entry.len())
}
