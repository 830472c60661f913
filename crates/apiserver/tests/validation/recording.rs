//! Cases with answers: how they are made, written, read and compared.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use serde_json::{Value, json};

use crate::validation::kinds::{Base, Kind};
use crate::validation::mutation::{self, Mutation};
use crate::validation::server::{Response, Server};
use crate::validation::{failed, prepare};

/// Everything recorded of a kind.
pub struct Recording {
    pub kind: String,
    pub cases: Vec<Case>,
}

/// A request and its answer.
pub struct Case {
    /// The name of the object that is changed.
    pub base: String,
    /// `create`, `update` or a subresource.
    pub verb: String,
    pub mutations: Vec<Mutation>,
    pub answer: Answer,
}

/// What is compared of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub code: u16,
    pub reason: String,
    pub message: String,
    /// `reason field: message`
    pub causes: Vec<String>,
    pub warnings: Vec<String>,
    /// How the resulting object differs from what was sent, for created and updated ones: `pointer = value`.
    pub result: Vec<String>,
}

impl Case {
    /// What names the case in reports.
    pub fn id(&self) -> String {
        let mutations: Vec<String> = self
            .mutations
            .iter()
            .map(|m| match &m.value {
                Some(value) => {
                    let text = value.to_string();
                    let short: String = text.chars().take(60).collect();
                    format!("{}={short}", m.at)
                }
                None => format!("{}-", m.at),
            })
            .collect();
        format!("{} {} {}", self.base, self.verb, mutations.join(" "))
            .trim_end()
            .to_owned()
    }

    fn to_json(&self) -> Value {
        let mutations: Vec<Value> = self
            .mutations
            .iter()
            .map(|m| match &m.value {
                Some(value) => json!([m.at, value]),
                None => json!([m.at]),
            })
            .collect();
        let mut case = json!({"base": self.base, "verb": self.verb, "do": mutations, "code": self.answer.code});
        let answer = &self.answer;
        for (name, text) in [("reason", &answer.reason), ("message", &answer.message)] {
            if !text.is_empty() {
                case[name] = text.as_str().into();
            }
        }
        for (name, list) in [
            ("causes", &answer.causes),
            ("warnings", &answer.warnings),
            ("result", &answer.result),
        ] {
            if !list.is_empty() {
                case[name] = list.clone().into();
            }
        }
        case
    }

    fn from_json(case: &Value) -> Self {
        let text = |name: &str| case[name].as_str().unwrap_or_default().to_owned();
        let list = |name: &str| -> Vec<String> {
            let items = case[name].as_array().into_iter().flatten();
            items.map(|i| i.as_str().unwrap().to_owned()).collect()
        };
        let mutation = |m: &Value| Mutation {
            at: m[0].as_str().unwrap().to_owned(),
            value: m.get(1).cloned(),
        };
        Self {
            base: text("base"),
            verb: text("verb"),
            mutations: case["do"]
                .as_array()
                .unwrap()
                .iter()
                .map(mutation)
                .collect(),
            answer: Answer {
                code: u16::try_from(case["code"].as_u64().unwrap()).unwrap(),
                reason: text("reason"),
                message: text("message"),
                causes: list("causes"),
                warnings: list("warnings"),
                result: list("result"),
            },
        }
    }
}

/// Long values, and how they are written in files.
const SHORTHANDS: [(usize, &str); 2] = [(40_000, "⟨a×40000⟩"), (260, "⟨a×260⟩")];

impl Recording {
    /// Results are written as what differs from the first of the same object and verb, since most defaults are the same.
    pub fn write(&self, folder: &Path) {
        let mut lines = String::new();
        let mut first = FirstResults::default();
        for case in &self.cases {
            let mut json = case.to_json();
            if let Some(known) = first.of(case) {
                let (same, new): (Vec<&String>, Vec<&String>) =
                    case.answer.result.iter().partition(|r| known.contains(r));
                let gone: Vec<&String> = known.iter().filter(|k| !same.contains(k)).collect();
                json["result"] = json!({"without": gone, "with": new});
            }
            lines.push_str(&json.to_string());
            lines.push('\n');
        }
        for (count, short) in SHORTHANDS {
            lines = lines.replace(&"a".repeat(count), short);
        }
        let path = folder.join(format!("recorded/{}.jsonl", self.kind));
        std::fs::write(path, lines).unwrap();
    }

