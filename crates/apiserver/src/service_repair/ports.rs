//! The bitmap of node ports is what the services have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fluyt_api::Error;
use serde_json::Value;

use crate::Server;
use crate::cache::Entry;
use crate::event_recorder::{self, Warning};
use crate::registry::service::{StoredPorts, claimed_ports};

const CONTROLLER: &str = "portallocator-repair-controller";

/// How often a port is found without a service before it is given back: upstream's servers take a port before they write
/// the service.
const SIGHTINGS: u8 = 3;

/// How many more sightings ports without a service have.
pub(super) type Leaks = BTreeMap<i64, u8>;

/// What is wrong with a port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    NotAllocated,
    AlreadyAllocated,
    OutOfRange,
}

/// What should be stored.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rebuilt {
    taken: BTreeSet<i64>,
    /// By the index of the service.
    problems: Vec<(usize, i64, Problem)>,
    leaks: Leaks,
}

/// Makes the bitmap again of the ports that services claim. What nobody claims stays for a while.
fn rebuild(
    stored: &StoredPorts,
    claims: &[Vec<i64>],
    leaks: &Leaks,
    is_in_range: impl Fn(i64) -> bool,
) -> Rebuilt {
    let mut rebuilt = Rebuilt::default();
    for (i, ports) in claims.iter().enumerate() {
        for port in ports {
            let problem = if !is_in_range(*port) {
                Some(Problem::OutOfRange)
            } else if !rebuilt.taken.insert(*port) {
                Some(Problem::AlreadyAllocated)
            } else {
                // Before there was a bitmap there was nothing wrong.
                let is_missing = stored.revision != 0 && !stored.taken.contains(port);
                is_missing.then_some(Problem::NotAllocated)
            };
            rebuilt.problems.extend(problem.map(|p| (i, *port, p)));
        }
    }
    let unclaimed = stored.taken.difference(&rebuilt.taken).copied();
    for port in unclaimed
        .filter(|port| is_in_range(*port))
        .collect::<Vec<_>>()
    {
        match leaks.get(&port).unwrap_or(&SIGHTINGS) {
            0 => tracing::warn!(port, "the node port appears to have leaked: cleaning up"),
            left => {
                rebuilt.leaks.insert(port, left - 1);
                rebuilt.taken.insert(port);
            }
        }
    }
    rebuilt
}

/// Repairs what is stored.
///
/// # Errors
/// When the store fails.
pub(super) async fn repair(server: &Arc<Server>, leaks: &mut Leaks) -> Result<(), Error> {
    let ports = server.registry.node_ports();
    loop {
        let stored = ports.stored(&server.caches).await?;
        // The services of everything that is in the bitmap.
        server.caches.main().consistent().await?;
        let snapshot = server.caches.of(super::services()?).snapshot();
        let has_ports =
            |entry: &&Arc<Entry>| matches!(entry.field("spec.type"), "NodePort" | "LoadBalancer");
        let services: Vec<Value> = snapshot
            .entries
            .values()
            .filter(has_ports)
            .map(|entry| entry.object())
            .collect();
        let claims: Vec<Vec<i64>> = services.iter().map(claimed_ports).collect();
        let rebuilt = rebuild(&stored, &claims, leaks, |port| ports.contains(port));
        let is_right = stored.is_of_this_range && stored.taken == rebuilt.taken;
        let replace = ports.replace(&server.caches, stored.revision, &rebuilt.taken);
        if is_right || replace.await? {
            *leaks = rebuilt.leaks;
            for (i, port, problem) in rebuilt.problems {
                let warning = warning(problem, port, &ports.range());
                event_recorder::warn(server, &services[i], warning).await;
            }
            return Ok(());
        }
    }
}

fn warning(problem: Problem, port: i64, range: &str) -> Warning {
    let (reason, note) = match problem {
        Problem::NotAllocated => (
            "PortNotAllocated",
            format!("Port {port} is not allocated; repairing"),
        ),
        Problem::AlreadyAllocated => (
            "PortAlreadyAllocated",
            format!("Port {port} was assigned to multiple services; please recreate service"),
        ),
        Problem::OutOfRange => (
            "PortOutOfRange",
            format!("Port {port} is not within the port range {range}; please recreate service"),
        ),
    };
    Warning {
        controller: CONTROLLER,
        reason,
        action: "PortAllocation",
        note,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(revision: i64, ports: &[i64]) -> StoredPorts {
        StoredPorts {
            revision,
            is_of_this_range: true,
            taken: ports.iter().copied().collect(),
        }
    }

    fn rebuilt(stored: &StoredPorts, claims: &[Vec<i64>], leaks: &Leaks) -> Rebuilt {
        rebuild(stored, claims, leaks, |port| (10..20).contains(&port))
    }

    #[test]
    fn services_say_what_is_taken() {
        let claims = [vec![10, 11], vec![11, 12], vec![99]];
        let first = rebuilt(&stored(0, &[]), &claims, &Leaks::new());
        assert_eq!(first.taken, BTreeSet::from([10, 11, 12]));
        assert_eq!(
            first.problems,
            [
                (1, 11, Problem::AlreadyAllocated),
                (2, 99, Problem::OutOfRange)
            ]
        );
        let later = rebuilt(&stored(1, &[10, 11]), &claims[1..2], &Leaks::new());
        assert_eq!(later.problems, [(0, 12, Problem::NotAllocated)]);
    }

    #[test]
    fn what_no_service_has_is_free_after_some_sightings() {
        let stored = stored(1, &[10, 11]);
        let mut leaks = Leaks::new();
        for _ in 0..SIGHTINGS {
            let found = rebuilt(&stored, &[vec![10]], &leaks);
            assert_eq!(found.taken, stored.taken);
            leaks = found.leaks;
        }
        let last = rebuilt(&stored, &[vec![10]], &leaks);
        assert_eq!(
            (last.taken, last.leaks),
            (BTreeSet::from([10]), Leaks::new())
        );
        let claimed = rebuilt(&stored, &[vec![10, 11]], &leaks);
        assert!(claimed.leaks.is_empty() && claimed.problems.is_empty());
    }
}
