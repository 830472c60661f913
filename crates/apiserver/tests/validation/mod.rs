//! Defaulting and validation beside upstream's: what its API server answered to thousands of requests is recorded here,
//! and ours must answer the same.
//!
//! - `kinds/*.yaml` has objects of each kind, and cases that cannot be made of them by machine.
//! - `recorded/*.jsonl` has one case a line: what is done to which object, and upstream's answer.
//! - `expected_differences.txt` has the cases whose answers differ, and why. A difference that is not there fails the
//!   test, and so does a line there that is not needed any more.
//!
//! To record, run upstream's API server without the ServiceAccount admission plugin, and
//! `FLUYT_PEER=https://127.0.0.1:6443 FLUYT_PEER_TOKEN=… cargo nextest run -p fluyt-apiserver
//! -E 'test(validation::)' --run-ignored only`. `FLUYT_VALIDATION_KINDS=pod,service` limits either run to some kinds.

mod kinds;
mod mutation;
mod recording;
mod server;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use kinds::Kind;
use recording::{Answer, Case, Recording};
use server::{Ours, Peer, Server};

/// Where the files of this test are.
fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/validation")
}

/// Kinds by the names of their files.
fn chosen() -> Vec<Kind> {
    let wanted = std::env::var("FLUYT_VALIDATION_KINDS").ok();
    Kind::all(&folder().join("kinds"))
        .into_iter()
        .filter(|k| {
            wanted
                .as_ref()
                .is_none_or(|w| w.split(',').any(|name| name == k.name))
        })
        .collect()
}

#[tokio::test]
#[ignore = "needs upstream's API server"]
async fn record() {
    let peer = Peer::from_environment().await;
    for kind in chosen() {
        let recording = recording::record(&peer, &kind).await;
        recording.write(&folder());
        eprintln!("{}: {} cases", kind.name, recording.cases.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_upstreams() {
    let ours = Ours::start().await;
    let mut expected = Expected::read();
    let (mut report, mut cases, mut unexpected) = (String::new(), 0, 0);
    for kind in chosen() {
        let Some(recorded) = Recording::read(&folder(), &kind.name) else {
            continue;
        };
        let answers = recording::replay(&ours, &kind, &recorded).await;
        for (case, answer) in recorded.cases.iter().zip(&answers) {
            cases += 1;
            let differences = case.answer.differences(answer);
            if differences.is_empty() || expected.covers(&kind.name, case) {
                continue;
            }
            unexpected += 1;
            let _ = writeln!(report, "{} {}", kind.name, case.id());
            for difference in differences {
                let _ = writeln!(report, "    {difference}");
            }
        }
    }
    if let Ok(path) = std::env::var("FLUYT_VALIDATION_REPORT") {
        std::fs::write(path, &report).unwrap();
    }
    let shown: String = report.lines().take(200).collect::<Vec<_>>().join("\n");
    assert_eq!(
        unexpected, 0,
        "of {cases} answers {unexpected} are not upstream's:\n{shown}"
    );
    assert_eq!(
        expected.unused(),
        Vec::<String>::new(),
        "expected differences that are none"
    );
}

/// Differences that are known: patterns of cases, each with the reason.
struct Expected {
    /// `kind pattern`, and how many cases it has covered.
    patterns: BTreeMap<(String, String), usize>,
}

impl Expected {
    fn read() -> Self {
        let text = std::fs::read_to_string(folder().join("expected_differences.txt"));
        let text = text.unwrap_or_default();
        let lines = text
            .lines()
            .filter(|l| !l.starts_with('#') && !l.is_empty());
        let patterns = lines
            .map(|line| {
                let (pattern, reason) = line.split_once(" # ").expect("a pattern and a reason");
                assert!(!reason.is_empty(), "{line}");
                let (kind, case) = pattern.trim().split_once(' ').expect("a kind and a case");
                ((kind.to_owned(), case.to_owned()), 0)
            })
            .collect();
        Self { patterns }
    }

    fn covers(&mut self, kind: &str, case: &Case) -> bool {
        let id = case.id();
        let mut covered = false;
        for ((of, pattern), uses) in &mut self.patterns {
            if (of == kind || of == "*") && matches(pattern, &id) {
                *uses += 1;
                covered = true;
            }
        }
        covered
    }

    fn unused(&self) -> Vec<String> {
        if std::env::var("FLUYT_VALIDATION_KINDS").is_ok() {
            return Vec::new();
        }
        let unused = self.patterns.iter().filter(|(_, uses)| **uses == 0);
        unused
            .map(|((kind, pattern), _)| format!("{kind} {pattern}"))
            .collect()
    }
}

/// Whether a pattern with at most one `*` describes a text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            text.len() >= start.len() + end.len() && text.starts_with(start) && text.ends_with(end)
        }
        None => pattern == text,
    }
}

/// What both runs do: the objects that others need, then every case.
async fn prepare(server: &dyn Server, kind: &Kind) {
    for (path, object) in &kind.needs {
        let made = server.send("POST", path, Some(object)).await;
        assert!(made.code == 201 || made.code == 409, "{path}: {made:?}");
    }
}

fn failed(answer: &Answer) -> bool {
    answer.code >= 300
}
