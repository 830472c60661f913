//! One order of names out of several.

use std::collections::{BTreeMap, BTreeSet};

/// All names of some lists. One that follows another in a list follows it here; otherwise the alphabet decides, as it does
/// when lists contradict each other.
pub(super) fn merge(lists: &[Vec<&str>]) -> Vec<String> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let all: BTreeSet<&str> = lists.iter().flatten().copied().collect();
    let is_complete = |list: &&Vec<&str>| {
        list.len() == all.len() && list.iter().collect::<BTreeSet<_>>().len() == list.len()
    };
    if let Some(complete) = lists.iter().find(is_complete) {
        return owned(complete);
    }
    let mut followers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut before: BTreeMap<&str, usize> = BTreeMap::new();
    for pair in lists.iter().flat_map(|list| list.windows(2)) {
        if followers.entry(pair[0]).or_default().insert(pair[1]) {
            *before.entry(pair[1]).or_default() += 1;
        }
    }
    let is_first = |name: &&str| !before.contains_key(name);
    let mut next: BTreeSet<&str> = all.iter().copied().filter(is_first).collect();
    let mut merged = Vec::new();
    while let Some(name) = next.pop_first() {
        merged.push(name);
        for follower in followers.get(name).into_iter().flatten() {
            if let Some(count) = before.get_mut(follower) {
                *count -= 1;
                if *count == 0 {
                    next.insert(follower);
                }
            }
        }
    }
    if merged.len() == all.len() {
        owned(&merged)
    } else {
        all.into_iter().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(lists: &[&str]) -> String {
        let lists: Vec<Vec<&str>> = lists.iter().map(|l| l.split(' ').collect()).collect();
        merge(&lists).join(" ")
    }

    #[test]
    fn what_follows_in_one_list_follows_in_all() {
        for (lists, expected) in [
            (&["c a b", "a b"][..], "c a b"),
            (&["a c", "b c"], "a b c"),
            (&["z b", "a b"], "a z b"),
            (&["v2 v1", "v1 v1beta1", "v3 v2"], "v3 v2 v1 v1beta1"),
            // A list that has everything counts, even if another contradicts it.
            (&["b a", "a b"], "b a"),
            // Contradictions without one.
            (&["b a", "a b c"], "a b c"),
            (&["b a c", "a b d"], "a b c d"),
        ] {
            assert_eq!(merged(lists), expected, "{lists:?}");
        }
        assert!(merge(&[]).is_empty());
    }
}
