//! YAML documents, and what upstream says about keys that they have twice.

use fluyt_api::decode::Parsed;
use serde_json::Value;

/// How deep it may be nested: as deep as JSON.
const MOST_LEVELS: usize = 128;

/// Values that aliases may make of a small document.
const MOST_NODES: usize = 250_000;

/// So many repeated keys are told; each has to be looked for.
const MOST_REPEATED: usize = 100;

/// Parses YAML, and tells which keys are there twice.
///
/// # Errors
/// The parser's message.
pub fn parse(body: &[u8]) -> Result<(Value, Vec<String>), String> {
    let text = std::str::from_utf8(body).map_err(|e| e.to_string())?;
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: MOST_LEVELS,
            // What a document has by itself, without what its aliases stand for.
            max_nodes: MOST_NODES.max(text.len()),
            max_events: (4 * MOST_NODES).max(4 * text.len()),
        },
    };
    let parsed: Parsed =
        serde_saphyr::from_str_with_options(text, options).map_err(|e| e.to_string())?;
    Ok((parsed.value, parsed.duplicates))
}

/// Where keys that are there twice are seen for the last time.
#[must_use]
pub fn lines_of(text: &str, duplicates: &[String]) -> Vec<String> {
    let told = duplicates.iter().take(MOST_REPEATED);
    told.map(|repeated| duplicate(text, repeated)).collect()
}

/// The error that those lines make.
#[must_use]
pub fn repeated(lines: &[String]) -> String {
    format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "))
}

/// `line 3: key "b" already set in map`, where the key is last seen.
fn duplicate(text: &str, path: &str) -> String {
    let key = path.rsplit('.').next().unwrap_or(path);
    let line = text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains(key))
        .last()
        .map_or(1, |(n, _)| n + 1);
    format!("line {line}: key \"{key}\" already set in map")
}
