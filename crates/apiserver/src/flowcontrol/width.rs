//! How wide a request is: the seats it takes, and those it still takes for a while after its answer.

use std::time::Duration;

use fluyt_api::resources::Resource;

use crate::cache::{Caches, storage_resource};
use crate::request::{Query, RequestInfo};

/// Memory that one seat stands for.
const BYTES_PER_SEAT: u64 = 100_000;

/// More than this is never in memory at once: lists from the cache are streamed.
const STREAMED: u64 = 1_000_000;

/// Seats of a list, at most.
const MAX_LIST_SEATS: u64 = 100;

/// Seats of a write, at most.
const MAX_WRITE_SEATS: u64 = 10;

/// Watchers whose events one seat pays for.
const WATCHES_PER_SEAT: usize = 10;

/// How long the events of a write keep a seat.
const EVENT_DURATION: Duration = Duration::from_millis(5);

/// Objects whose size is looked at.
const SAMPLE: usize = 8;

/// What a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Width {
    pub initial: u64,
    /// After the answer, for `lingering`.
    pub last: u64,
    pub lingering: Duration,
}

impl Width {
    pub const ONE: Self = Self {
        initial: 1,
        last: 0,
        lingering: Duration::ZERO,
    };

    /// Seats that are taken from the beginning to the end.
    #[must_use]
    pub fn seats(&self) -> u64 {
        self.initial.max(self.last)
    }
}

/// Estimates a request's width; `max_seats` is the level's limit, 0 for none.
#[must_use]
pub fn estimate(caches: &Caches, info: &RequestInfo, max_seats: u64) -> Width {
    let Some(target) = &info.target else {
        return Width::ONE;
    };
    let Some(resource) = target.resource.as_deref() else {
        return Width::ONE;
    };
    let limit = |most: u64| match max_seats {
        0 => most,
        level => level.min(most),
    };
    match info.verb {
        "list" | "watch" if target.subresource.is_empty() => {
            let single = !target.name.is_empty() || !info.authorized_name().is_empty();
            let seats = list_seats(caches, resource, &info.query, info.verb, single);
            Width {
                initial: seats.clamp(1, limit(MAX_LIST_SEATS)),
                ..Width::ONE
            }
        }
        "create" | "update" | "patch" | "delete" => {
            // A token is made, and nobody hears of it.
            if target.plural == "serviceaccounts" && target.subresource == "token" {
                return Width::ONE;
            }
            write_width(watchers(caches, resource), limit(MAX_WRITE_SEATS))
        }
        _ => Width::ONE,
    }
}

fn list_seats(
    caches: &Caches,
    resource: &Resource,
    query: &Query,
    verb: &str,
    single: bool,
) -> u64 {
    let version = query.get("resourceVersion").unwrap_or_default();
    let from_version = version.is_empty() || version == "0";
    if verb == "watch" && !query.flag_is_true("sendInitialEvents") && !from_version {
        return 1;
    }
    if resource.is_virtual() {
        return 1;
    }
    let cache = caches.of(storage_resource(resource));
    let (count, sample) = cache.size_sample(SAMPLE);
    let limit = query.get("limit").and_then(|l| l.parse::<u64>().ok());
    let count = match limit {
        _ if single => count.min(1),
        Some(limit) if limit > 0 => count.min(limit),
        _ => count,
    };
    (count * sample).min(STREAMED).div_ceil(BYTES_PER_SEAT)
}

fn watchers(caches: &Caches, resource: &Resource) -> usize {
    if resource.is_virtual() {
        return 0;
    }
    caches.of(storage_resource(resource)).watchers()
}

fn write_width(watchers: usize, most: u64) -> Width {
    if watchers < WATCHES_PER_SEAT {
        return Width::ONE;
    }
    let wanted = watchers.div_ceil(WATCHES_PER_SEAT) as u64;
    let last = wanted.min(most.max(1));
    // The same work on fewer seats takes longer.
    #[allow(clippy::cast_precision_loss)]
    let lingering = EVENT_DURATION.mul_f64(wanted as f64 / last as f64);
    Width {
        initial: 1,
        last,
        lingering,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_that_many_watch_linger() {
        assert_eq!(write_width(9, 10), Width::ONE);
        let some = write_width(25, 10);
        assert_eq!((some.last, some.lingering), (3, EVENT_DURATION));
        let many = write_width(1000, 10);
        assert_eq!((many.last, many.lingering), (10, EVENT_DURATION * 10));
        assert_eq!(many.seats(), 10);
    }
}
