//! What a burst of work took goes back to the system.
//!
//! The allocator keeps pages that were freed below others still in use, in every thread's heap. A master that once
//! answered for its whole OpenAPI kept twenty megabytes so, and hundreds of masters share one machine.

use std::time::Duration;

/// Giving back takes a millisecond or two.
const EVERY: Duration = Duration::from_secs(30);

/// Runs as long as the process.
pub async fn keep_small() {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        give_back();
    }
}

fn give_back() {
    // SAFETY: it takes the allocator's own locks, and touches only what nobody holds.
    #[expect(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident() -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    #[test]
    fn freed_pages_below_used_ones_go_back() {
        const PIECE: usize = 64 << 10;
        // In a thread, so in a heap of its own, which the allocator never trims by itself from the middle.
        std::thread::spawn(|| {
            let (freed, kept): (Vec<_>, Vec<_>) = (0..512)
                .map(|n| (vec![n as u8 | 1; PIECE], vec![n as u8 | 1; 512]))
                .unzip();
            drop(freed);
            let before = resident();
            give_back();
            let after = resident();
            assert!(
                before.saturating_sub(after) > 512 * PIECE as u64 / 2,
                "{before} to {after}"
            );
            drop(kept);
        })
        .join()
        .unwrap();
    }
}