    pub fn read(folder: &Path, kind: &str) -> Option<Self> {
        let path = folder.join(format!("recorded/{kind}.jsonl"));
        let mut text = std::fs::read_to_string(path).ok()?;
        for (count, short) in SHORTHANDS {
            text = text.replace(short, &"a".repeat(count));
        }
        let mut first = FirstResults::default();
        let mut cases = Vec::new();
        for line in text.lines() {
            let json: Value = serde_json::from_str(line).unwrap();
            let mut case = Case::from_json(&json);
            let strings = |v: &Value| -> Vec<String> {
                let items = v.as_array().into_iter().flatten();
                items.map(|i| i.as_str().unwrap().to_owned()).collect()
            };
            if let Some(known) = first.of(&case) {
                let gone = strings(&json["result"]["without"]);
                let kept = known.iter().filter(|k| !gone.contains(k)).cloned();
                case.answer.result = kept.chain(strings(&json["result"]["with"])).collect();
                case.answer.result.sort();
            }
            cases.push(case);
        }
        Some(Self {
            kind: kind.to_owned(),
            cases,
        })
    }
}

/// The first result of each object and verb.
#[derive(Default)]
struct FirstResults(BTreeMap<(String, String), Vec<String>>);

impl FirstResults {
    /// What a case's result is compared with; nothing when it is the first, or has none.
    fn of(&mut self, case: &Case) -> Option<&Vec<String>> {
        if case.answer.code >= 300 {
            return None;
        }
        let key = (case.base.clone(), case.verb.clone());
        match self.0.entry(key) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(unknown) => {
                unknown.insert(case.answer.result.clone());
                None
            }
        }
    }
}

impl Answer {
    /// What is compared of a response to `sent`.
    fn of(response: &Response, sent: &Value) -> Self {
        let uid = response.body["metadata"]["uid"].as_str().map(str::to_owned);
        let uid = uid.or_else(|| sent["metadata"]["uid"].as_str().map(str::to_owned));
        let clean = |text: &str| {
            let text = without_uid(text, uid.as_deref());
            without_go_objects(&first_line(&without_suffix(&text, sent)))
        };
        let body = &response.body;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let mut answer = Self {
            code: response.code,
            warnings: response.warnings.clone(),
            ..Self::default()
        };
        if body["kind"] == "Status" {
            answer.reason = text(&body["reason"]);
            let causes = body["details"]["causes"].as_array().into_iter().flatten();
            answer.causes = causes
                .map(|c| {
                    clean(&format!(
                        "{} {}: {}",
                        text(&c["reason"]),
                        text(&c["field"]),
                        text(&c["message"])
                    ))
                })
                .collect();
            // Of an invalid object, the message says the same.
            if answer.causes.is_empty() {
                answer.message = clean(&text(&body["message"]));
            }
        } else {
            difference(
                "",
                &normal(sent, sent, None),
                &normal(body, sent, uid.as_deref()),
                &mut answer.result,
            );
            // A time that the server sets again is another one only if a second has passed since.
            let sets_time =
                |d: &String| d.starts_with("/spec/") && d.ends_with(&format!("{NOW:?}"));
            if !sent["metadata"]["generation"].is_null() && answer.result.iter().any(sets_time) {
                let is_generation = |d: &String| d.starts_with("/metadata/generation = ");
                answer.result.retain(|d| !is_generation(d));
            }
            answer.result.sort();
        }
        answer
    }

