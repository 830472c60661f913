//! kill -9 at any instant: what was acknowledged is there, what was not is there once or not at all.
//!
//! `FLUYT_CRASH_ROUNDS=300` is the long form.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::process::{Process, on_disk, setting};
use crate::common::random::Random;
use etcd_client::{Client, EventType, GetOptions, LeaseGrantOptions, PutOptions, WatchOptions};
use fluyt_etcd::embedded::{Embedded, OpenError};
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 6;
const WRITERS: i64 = 32;

/// What a writer asked for. Values are never used twice.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Operation {
    Put {
        key: String,
        value: String,
        lease: i64,
    },
    Delete {
        key: String,
    },
    Grant {
        lease: i64,
    },
    Revoke {
        lease: i64,
    },
}

/// What is known of a writer's keys and leases, apart from the one operation that has no answer yet.
#[derive(Default)]
struct Journal {
    values: BTreeMap<String, (String, i64)>,
    leases: HashSet<i64>,
    /// Revision by revision: what was acknowledged in this round.
    acknowledged: Vec<(i64, Operation)>,
    pending: Option<Operation>,
}

impl Journal {
    fn apply(&mut self, operation: &Operation) {
        match operation.clone() {
            Operation::Put { key, value, lease } => {
                self.values.insert(key, (value, lease));
            }
            Operation::Delete { key } => {
                self.values.remove(&key);
            }
            Operation::Grant { lease } => {
                self.leases.insert(lease);
            }
            Operation::Revoke { lease } => {
                self.leases.remove(&lease);
                self.values.retain(|_, (_, l)| *l != lease);
            }
        }
    }
}

fn operation(random: &mut Random, writer: i64, serial: i64, journal: &Journal) -> Operation {
    let lease = 1 + writer * 100 + random.below(5);
    match random.below(12) {
        0 => Operation::Delete {
            key: format!("w{writer:02}/{}", random.below(8)),
        },
        1 if journal.leases.contains(&lease) => Operation::Revoke { lease },
        1 | 2 if !journal.leases.contains(&lease) => Operation::Grant { lease },
        n => Operation::Put {
            key: format!("w{writer:02}/{}", random.below(8)),
            value: format!(
                "{writer}-{serial}-{}",
                "x".repeat(if n == 3 { 30_000 } else { 300 })
            ),
            lease: if n < 6 && journal.leases.contains(&lease) {
                lease
            } else {
                0
            },
        },
    }
}

async fn run(client: &mut Client, operation: &Operation) -> Result<i64, etcd_client::Error> {
    let header = match operation.clone() {
        Operation::Put { key, value, lease } => {
            let options = PutOptions::new().with_lease(lease);
            client.put(key, value, Some(options)).await?.take_header()
        }
        Operation::Delete { key } => client.delete(key, None).await?.take_header(),
        Operation::Grant { lease } => {
            let options = LeaseGrantOptions::new().with_id(lease);
            client
                .lease_grant(10_000, Some(options))
                .await?
                .take_header()
        }
        Operation::Revoke { lease } => client.lease_revoke(lease).await?.take_header(),
    };
    Ok(header.unwrap().revision())
}

/// Writes until the server is gone; afterwards somebody else may have its address.
async fn write(
    gone: CancellationToken,
    mut client: Client,
    mut journal: Journal,
    writer: i64,
    mut random: Random,
) -> Journal {
    for serial in 0.. {
        let seed = random.below(1 << 40);
        let next = operation(&mut random, writer, seed + serial, &journal);
        journal.pending = Some(next.clone());
        let answer = tokio::select! {
            biased;
            answer = run(&mut client, &next) => answer,
            () = gone.cancelled() => break,
        };
        match answer {
            Ok(revision) => {
                journal.apply(&next);
                journal.acknowledged.push((revision, next));
                journal.pending = None;
            }
            Err(etcd_client::Error::GRpcStatus(status))
                if status.code() != tonic::Code::Unavailable
                    && status.message().starts_with("etcdserver") =>
            {
                panic!("{next:?}: {status}");
            }
            Err(_) => break,
        }
    }
    journal
}

