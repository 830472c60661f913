//! The limit on the store's size and the alarms that are raised when it is reached or the disk is full, as etcd's
//! quota and alarms.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Op, Put, Txn};

/// etcd's default, for a quota of 0.
pub const DEFAULT_QUOTA: u64 = 2 << 30;

/// What etcd reckons a key and a lease cost beside their own bytes.
const KEY_OVERHEAD: u64 = 256;
const LEASE_COST: u64 = 64;

/// Something is wrong with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The quota is used up, or the disk is full.
    NoSpace,
    /// Stored data is damaged.
    Corrupt,
}

/// State of the alarms, shared by everybody.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    /// Raised by the quota; stays until it is disarmed.
    pub quota: AtomicBool,
    /// The last write found no room; goes with the next that does.
    pub disk_full: AtomicBool,
}

impl Alarms {
    pub fn no_space(&self) -> bool {
        self.quota.load(Ordering::Relaxed) || self.disk_full.load(Ordering::Relaxed)
    }
}

/// What a transaction may add to the store; 0 if it puts nothing.
pub(super) fn cost(txn: &Txn) -> u64 {
    let sum = |ops: &[Op]| ops.iter().map(op_cost).sum();
    let (success, failure): (u64, u64) = (sum(&txn.success), sum(&txn.failure));
    success.max(failure)
}

fn op_cost(op: &Op) -> u64 {
    match op {
        Op::Put(Put { key, value, .. }) => KEY_OVERHEAD + (key.len() + value.len()) as u64,
        Op::Txn(nested) => cost(nested),
        Op::Range(_) | Op::Delete(_) => 0,
    }
}

pub(super) const fn lease_cost() -> u64 {
    LEASE_COST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dearer_branch_counts() {
        let put = |n: usize| Op::Put(Put::new("k", vec![0; n]));
        let nested = Txn {
            failure: vec![put(99)],
            ..Txn::default()
        };
        let txn = Txn {
            success: vec![put(9), Op::Txn(nested)],
            failure: vec![put(1)],
            ..Txn::default()
        };
        assert_eq!(cost(&txn), 2 * KEY_OVERHEAD + 10 + 100);
        assert_eq!(cost(&Txn::default()), 0);
    }
}
