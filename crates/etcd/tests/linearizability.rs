//! Concurrent reads, writes and transactions, with the server killed in between, have an order that explains every
//! answer: a checker searches for one, key by key (Wing and Gong's algorithm, with Lowe's memory of configurations).
//!
//! `FLUYT_LINEARIZABILITY_ROUNDS=100` is the long form.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::process::{Process, on_disk, setting};
use crate::common::random::Random;
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp, TxnOpResponse};

const ROUNDS: usize = 4;
const CLIENTS: i64 = 10;
const KEYS: i64 = 3;

/// Crashes that one key lives through.
const CRASHES: usize = 2;

/// Most operations of one client on the keys of its time, so that the search stays small.
const OPERATIONS: usize = 120;

type Value = Option<u64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Read(Value),
    Write(Value),
    /// From, to, and whether it did.
    Swap(Value, u64, bool),
}

/// An operation in real time. Without an answer it may have happened at any time since, or never.
#[derive(Clone, Copy, Debug)]
struct Operation {
    key: usize,
    action: Action,
    invoked: u64,
    returned: Option<u64>,
}

impl Action {
    fn apply(self, state: Value, answered: bool) -> Option<Value> {
        match self {
            Self::Read(value) => (!answered || value == state).then_some(state),
            Self::Write(value) => Some(value),
            Self::Swap(from, to, done) => {
                let would = from == state;
                let fits = !answered || done == would;
                fits.then_some(if would { Some(to) } else { state })
            }
        }
    }
}

/// Whether the operations of one key, which begins without a value, have an order.
fn linearizable(operations: &[Operation]) -> bool {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|o| o.invoked);
    let words = operations.len().div_ceil(64);
    let mut known: HashSet<(Vec<u64>, Value)> = HashSet::new();
    let mut waiting = vec![(vec![0_u64; words], None)];
    while let Some((done, state)) = waiting.pop() {
        if !known.insert((done.clone(), state)) {
            continue;
        }
        let is_done = |i: usize| done[i / 64] >> (i % 64) & 1 == 1;
        let open = || (0..operations.len()).filter(|i| !is_done(*i));
        // Nothing that began after an answer was given can come before it.
        let deadline = open().filter_map(|i| operations[i].returned).min();
        let Some(deadline) = deadline else {
            // Those without an answer need not have happened.
            return true;
        };
        let mut candidates: Vec<usize> = open()
            .take_while(|i| operations[*i].invoked <= deadline)
            .collect();
        // What was answered first is tried first, and what may never have happened last.
        candidates.sort_by_key(|i| std::cmp::Reverse(operations[*i].returned.unwrap_or(u64::MAX)));
        for i in candidates {
            let operation = operations[i];
            let answered = operation.returned.is_some();
            if let Some(state) = operation.action.apply(state, answered) {
                let mut done = done.clone();
                done[i / 64] |= 1 << (i % 64);
                waiting.push((done, state));
            }
        }
    }
    false
}

#[test]
fn the_checker_tells_good_from_bad() {
    let operation = |action, invoked, returned| Operation {
        key: 0,
        action,
        invoked,
        returned,
    };
    use Action::{Read, Swap, Write};
    let write = operation(Write(Some(1)), 0, Some(10));
    for (more, expected) in [
        (vec![operation(Read(Some(1)), 11, Some(12))], true),
        // A stale read.
        (vec![operation(Read(None), 11, Some(12))], false),
        (vec![operation(Read(None), 5, Some(12))], true),
        // A value that is gone comes back.
        (
            vec![
                operation(Read(Some(1)), 2, Some(3)),
                operation(Read(None), 4, Some(5)),
            ],
            false,
        ),
        (
            vec![
                operation(Swap(Some(1), 2, true), 11, None),
                operation(Read(Some(1)), 12, Some(13)),
                operation(Read(Some(2)), 14, Some(15)),
            ],
            true,
        ),
        // Two cannot both have swapped.
        (
            vec![
                operation(Swap(Some(1), 2, true), 11, Some(15)),
                operation(Swap(Some(1), 3, true), 11, Some(15)),
            ],
            false,
        ),
    ] {
        let history = [vec![write], more.clone()].concat();
        assert_eq!(linearizable(&history), expected, "{more:?}");
    }
}

fn value(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).unwrap().parse().unwrap()
}

async fn read(client: &mut Client, key: &str) -> Result<Value, etcd_client::Error> {
    let found = client.get(key, None).await?;
    Ok(found.kvs().first().map(|kv| value(kv.value())))
}