/// Everything that happened after a revision.
async fn history(
    client: &mut Client,
    after: i64,
    until: i64,
) -> Vec<(i64, String, Option<String>)> {
    if after == until {
        return Vec::new();
    }
    let options = WatchOptions::new()
        .with_all_keys()
        .with_start_revision(after + 1);
    let mut stream = client.watch("", Some(options)).await.unwrap();
    let mut seen: Vec<(i64, String, Option<String>)> = Vec::new();
    while seen.last().is_none_or(|(revision, ..)| *revision < until) {
        let answer = stream.message().await.unwrap().unwrap();
        assert!(!answer.canceled(), "{answer:?}");
        for event in answer.events() {
            let kv = event.kv().unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let put = event.event_type() == EventType::Put;
            seen.push((
                kv.mod_revision(),
                text(kv.key()),
                put.then(|| text(kv.value())),
            ));
        }
    }
    seen
}

/// Compares what the server has with what the writers know. The revision it is at.
async fn verify(
    client: &mut Client,
    journals: &mut [Journal],
    after: i64,
    seen: &mut HashSet<String>,
) -> i64 {
    let all = client
        .get("", Some(GetOptions::new().with_all_keys()))
        .await
        .unwrap();
    let revision = all.header().unwrap().revision();
    let leases: HashSet<i64> = client
        .leases()
        .await
        .unwrap()
        .leases()
        .iter()
        .map(|l| l.id())
        .collect();
    let events = history(client, after, revision).await;
    // Every value is in the history once.
    for value in events.iter().filter_map(|(_, _, value)| value.as_ref()) {
        assert!(seen.insert(value.clone()), "{value} appears twice");
    }
    let mut by_revision: HashMap<i64, Vec<(&str, Option<&str>)>> = HashMap::new();
    for (revision, key, value) in &events {
        by_revision
            .entry(*revision)
            .or_default()
            .push((key, value.as_deref()));
    }
    let mut puts: HashSet<&str> = HashSet::new();
    for journal in &*journals {
        for (at, operation) in &journal.acknowledged {
            assert!(
                *at <= revision,
                "{operation:?} was acknowledged at {at}, and now it is {revision}"
            );
            if let Operation::Put { key, value, .. } = operation {
                let there = by_revision
                    .get(at)
                    .is_some_and(|e| e.contains(&(key, Some(value))));
                assert!(there, "{operation:?} is not in the history at {at}");
                puts.insert(value);
            }
        }
        if let Some(Operation::Put { value, .. }) = &journal.pending {
            puts.insert(value);
        }
    }
    // Nothing that nobody wrote.
    for (_, _, value) in &events {
        assert!(value.as_deref().is_none_or(|value| puts.contains(value)));
    }
    let mut found: HashMap<String, (String, i64)> = HashMap::new();
    for kv in all.kvs() {
        let value = (kv.value_str().unwrap().to_owned(), kv.lease());
        found.insert(kv.key_str().unwrap().to_owned(), value);
    }
    for (writer, journal) in journals.iter_mut().enumerate() {
        let prefix = format!("w{writer:02}/");
        let state = |found: &HashMap<String, (String, i64)>| {
            let own = found.iter().filter(|(key, _)| key.starts_with(&prefix));
            own.map(|(k, v)| (k.clone(), v.clone()))
                .collect::<BTreeMap<_, _>>()
        };
        let first = 1 + i64::try_from(writer).unwrap() * 100;
        let granted: HashSet<i64> = leases
            .iter()
            .copied()
            .filter(|l| (first..first + 100).contains(l))
            .collect();
        let there = (state(&found), granted);
        let pending = journal.pending.take();
        if there != (journal.values.clone(), journal.leases.clone())
            && let Some(pending) = pending
        {
            // It was not acknowledged and happened all the same.
            journal.apply(&pending);
        }
        assert_eq!(
            there,
            (journal.values.clone(), journal.leases.clone()),
            "writer {writer}"
        );
        journal.acknowledged.clear();
    }
    revision
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost() {
    let directory = on_disk();
    let rounds = setting("FLUYT_CRASH_ROUNDS", ROUNDS);
    let seed = rand::random::<u32>().into();
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut journals: Vec<Journal> = (0..WRITERS).map(|_| Journal::default()).collect();
    let mut seen = HashSet::new();
    let mut revision = 1;
    let mut acknowledged = 0;
    for round in 0..rounds {
        let mut server = Process::start(directory.path(), &[]);
        let mut client = server.client().await;
        let now = verify(&mut client, &mut journals, revision, &mut seen).await;
        assert!(
            now >= revision,
            "round {round}: {revision} was seen, and now it is {now}"
        );
        revision = now;
        // History that has been checked may go; whether it does is a matter of when the end comes.
        if random.one_in(3) && revision > 10 {
            let mut client = client.clone();
            tokio::spawn(async move {
                let _ = client.compact(revision, None).await;
                let _ = client.defragment().await;
            });
        }
        let gone = CancellationToken::new();
        let writers: Vec<_> = journals
            .drain(..)
            .zip(0..)
            .map(|(journal, writer)| {
                tokio::spawn(write(
                    gone.clone(),
                    client.clone(),
                    journal,
                    writer,
                    Random(random.next()),
                ))
            })
            .collect();
        let instant = Duration::from_micros(random.below(250_000).unsigned_abs());
        tokio::time::sleep(instant).await;
        server.kill();
        gone.cancel();
        for writer in writers {
            journals.push(writer.await.unwrap());
        }
        acknowledged += journals.iter().map(|j| j.acknowledged.len()).sum::<usize>();
    }
    let mut server = Process::start(directory.path(), &[]);
    let mut client = server.client().await;
    verify(&mut client, &mut journals, revision, &mut seen).await;
    server.kill();
    println!("{rounds} rounds, {acknowledged} operations acknowledged");
    damage(directory.path(), &mut random, 40 + rounds);
}

/// Flipped bits and cut files are noticed, and told with the file's name.
fn damage(directory: &Path, random: &mut Random, times: usize) {
    // What a crash left over is cleared away, like a draft that was not finished.
    std::fs::write(directory.join("state/.tmpdraft"), "half").unwrap();
    drop(Embedded::open(directory).unwrap());
    let mut files = Vec::new();
    list(directory, &mut files);
    files.retain(|file| file.metadata().unwrap().len() > 0 && !file.ends_with("lock"));
    let last_segment = files
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "wal"))
        .max()
        .unwrap()
        .clone();
    let committed = std::fs::read(directory.join("committed")).unwrap();
    let end = u64::from_le_bytes(committed[16..24].try_into().unwrap());
    let newest = files
        .iter()
        .max_by_key(|f| f.metadata().unwrap().modified().unwrap())
        .unwrap()
        .clone();
    for time in 0..times {
        let cut = time % 4 == 0;
        let file = if time % 8 == 0 {
            last_segment.clone()
        } else if cut {
            newest.clone()
        } else {
            files[usize::try_from(random.below(files.len().try_into().unwrap())).unwrap()].clone()
        };
        let content = std::fs::read(&file).unwrap();
        // Space that is reserved for later records holds nothing.
        let length = if file == last_segment {
            end
        } else {
            content.len() as u64
        };
        let at = usize::try_from(random.below(length.try_into().unwrap())).unwrap();
        let mut damaged = content.clone();
        if cut {
            damaged.truncate(at);
        } else {
            damaged[at] ^= 1 << random.below(8);
        }
        std::fs::write(&file, damaged).unwrap();
        let Err(error) = Embedded::open(directory) else {
            panic!(
                "{}: damage at byte {at} went unnoticed (cut: {cut})",
                file.display()
            );
        };
        let message = error.to_string();
        assert!(matches!(error, OpenError::Damaged(_)), "{message}");
        let name = file.file_name().unwrap().to_str().unwrap();
        // A damaged file that says which others there are may point to one that is not.
        let named = message.contains(name) || name == "current";
        assert!(
            named && message.contains("restore a snapshot"),
            "{name}: {message}"
        );
        std::fs::write(&file, content).unwrap();
    }
    Embedded::open(directory).unwrap();
}

fn list(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, files);
        } else {
            files.push(path);
        }
    }
}