    /// What is not the same in two answers; `self` is upstream's.
    pub fn differences(&self, ours: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.code != ours.code || self.reason != ours.reason || self.message != ours.message {
            differences.push(format!(
                "upstream {} {} {}, ours {} {} {}",
                self.code, self.reason, self.message, ours.code, ours.reason, ours.message
            ));
        }
        for (what, theirs, ours) in [
            ("cause", &self.causes, &ours.causes),
            ("warning", &self.warnings, &ours.warnings),
            ("result", &self.result, &ours.result),
        ] {
            let missing: Vec<_> = theirs.iter().filter(|t| !ours.contains(t)).collect();
            let added: Vec<_> = ours.iter().filter(|o| !theirs.contains(o)).collect();
            differences.extend(missing.iter().map(|t| format!("{what} missing: {t}")));
            differences.extend(added.iter().map(|o| format!("{what} added:   {o}")));
            if missing.is_empty() && added.is_empty() && theirs != ours {
                differences.push(format!(
                    "{what}s in another order or number: {theirs:?}, ours {ours:?}"
                ));
            }
        }
        differences
    }
}

fn without_uid(text: &str, uid: Option<&str>) -> String {
    uid.filter(|u| !u.is_empty())
        .map_or_else(|| text.to_owned(), |uid| text.replace(uid, "<uid>"))
}

/// Differences between objects of Go are not compared.
fn first_line(text: &str) -> String {
    text.split('\n').next().unwrap_or_default().to_owned()
}

/// Generated names end in something that is never the same twice.
fn without_suffix(text: &str, sent: &Value) -> String {
    let prefix = sent["metadata"]["generateName"]
        .as_str()
        .unwrap_or_default();
    let generated = format!("\"{prefix}");
    match text.find(&generated).filter(|_| !prefix.is_empty()) {
        Some(at) => {
            let (start, rest) = text.split_at(at + generated.len());
            let suffix = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
            format!("{start}…{}", &rest[suffix..])
        }
        None => text.to_owned(),
    }
}

/// Objects of Go's internal types are not compared, only that they are shown.
fn without_go_objects(text: &str) -> String {
    let (Some(start), Some(end)) = (text.find('{'), text.rfind('}')) else {
        return text.to_owned();
    };
    let is_go = text[start..]
        .match_indices("\":")
        .filter_map(|(at, _)| text[start..start + at].rsplit('"').next())
        .any(|name| name.starts_with(|c: char| c.is_ascii_uppercase()) && !name.contains(' '));
    if is_go && start < end {
        format!("{}{{…}}{}", &text[..start], &text[end + 1..])
    } else {
        text.to_owned()
    }
}

const ALLOCATED: [&str; 5] = [
    "clusterIP",
    "clusterIPs",
    "nodePort",
    "healthCheckNodePort",
    "token",
];

/// An object without what is never the same twice.
fn normal(object: &Value, sent: &Value, uid: Option<&str>) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in [
            "uid",
            "creationTimestamp",
            "resourceVersion",
            "managedFields",
        ] {
            metadata.remove(field);
        }
    }
    let mut sent = sent.clone();
    if let Some(metadata) = sent["metadata"].as_object_mut() {
        metadata.remove("creationTimestamp");
        metadata.remove("managedFields");
    }
    let sent = sent.to_string();
    scrub(&mut object, "", &sent, uid);
    object
}

/// Stands for a time that the server has set.
const NOW: &str = "<time>";

fn is_time(text: &str) -> bool {
    text.len() >= 20 && text.parse::<jiff::Timestamp>().is_ok()
}

/// Whether a server has set this during the run: the times that cases send are long past.
fn is_recent(text: &str) -> bool {
    let age = |time| jiff::Timestamp::now().duration_since(time).abs();
    text.parse()
        .is_ok_and(|time| age(time) < jiff::SignedDuration::from_hours(1))
}

