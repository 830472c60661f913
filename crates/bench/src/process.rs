//! What processes use.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use fluyt_e2e::World;

use crate::row;

/// How long idleness is watched: long enough for what its use took to be given back.
const WATCHED: Duration = Duration::from_secs(45);

/// The kernel counts CPU time in these.
const TICKS_PER_SECOND: f64 = 100.0;

/// Which processes, by their command lines.
const PROCESSES: [(&str, &str); 5] = [
    ("service", "^fluyt serve"),
    ("master", "^/proc/self/exe master"),
    ("node agent", "^/fluyt node "),
    ("node init", "^/proc/self/exe node-init boot"),
    ("shim", "^[^ ]+ shim"),
];

/// Seconds of CPU that a process has used.
pub fn cpu(world: &World, pid: u32) -> anyhow::Result<f64> {
    let stat = world.ok(&format!("cat /proc/{pid}/stat"))?;
    let fields = stat
        .rsplit_once(')')
        .context("/proc/<pid>/stat is not as known")?
        .1;
    let ticks: f64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|t| t.parse::<f64>().ok())
        .sum();
    Ok(ticks / TICKS_PER_SECOND)
}

/// MB of resident and of proportional memory.
fn memory(world: &World, pid: u32) -> anyhow::Result<(f64, f64)> {
    let rollup = world.ok(&format!("cat /proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        let line = rollup.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.split_ascii_whitespace().next()?.parse::<f64>().ok())
            .map(|kib| kib * 1024.0 / 1e6)
    };
    field("Rss:")
        .zip(field("Pss:"))
        .context("/proc/<pid>/smaps_rollup is not as known")
}

/// Memory and CPU of each kind of process in a cluster that nobody uses any more; the mean over those of a kind.
pub fn idle(world: &World) -> anyhow::Result<()> {
    // What any use of kubectl asks for, and what costs most memory.
    world.ok("kubectl get --raw /openapi/v2 >/dev/null; kubectl explain pods >/dev/null")?;
    let mut seen = Vec::new();
    for (name, pattern) in PROCESSES {
        let pids = world.ok(&format!("pgrep -f '{pattern}' || true"))?;
        let pids: Vec<u32> = pids.lines().filter_map(|pid| pid.parse().ok()).collect();
        let used = pids
            .iter()
            .map(|pid| cpu(world, *pid))
            .collect::<Result<Vec<_>, _>>()?;
        seen.push((name, pids, used));
    }
    let begin = Instant::now();
    // Time itself is what is measured here.
    std::thread::sleep(WATCHED);
    for (name, pids, before) in seen {
        let watched = begin.elapsed().as_secs_f64();
        let (mut rss, mut pss, mut used) = (0.0, 0.0, 0.0);
        for (pid, before) in pids.iter().zip(before) {
            let memory = memory(world, *pid)?;
            rss += memory.0;
            pss += memory.1;
            used += cpu(world, *pid)? - before;
        }
        #[expect(clippy::cast_precision_loss)]
        let count = pids.len().max(1) as f64;
        let percent = used / watched / count * 100.0;
        row(
            &format!("idle {name} (each of {})", pids.len()),
            format!(
                "RSS {:.1} MB, PSS {:.1} MB, {percent:.2} % of a core",
                rss / count,
                pss / count
            ),
        );
    }
    Ok(())
}
