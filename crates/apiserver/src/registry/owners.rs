//! Owner references that an object has twice: old clients made them, so all but the first are dropped with a warning.

use std::collections::HashSet;

use serde_json::Value;

use super::WriteContext;

/// When the references are looked at: what a patch makes is seen only as admission leaves it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Requested,
    Admitted,
}

/// Keeps the first of equal owner references.
pub(super) fn drop_repeated(cx: &WriteContext, stage: Stage, object: &mut Value) {
    if stage == Stage::Requested && cx.patches {
        return;
    }
    let metadata = object.get_mut("metadata");
    let references = metadata.and_then(|metadata| metadata.get_mut("ownerReferences"));
    let Some(references) = references.and_then(Value::as_array_mut) else {
        return;
    };
    let mut known = HashSet::new();
    let is_first: Vec<bool> = references.iter().map(|r| known.insert(r)).collect();
    let (mut kept, mut repeated) = (Vec::with_capacity(references.len()), Vec::new());
    for (reference, is_first) in std::mem::take(references).into_iter().zip(is_first) {
        if is_first {
            kept.push(reference);
        } else {
            repeated.push(reference["uid"].as_str().unwrap_or_default().to_owned());
        }
    }
    *references = kept;
    if repeated.is_empty() {
        return;
    }
    let when = match stage {
        Stage::Requested => "",
        Stage::Admitted => " after mutating admission happens",
    };
    cx.warnings.add(format!(
        ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may \
         reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
        repeated.join(", ")
    ));
}