fn scrub(value: &mut Value, name: &str, sent: &str, uid: Option<&str>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                scrub(value, key, sent, uid);
            }
        }
        Value::Array(items) => {
            for item in items {
                scrub(item, name, sent, uid);
            }
        }
        Value::String(text) => {
            *text = without_uid(text, uid);
            if is_time(text) && !sent.contains(&**text) {
                *text = NOW.into();
            } else if ALLOCATED.contains(&name) && !sent.contains(&format!("\"{text}\"")) {
                *text = "<allocated>".into();
            }
        }
        Value::Number(number)
            if ALLOCATED.contains(&name) && !sent.contains(&format!("\"{name}\":{number}")) =>
        {
            *value = "<allocated>".into();
        }
        _ => {}
    }
}

/// How `new` differs from `old`.
fn difference(at: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    match (old, new) {
        _ if old == new => {}
        // That a time was set again shows only if a second has passed since.
        (Value::String(before), Value::String(after)) if after == NOW && is_recent(before) => {}
        (Value::Object(before), Value::Object(after)) => {
            for key in before.keys().filter(|k| !after.contains_key(*k)) {
                found.push(format!("{at}/{key}-"));
            }
            for (key, value) in after {
                let place = format!("{at}/{key}");
                match before.get(key) {
                    Some(old) => difference(&place, old, value, found),
                    None => found.push(format!("{place} = {value}")),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (i, (old, new)) in before.iter().zip(after).enumerate() {
                difference(&format!("{at}/{i}"), old, new, found);
            }
        }
        _ => found.push(format!("{at} = {new}")),
    }
}

/// Asks for one case; `present` is the object as it is stored, for updates.
async fn ask(
    server: &dyn Server,
    kind: &Kind,
    base: &Base,
    present: &Value,
    verb: &str,
    mutations: &[Mutation],
) -> Answer {
    let is_create = verb == "create";
    let mut sent = if is_create {
        base.object.clone()
    } else {
        present.clone()
    };
    for mutation in mutations {
        mutation.apply(&mut sent);
    }
    let path = match verb {
        "create" => kind.path.clone(),
        "update" => format!("{}/{}", kind.path, base.object_name()),
        subresource => format!("{}/{}/{subresource}", kind.path, base.object_name()),
    };
    let method = if is_create { "POST" } else { "PUT" };
    let response = server
        .send(method, &format!("{path}?dryRun=All"), Some(&sent))
        .await;
    Answer::of(&response, &sent)
}

/// Creates the object of a base for good, and brings it where updates start from.
async fn store(server: &dyn Server, kind: &Kind, base: &Base) -> Value {
    let path = format!("{}/{}", kind.path, base.object_name());
    let made = server.send("POST", &kind.path, Some(&base.object)).await;
    assert!(made.code == 201, "{path}: {made:?}");
    let mut present = made.body;
    let kind = base.object["kind"].as_str().unwrap_or_default();
    while server.writes_status_of(kind) && present["status"]["observedGeneration"].is_null() {
        present = server.send("GET", &path, None).await.body;
        tokio::task::yield_now().await;
    }
    if base.status.is_object() {
        present["status"] = base.status.clone();
        let done = server
            .send("PUT", &format!("{path}/status"), Some(&present))
            .await;
        assert!(done.code == 200, "{path}: {done:?}");
        present = done.body;
    }
    for step in &base.then {
        for mutation in step {
            mutation.apply(&mut present);
        }
        let done = server.send("PUT", &path, Some(&present)).await;
        assert!(done.code == 200, "{path}: {done:?}");
        present = done.body;
    }
    present
}

async fn discard(server: &dyn Server, kind: &Kind, base: &Base) {
    let path = format!("{}/{}", kind.path, base.object_name());
    let found = server.send("GET", &path, None).await;
    let mut object = found.body;
    if object["metadata"]["finalizers"].is_array() {
        object["metadata"]["finalizers"] = json!([]);
        server.send("PUT", &path, Some(&object)).await;
    }
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "propagationPolicy": "Background"});
    let gone = server.send("DELETE", &path, Some(&options)).await;
    assert!(gone.code < 300, "{path}: {gone:?}");
    if kind.name == "namespace" {
        // Nobody else says that nothing is left in it.
        let mut left = server.send("GET", &path, None).await.body;
        left["spec"]["finalizers"] = json!([]);
        let done = server
            .send("PUT", &format!("{path}/finalize"), Some(&left))
            .await;
        assert!(done.code == 200, "{path}: {done:?}");
    }
}

