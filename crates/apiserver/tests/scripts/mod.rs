//! Sequences of requests beside upstream's: what its API server answered is recorded here, and ours must answer the same.
//!
//! - `scripts/*.yaml` has the requests, [`script`] says how they are written.
//! - `recorded/*.jsonl` has upstream's answers, one a line.
//! - `expected_differences.txt` has what differs, and why. A difference that is not there fails the test, and so does a
//!   line there that is not needed any more.
//!
//! To record, run upstream's API server without the ServiceAccount admission plugin and with an empty store, and
//! `FLUYT_PEER=https://127.0.0.1:6443 FLUYT_PEER_TOKEN=… cargo nextest run -p fluyt-apiserver -E 'test(scripts::)'
//! --run-ignored only`. `FLUYT_SCRIPTS=patch,watch` limits either run to some scripts.

mod answer;
mod script;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::common::sides::{Ours, Peer};
use answer::Answer;
use script::Script;

/// Where the files of this test are.
fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

fn recording(script: &Script) -> PathBuf {
    folder().join(format!("recorded/{}.jsonl", script.name))
}

#[tokio::test]
#[ignore = "needs upstream's API server"]
async fn record() {
    let peer = Peer::from_environment().await;
    for script in Script::chosen(&folder().join("scripts")) {
        let answers = script.run(&peer).await;
        let lines: String = answers
            .iter()
            .map(|a| format!("{}\n", a.to_json()))
            .collect();
        std::fs::write(recording(&script), lines).unwrap();
        eprintln!("{}: {} steps", script.name, answers.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_upstreams() {
    let ours = Ours::start().await;
    let mut expected = expected_differences();
    let (mut report, mut steps) = (Vec::new(), 0);
    for script in Script::chosen(&folder().join("scripts")) {
        let recorded = std::fs::read_to_string(recording(&script)).unwrap();
        let recorded: Vec<Answer> = recorded.lines().map(Answer::from_json).collect();
        let answers = script.run(&ours).await;
        assert_eq!(
            recorded.len(),
            answers.len(),
            "{} was changed: record it",
            script.name
        );
        for (n, (theirs, ours)) in recorded.iter().zip(&answers).enumerate() {
            steps += 1;
            for difference in theirs.differences(ours) {
                let id = format!("{} {} {}", script.name, n + 1, difference.at);
                let known = expected
                    .iter_mut()
                    .filter(|(pattern, _)| matches(pattern, &id));
                match known.last() {
                    Some((_, met)) => *met = true,
                    None => report.push(format!(
                        "{id} ({}): upstream {}, ours {}",
                        script.steps[n].title, difference.theirs, difference.ours
                    )),
                }
            }
        }
        let prefix = format!("{} ", script.name);
        let unmet = expected
            .iter()
            .filter(|(id, met)| id.starts_with(&prefix) && !**met);
        report.extend(unmet.map(|(id, _)| format!("{id}: is expected to differ and does not")));
    }
    assert!(
        report.is_empty(),
        "of {steps} answers:\n{}",
        report.join("\n")
    );
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

/// `script step pointer # reason`, where one `*` stands for anything, and whether it was met.
fn expected_differences() -> BTreeMap<String, bool> {
    let text = std::fs::read_to_string(folder().join("expected_differences.txt")).unwrap();
    text.lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty())
        .map(|line| {
            let (id, reason) = line.split_once(" # ").expect("a difference and a reason");
            assert!(!reason.trim().is_empty(), "{line}");
            (id.trim().to_owned(), false)
        })
        .collect()
}
