//! Checks that every dependency may be used: its licence must be one of those in `deny.toml`'s list.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use regex::Regex;

/// Fails when a dependency's licence is not allowed.
pub fn check() -> Result<()> {
    let root = crate::schema::workspace_root()?;
    let deny = std::fs::read_to_string(root.join("deny.toml")).context("deny.toml")?;
    let allowed = allowed(&deny)?;
    let clarified = clarified(&deny)?;
    let output = Command::new("cargo")
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(&root)
        .output()
        .context("cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let mut refused = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"]
            .as_str()
            .or_else(|| clarified.get(name).map(String::as_str));
        let licence = licence.unwrap_or_default();
        if !is_allowed(licence, &allowed) {
            refused.push(format!(
                "{} {}: {licence:?}",
                package["name"], package["version"]
            ));
        }
    }
    ensure!(
        refused.is_empty(),
        "licences that deny.toml does not allow:\n{}",
        refused.join("\n")
    );
    Ok(())
}

/// The strings of the `allow = [ … ]` list.
fn allowed(deny: &str) -> Result<BTreeSet<String>> {
    let list = Regex::new(r"(?s)allow = \[(.*?)\]")?;
    let list = list
        .captures(deny)
        .context("deny.toml has no list of allowed licences")?;
    Ok(Regex::new("\"([^\"]+)\"")?
        .captures_iter(&list[1])
        .map(|c| c[1].to_owned())
        .collect())
}

/// Licences of crates whose manifests name only a file.
fn clarified(deny: &str) -> Result<BTreeMap<String, String>> {
    let entry = Regex::new(r#"crate = "([^"]+)"\s+expression = "([^"]+)""#)?;
    Ok(entry
        .captures_iter(deny)
        .map(|c| (c[1].to_owned(), c[2].to_owned()))
        .collect())
}

/// An SPDX expression without parentheses nested deeper than one: of each `AND` part, one `OR` alternative must be allowed.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.replace('/', " OR ");
    !expression.is_empty()
        && expression.split(" AND ").all(|part| {
            part.split(" OR ")
                .any(|one| allowed.contains(one.trim_matches(['(', ')', ' '])))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let allowed = BTreeSet::from(["MIT".to_owned(), "Apache-2.0".to_owned()]);
        for yes in [
            "MIT",
            "MIT/GPL-3.0",
            "GPL-3.0 OR MIT",
            "(MIT OR X) AND Apache-2.0",
        ] {
            assert!(is_allowed(yes, &allowed), "{yes}");
        }
        for no in ["", "GPL-3.0", "MIT AND GPL-3.0"] {
            assert!(!is_allowed(no, &allowed), "{no}");
        }
    }
}
