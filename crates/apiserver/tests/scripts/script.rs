//! Scripts: steps one after the other, in a namespace of their own.
//!
//! A step is a map. The key that begins with an HTTP method says what is sent where, and its value is the body; a text is
//! sent as it is. A word after `PATCH` is the kind of patch. `save` gives parts of the answer names (`rv:
//! /metadata/resourceVersion`), and `$rv` in later steps stands for them; `$n` is the namespace. `accept` and `type` are
//! the headers.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::sides::{Request, Side};
use crate::scripts::answer::{Answer, Names};

pub struct Script {
    pub name: String,
    pub steps: Vec<Step>,
}

pub struct Step {
    /// As it is written.
    pub title: String,
    request: Request,
    save: Vec<(String, String)>,
}

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

impl Script {
    /// All scripts, or those that `FLUYT_SCRIPTS` names.
    pub fn chosen(folder: &Path) -> Vec<Self> {
        let wanted = std::env::var("FLUYT_SCRIPTS").ok();
        let mut paths: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
            .collect();
        paths.sort();
        let scripts = paths.iter().map(|path| Self::read(path));
        let is_wanted = |name: &str| {
            let wanted = wanted.as_ref();
            wanted.is_none_or(|w| w.split(',').any(|w| w == name))
        };
        scripts.filter(|s| is_wanted(&s.name)).collect()
    }

    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let steps: Vec<Value> =
            serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            steps: steps.iter().map(Step::of).collect(),
        }
    }

    /// Runs it; the answers to its steps.
    pub async fn run(&self, server: &dyn Side) -> Vec<Answer> {
        let mut names = Names::new(format!("script-{}", self.name));
        let namespace = json!({"metadata": {"name": names.namespace()}});
        let made = server
            .ask(Request {
                method: "POST".into(),
                path: "/api/v1/namespaces".into(),
                body: namespace.to_string(),
                ..Request::default()
            })
            .await;
        assert_eq!(made.code, 201, "{made:?}");
        let mut answers = Vec::new();
        for step in &self.steps {
            let request = &step.request;
            let response = server
                .ask(Request {
                    path: names.fill_in(&request.path),
                    body: names.fill_in(&request.body),
                    ..request.clone()
                })
                .await;
            for (name, pointer) in &step.save {
                let body: Value = serde_json::from_str(&response.body).unwrap_or_default();
                let value = body.pointer(pointer).and_then(Value::as_str);
                // Without the value the steps that need it will differ.
                names.add(name, value.unwrap_or("nothing"));
            }
            answers.push(Answer::of(&response, &mut names));
        }
        answers
    }
}

impl Step {
    fn of(step: &Value) -> Self {
        let step = step.as_object().expect("a step is a map");
        let sends = |key: &str| METHODS.iter().any(|m| key.starts_with(m));
        let (title, body) = step.iter().find(|(key, _)| sends(key)).expect("a method");
        let words: Vec<&str> = title.split(' ').collect();
        let text = |key: &str| step.get(key).and_then(Value::as_str);
        let content_type = match words.as_slice() {
            ["PATCH", kind, _] => match *kind {
                "json" => "application/json-patch+json",
                "merge" => "application/merge-patch+json",
                "strategic" => "application/strategic-merge-patch+json",
                "apply" => "application/apply-patch+yaml",
                kind => panic!("{kind} is no kind of patch"),
            },
            _ => text("type").unwrap_or("application/json"),
        };
        let accept = match text("accept") {
            Some("table") => "application/json;as=Table;g=meta.k8s.io;v=v1",
            Some("metadata") => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            Some("metadatalist") => {
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
            }
            other => other.unwrap_or("application/json"),
        };
        let body = match body {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let save = step.get("save").and_then(Value::as_object);
        let save = save.into_iter().flatten();
        Self {
            title: title.clone(),
            request: Request {
                method: words[0].to_owned(),
                path: words.last().unwrap().replace(' ', "%20"),
                content_type: content_type.to_owned(),
                accept: accept.to_owned(),
                body,
            },
            save: save
                .map(|(name, at)| (name.clone(), at.as_str().unwrap().to_owned()))
                .collect(),
        }
    }
}
