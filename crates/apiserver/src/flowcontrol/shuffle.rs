//! Shuffle sharding: a flow is dealt a small hand of the queues, so that two flows rarely share all of theirs.

use sha2::{Digest as _, Sha256};

/// The largest hand.
const MAX_HAND: usize = 15;

/// The hash of a flow: its schema, and what tells its requests from those of others.
#[must_use]
pub fn flow_hash(schema: &str, distinguisher: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(schema);
    hash.update([0]);
    hash.update(distinguisher);
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first)
}

/// The hand that a hash is dealt from `deck` queues, in `buffer`.
pub fn deal(hash: u64, deck: usize, hand: usize, buffer: &mut [usize; MAX_HAND]) -> &[usize] {
    let hand = hand.min(deck).min(MAX_HAND);
    let mut rest = hash;
    for (i, card) in buffer.iter_mut().enumerate().take(hand) {
        let left = (deck - i) as u64;
        *card = usize::try_from(rest % left).unwrap_or_default();
        rest /= left;
    }
    // Each number counts among the cards that are left: make it one of all.
    for i in (0..hand).rev() {
        let mut card = buffer[i];
        for j in (0..i).rev() {
            if card >= buffer[j] {
                card += 1;
            }
        }
        buffer[i] = card;
    }
    &buffer[..hand]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeSet, HashMap};

    #[test]
    fn hands_have_no_card_twice_and_all_cards_come() {
        let mut seen: HashMap<usize, usize> = HashMap::new();
        for i in 0..2000 {
            let mut buffer = [0; MAX_HAND];
            let hand = deal(flow_hash("s", &i.to_string()), 64, 6, &mut buffer);
            let distinct: BTreeSet<_> = hand.iter().collect();
            assert_eq!((hand.len(), distinct.len()), (6, 6));
            for card in hand {
                *seen.entry(*card).or_default() += 1;
            }
        }
        assert_eq!(seen.len(), 64);
        // 12000 cards over 64 queues: none far from its share.
        assert!(seen.values().all(|n| (100..300).contains(n)), "{seen:?}");
    }

    #[test]
    fn a_flow_is_always_dealt_the_same() {
        let (mut a, mut b) = ([0; MAX_HAND], [0; MAX_HAND]);
        let hash = flow_hash("global-default", "alice");
        assert_eq!(deal(hash, 128, 6, &mut a), deal(hash, 128, 6, &mut b));
    }
}
