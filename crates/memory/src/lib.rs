//! The allocator of every process of Fluyt. To link this is to use it.
//!
//! glibc's has a lock for each of its heaps, sorts what it was given back whenever something of more than a page's quarter
//! is wanted, and keeps pages that were freed below others still in use. A fifth of what a write costs the API server
//! went there.

use tikv_jemalloc_ctl::background_thread;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// For processes that are small and many: two heaps, and little that a thread keeps for itself (no more than what is sent at
/// once). What is freed goes back to the system within a second or two.
// SAFETY: the allocator reads the name as text that ends with a zero, as this one does.
#[expect(unsafe_code, reason = "the allocator finds its options by their name")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static OPTIONS: &[u8; 63] = b"narenas:2,tcache_max:16384,dirty_decay_ms:200,muzzy_decay_ms:0\0";

/// Has what was freed go back to the system even when nothing is allocated or freed any more. It takes threads, so it is
/// not for those who fork.
///
/// # Errors
/// When the allocator cannot have threads.
pub fn give_back_when_idle() -> anyhow::Result<()> {
    background_thread::write(true)
        .map_err(|error| anyhow::anyhow!("the allocator cannot have threads: {error}"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn resident() -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    #[test]
    fn the_options_are_in_force() {
        assert_eq!(tikv_jemalloc_ctl::opt::narenas::read().unwrap(), 2);
        assert_eq!(tikv_jemalloc_ctl::opt::tcache_max::read().unwrap(), 16384);
    }

    #[test]
    fn freed_pages_between_used_ones_go_back_to_the_system() {
        const PIECE: usize = 64 << 10;
        give_back_when_idle().unwrap();
        let (freed, kept): (Vec<_>, Vec<_>) = (0..512)
            .map(|n| (vec![n as u8 | 1; PIECE], vec![n as u8 | 1; 512]))
            .unzip();
        let before = resident();
        drop(freed);
        let deadline = Instant::now() + Duration::from_secs(60);
        while before.saturating_sub(resident()) < 512 * PIECE as u64 / 2 {
            assert!(Instant::now() < deadline, "{before} to {}", resident());
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(kept);
    }
}
