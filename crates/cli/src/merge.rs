//! Merging a cluster's kubeconfig into the user's, as `az aks get-credentials` does.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::{Failure, Result};

/// Merges `addition` into the file, which need not exist; the name of the new current context.
pub fn merge_file(
    path: &Path,
    addition: &str,
    overwrite: bool,
    context: Option<&str>,
) -> Result<String> {
    let addition = parse(addition)?;
    let addition = match context {
        Some(name) => renamed(addition, name),
        None => addition,
    };
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?,
    };
    let existing = if text.trim().is_empty() {
        json!({"apiVersion": "v1", "kind": "Config", "preferences": {}})
    } else {
        parse(&text)
            .map_err(|failure| Failure::new(format!("{}: {}", path.display(), failure.message)))?
    };
    let merged = merge(existing, &addition, overwrite).map_err(|what| {
        Failure::new(format!("A different object named {what} already exists in your kubeconfig file. Use --overwrite-existing to replace it."))
    })?;
    write(path, &serde_saphyr::to_string(&merged)?)?;
    Ok(merged["current-context"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

fn parse(text: &str) -> Result<Value> {
    let value: Value = serde_saphyr::from_str(text)
        .map_err(|error| Failure::new(format!("not a kubeconfig: {error}")))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Failure::new("not a kubeconfig"))
    }
}

/// `--context`: another name for the context.
fn renamed(mut config: Value, name: &str) -> Value {
    config["contexts"][0]["name"] = name.into();
    config["current-context"] = name.into();
    config
}

/// The union of both; the name of what is in both but differs, if it must not be replaced.
fn merge(mut existing: Value, addition: &Value, overwrite: bool) -> Result<Value, String> {
    for list in ["clusters", "contexts", "users"] {
        let Value::Array(entries) = &addition[list] else {
            continue;
        };
        let present = &mut existing[list];
        if !present.is_array() {
            *present = json!([]);
        }
        let Some(present) = present.as_array_mut() else {
            continue;
        };
        for entry in entries {
            match present.iter().position(|p| p["name"] == entry["name"]) {
                Some(index) if present[index] == *entry || overwrite => {
                    present[index] = entry.clone()
                }
                Some(_) => {
                    return Err(format!(
                        "{} in {list}",
                        entry["name"].as_str().unwrap_or_default()
                    ));
                }
                None => present.push(entry.clone()),
            }
        }
    }
    existing["current-context"] = addition["current-context"].clone();
    Ok(existing)
}

fn write(path: &Path, text: &str) -> Result {
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = std::fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&temporary, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn config(name: &str, server: &str) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": server}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "users": [{"name": name, "user": {}}],
        })
        .to_string()
    }

    #[test]
    fn what_is_there_stays_and_the_new_becomes_current() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/config");
        assert_eq!(
            merge_file(&path, &config("one", "x"), false, None).unwrap(),
            "one"
        );
        assert_eq!(
            merge_file(&path, &config("two", "y"), false, None).unwrap(),
            "two"
        );
        assert_eq!(
            merge_file(&path, &config("two", "y"), false, Some("2")).unwrap(),
            "2"
        );
        let merged = parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(merged["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(merged["contexts"].as_array().unwrap().len(), 3);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_differs_is_replaced_only_if_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        merge_file(&path, &config("one", "https://x"), false, None).unwrap();
        let refused = merge_file(&path, &config("one", "https://y"), false, None).unwrap_err();
        assert!(
            refused.message.contains("one in clusters"),
            "{}",
            refused.message
        );
        merge_file(&path, &config("one", "https://y"), true, None).unwrap();
        assert!(
            std::fs::read_to_string(&path)
                .unwrap()
                .contains("https://y")
        );
    }

    #[test]
    fn a_damaged_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        std::fs::write(&path, "a: [").unwrap();
        assert!(merge_file(&path, &config("one", "x"), true, None).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a: [");
    }
}
