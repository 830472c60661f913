//! Sets of completion indexes, written as `0,2-5,9`.

use std::collections::BTreeSet;

use fluyt_client::helpers::labels::labels_of;
use k8s_openapi::api::core::v1::Pod;

use super::INDEX;
use crate::common::annotation;

/// Parse a set; what is not a number or a range is skipped, indexes from `limit` on are dropped.
pub fn parse(text: &str, limit: i32) -> BTreeSet<i32> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<i32>(), last.trim().parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(limit - 1));
        }
    }
    indexes
}

/// Write a set. Pairs are listed, longer runs are ranges, as upstream does.
pub fn format(indexes: &BTreeSet<i32>) -> String {
    let mut parts: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => parts.push((*index, *index)),
        }
    }
    let write = |(first, last): (i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    parts.into_iter().map(write).collect::<Vec<_>>().join(",")
}

/// The pod's completion index.
pub fn of_pod(pod: &Pod) -> Option<i32> {
    let text = annotation(&pod.metadata, INDEX)
        .or_else(|| labels_of(&pod.metadata).get(INDEX).map(String::as_str));
    text?.parse().ok().filter(|index| *index >= 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn notation() {
        assert_eq!(format(&[0, 2, 3, 5, 6, 7].into()), "0,2,3,5-7");
        assert_eq!(parse("0,2-4,7-9,x", 8), [0, 2, 3, 4, 7].into());
        assert_eq!(format(&BTreeSet::new()), "");
    }

    proptest! {
        #[test]
        fn reads_back_what_it_writes(indexes in proptest::collection::btree_set(0..200i32, 0..60)) {
            prop_assert_eq!(parse(&format(&indexes), 200), indexes);
        }
    }
}