async fn swap(
    client: &mut Client,
    key: &str,
    from: Value,
    to: u64,
) -> Result<bool, etcd_client::Error> {
    let compare = match from {
        Some(from) => Compare::value(key, CompareOp::Equal, from.to_string()),
        None => Compare::version(key, CompareOp::Equal, 0),
    };
    let txn = Txn::new()
        .when([compare])
        .and_then([TxnOp::put(key, to.to_string(), None)])
        .or_else([TxnOp::get(key, None)]);
    let answer = client.txn(txn).await?;
    if !answer.succeeded() {
        let responses = answer.op_responses();
        let Some(TxnOpResponse::Get(found)) = responses.first() else {
            panic!("no read")
        };
        assert_ne!(found.kvs().first().map(|kv| value(kv.value())), from);
    }
    Ok(answer.succeeded())
}

struct Recorder {
    /// Servers that are gone.
    killed: tokio::sync::watch::Sender<usize>,
    clock: AtomicU64,
    unique: AtomicU64,
}

/// What was asked for, without an answer; a read without one says nothing.
fn unanswered(kind: i64, last: Value, unique: u64) -> Option<(Action, bool)> {
    match kind {
        0..4 => None,
        4..7 => Some((Action::Write(Some(unique)), false)),
        7 => Some((Action::Write(None), false)),
        _ => Some((Action::Swap(last, unique, false), false)),
    }
}

/// Acts, and says whether there was an answer.
async fn request(
    client: &mut Client,
    name: &str,
    kind: i64,
    last: Value,
    unique: u64,
) -> Option<(Action, bool)> {
    let action = match kind {
        0..4 => read(client, name).await.ok().map(Action::Read),
        4..7 => {
            let put = client.put(name, unique.to_string(), None).await;
            put.ok().map(|_| Action::Write(Some(unique)))
        }
        7 => client
            .delete(name, None)
            .await
            .ok()
            .map(|_| Action::Write(None)),
        _ => {
            let done = swap(client, name, last, unique).await.ok();
            done.map(|done| Action::Swap(last, unique, done))
        }
    };
    action
        .map(|action| (action, true))
        .or_else(|| unanswered(kind, last, unique))
}

async fn act(
    recorder: &Recorder,
    mut client: Client,
    round: usize,
    mut random: Random,
) -> Vec<Operation> {
    let mut history = Vec::new();
    let now = || recorder.clock.fetch_add(1, Ordering::SeqCst);
    let mut last: Value = None;
    for _ in 0..OPERATIONS {
        let key = usize::try_from(random.below(KEYS)).unwrap();
        let name = format!("{}/{key}", round / CRASHES);
        let unique = recorder.unique.fetch_add(1, Ordering::SeqCst);
        let kind = random.below(10);
        let invoked = now();
        let mut gone = recorder.killed.subscribe();
        let before = *gone.borrow_and_update();
        if before > round {
            break;
        }
        // Once the server is gone somebody else may have its address.
        let acted = tokio::select! {
            biased;
            acted = request(&mut client, &name, kind, last, unique) => acted,
            _ = gone.changed() => unanswered(kind, last, unique),
        };
        let Some((action, answer)) = acted else {
            break;
        };
        let returned = answer.then(now);
        if let Action::Read(value) = action {
            last = value;
        }
        history.push(Operation {
            key,
            action,
            invoked,
            returned,
        });
        if returned.is_none() {
            break;
        }
    }
    history
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_under_crashes_have_an_order() {
    let directory = on_disk();
    let rounds = setting("FLUYT_LINEARIZABILITY_ROUNDS", ROUNDS);
    let seed = rand::random::<u32>().into();
    println!("seed {seed}");
    let mut random = Random(seed);
    let recorder = Arc::new(Recorder {
        killed: tokio::sync::watch::Sender::new(0),
        clock: AtomicU64::new(0),
        unique: AtomicU64::new(0),
    });
    let mut history = Vec::new();
    let mut operations = 0;
    for round in 0..rounds {
        let mut server = Process::start(directory.path(), &[]);
        let client = server.client().await;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (recorder, client) = (recorder.clone(), client.clone());
                let random = Random(random.next());
                tokio::spawn(async move { act(&recorder, client, round, random).await })
            })
            .collect();
        let instant = Duration::from_micros(random.below(200_000).unsigned_abs());
        tokio::time::sleep(instant).await;
        server.kill();
        recorder.killed.send_modify(|killed| *killed += 1);
        for client in clients {
            history.extend(client.await.unwrap());
        }
        if round % CRASHES == CRASHES - 1 || round + 1 == rounds {
            operations += history.len();
            for key in 0..usize::try_from(KEYS).unwrap() {
                let of_key: Vec<Operation> =
                    history.iter().copied().filter(|o| o.key == key).collect();
                assert!(
                    linearizable(&of_key),
                    "round {round}, key {key}: {of_key:#?}"
                );
            }
            history.clear();
        }
    }
    println!("{rounds} rounds, {operations} operations");
}