/// All changes to try of a base with one verb.
fn generated(kind: &Kind, base: &Base, object: &Value, verb: &str) -> Vec<Vec<Mutation>> {
    let within = match verb {
        "create" | "update" => None,
        "status" => Some("/status"),
        _ => Some("/spec"),
    };
    let mut all: Vec<Vec<Mutation>> =
        mutation::all(kind.schema(), kind.ty, object, base.add, within)
            .into_iter()
            .map(|m| vec![m])
            .collect();
    if matches!(verb, "create" | "update") {
        // Status is another endpoint's.
        all.retain(|m| !m[0].at.starts_with("/status/"));
    }
    all
}

/// Makes all cases of a kind and asks `server` for the answers.
pub async fn record(server: &dyn Server, kind: &Kind) -> Recording {
    prepare(server, kind).await;
    let mut cases = Vec::new();
    for base in &kind.bases {
        let mut todo = vec![("create".to_owned(), Vec::new())];
        let creates = generated(kind, base, &base.object, "create");
        todo.extend(creates.into_iter().map(|m| ("create".to_owned(), m)));
        todo.extend(
            base.cases
                .iter()
                .filter(|(verb, _)| verb == "create")
                .cloned(),
        );
        run(server, kind, base, &Value::Null, todo, &mut cases).await;
        if base.updates.is_empty() {
            continue;
        }
        let present = store(server, kind, base).await;
        let mut todo = Vec::new();
        for verb in &base.updates {
            let changes = generated(kind, base, &present, verb);
            todo.extend(changes.into_iter().map(|m| (verb.clone(), m)));
        }
        todo.extend(
            base.cases
                .iter()
                .filter(|(verb, _)| verb != "create")
                .cloned(),
        );
        run(server, kind, base, &present, todo, &mut cases).await;
        discard(server, kind, base).await;
    }
    Recording {
        kind: kind.name.clone(),
        cases,
    }
}

async fn run(
    server: &dyn Server,
    kind: &Kind,
    base: &Base,
    present: &Value,
    todo: Vec<(String, Vec<Mutation>)>,
    cases: &mut Vec<Case>,
) {
    for (verb, mutations) in todo {
        let answer = ask(server, kind, base, present, &verb, &mutations).await;
        if answer.code == 0 {
            continue;
        }
        cases.push(Case {
            base: base.name.clone(),
            verb,
            mutations,
            answer,
        });
    }
}

/// Asks `server` for the recorded cases.
pub async fn replay(server: &dyn Server, kind: &Kind, recorded: &Recording) -> Vec<Answer> {
    prepare(server, kind).await;
    let mut answers = Vec::new();
    let mut rest = recorded.cases.as_slice();
    for base in &kind.bases {
        let of_base = rest.iter().take_while(|c| c.base == base.name).count();
        let (own, others) = rest.split_at(of_base);
        rest = others;
        let creates = own.iter().take_while(|c| c.verb == "create").count();
        for case in &own[..creates] {
            answers.push(
                ask(
                    server,
                    kind,
                    base,
                    &Value::Null,
                    &case.verb,
                    &case.mutations,
                )
                .await,
            );
        }
        if creates == own.len() {
            continue;
        }
        let first = &answers[answers.len() - creates];
        if failed(first) {
            // Without the object, all its updates differ.
            answers.extend(own[creates..].iter().map(|_| Answer::default()));
            continue;
        }
        let present = store(server, kind, base).await;
        for case in &own[creates..] {
            answers.push(ask(server, kind, base, &present, &case.verb, &case.mutations).await);
        }
        discard(server, kind, base).await;
    }
    assert!(
        rest.is_empty(),
        "{} has cases of unknown objects",
        recorded.kind
    );
    answers
}
