//! Objects of a kind, from which cases are made.

use std::path::Path;

use fluyt_api::resources::{self, Resource};
use fluyt_api::schema::{Schema, TypeId};
use serde_json::Value;

use crate::validation::mutation::Mutation;

/// What is known of a kind.
pub struct Kind {
    /// The file's name.
    pub name: String,
    /// Where objects are created.
    pub path: String,
    /// What is sent there: the file's `type`, where that is not what the path lists.
    pub ty: TypeId,
    /// Objects that must be there first, and where they are created.
    pub needs: Vec<(String, Value)>,
    pub bases: Vec<Base>,
}

/// An object from which cases are made.
pub struct Base {
    pub name: String,
    pub object: Value,
    /// Fields that are not there get values too.
    pub add: bool,
    /// Whether updates are tried, and of which subresources.
    pub updates: Vec<String>,
    /// The status that the object gets before it is updated.
    pub status: Value,
    /// What is done to the object once it is there.
    pub then: Vec<Vec<Mutation>>,
    /// Cases by hand.
    pub cases: Vec<(String, Vec<Mutation>)>,
}

impl Kind {
    pub fn all(folder: &Path) -> Vec<Self> {
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
            .collect();
        files.sort();
        files.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let file: Value =
            serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let collection = file["path"].as_str().unwrap();
        let ty = match file["type"].as_str() {
            Some(name) => Schema::builtin().find(name),
            None => resource_at(collection).ty,
        };
        let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
        let need = |n: &Value| (n["path"].as_str().unwrap().to_owned(), n["object"].clone());
        let bases = list(&file["bases"]).iter().map(Base::from_json).collect();
        Self {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            path: collection.to_owned(),
            ty: ty.unwrap_or_else(|| panic!("no type at {collection}")),
            needs: list(&file["needs"]).iter().map(need).collect(),
            bases,
        }
    }

    pub fn schema(&self) -> &'static Schema {
        Schema::builtin()
    }
}

fn resource_at(path: &str) -> &'static Resource {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let plural = parts.pop().unwrap();
    if let Some(at) = parts.iter().position(|p| *p == "namespaces") {
        parts.truncate(at);
    }
    let (group, version) = match parts.as_slice() {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => panic!("{path} is no collection"),
    };
    resources::find(group, version, plural).unwrap_or_else(|| panic!("nothing at {path}"))
}

impl Base {
    fn from_json(base: &Value) -> Self {
        let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let case = |c: &Value| {
            let verb = c["verb"].as_str().unwrap_or("create").to_owned();
            (verb, Mutation::list(c))
        };
        Self {
            name: text(&base["name"]),
            object: base["object"].clone(),
            add: base["add"] == true,
            updates: list(&base["updates"]).iter().map(text).collect(),
            status: base["status"].clone(),
            then: list(&base["then"]).iter().map(Mutation::list).collect(),
            cases: list(&base["cases"]).iter().map(case).collect(),
        }
    }

    pub fn object_name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap()
    }
}
