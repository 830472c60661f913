//! The same random operations against this server and a real etcd (Debian's etcd-server): every answer must be the same,
//! field by field, except for the ids of the cluster and its member and the term.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::common::Server;
use crate::common::process::setting;
use crate::common::random::Random;
use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbCompare, PbDeleteRequest, PbDeleteResponse,
    PbHashKvRequest, PbHashKvResponse, PbKeyValue, PbLeaseGrantRequest, PbLeaseGrantResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbResponseHeader, PbTargetUnion, PbTxnOpRequest,
    PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};
use etcd_client::{WatchFilterType, WatchOptions, WatchRequestSender, WatchResponseStream};
use prost::Message;
use tonic::Status;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

/// Runs of the short form; `FLUYT_DIFFERENTIAL_SEEDS=150` makes it 105,000 operations. On a memory file system
/// (`TMPDIR=/dev/shm`) those take some minutes.
const SEEDS: usize = 3;
const OPERATIONS: usize = 700;

const TARGET_KEY: i32 = 0;
const TARGET_VERSION: i32 = 1;
const TARGET_CREATE: i32 = 2;
const TARGET_MOD: i32 = 3;

impl Random {
    fn key(&mut self) -> Vec<u8> {
        match self.below(30) {
            0 => Vec::new(),
            n => format!("k{}", n % 7).into_bytes(),
        }
    }

    fn end(&mut self) -> Vec<u8> {
        match self.below(8) {
            0 => vec![0],
            1 | 2 => format!("k{}", self.below(8)).into_bytes(),
            _ => Vec::new(),
        }
    }

    /// Seldom far off: mostly one that may exist.
    fn revision(&mut self, now: i64) -> i64 {
        match self.below(4) {
            0 => (now - self.below(20)).max(0),
            1 if self.one_in(8) => now + self.below(3),
            _ => 0,
        }
    }

    fn lease(&mut self) -> i64 {
        match self.below(5) {
            0 => 1 + self.below(4),
            _ => 0,
        }
    }

    fn range(&mut self, now: i64) -> PbRangeRequest {
        let mut request = PbRangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: self.below(4),
            revision: self.revision(now),
            keys_only: self.one_in(5),
            count_only: self.one_in(8),
            serializable: self.one_in(3),
            ..PbRangeRequest::default()
        };
        if self.one_in(3) {
            request.sort_order = i32::try_from(self.below(3)).unwrap();
            request.sort_target = i32::try_from(self.below(5)).unwrap();
        }
        if self.one_in(6) {
            request.min_mod_revision = (now - self.below(20)).max(0);
            request.max_create_revision = (now - self.below(5)).max(0);
        }
        request
    }

    fn put(&mut self) -> PbPutRequest {
        PbPutRequest {
            key: self.key(),
            value: format!("v{}", self.below(5)).into_bytes(),
            lease: self.lease(),
            prev_kv: self.one_in(2),
            ignore_value: self.one_in(15),
            ignore_lease: self.one_in(15),
        }
        .without_value_if_ignored(self.one_in(4))
    }

    fn delete(&mut self) -> PbDeleteRequest {
        PbDeleteRequest {
            key: self.key(),
            range_end: if self.one_in(4) {
                self.end()
            } else {
                Vec::new()
            },
            prev_kv: self.one_in(2),
        }
    }

    fn compare(&mut self, now: i64) -> PbCompare {
        let target = i32::try_from(self.below(5)).unwrap();
        let revision = (now - self.below(10)).max(0);
        PbCompare {
            result: i32::try_from(self.below(4)).unwrap(),
            target,
            key: self.key(),
            range_end: self.end(),
            target_union: Some(match target {
                0 => PbTargetUnion::Version(self.below(4)),
                1 => PbTargetUnion::CreateRevision(revision),
                2 => PbTargetUnion::ModRevision(revision),
                3 => PbTargetUnion::Value(format!("v{}", self.below(5)).into_bytes()),
                _ => PbTargetUnion::Lease(self.lease()),
            }),
        }
    }

    fn ops(&mut self, now: i64, depth: i64) -> Vec<PbTxnRequestOp> {
        (0..self.below(4))
            .map(|_| PbTxnRequestOp {
                request: Some(match self.below(6) {
                    0 | 1 => PbTxnOpRequest::RequestRange(self.range(now)),
                    2 | 3 => PbTxnOpRequest::RequestPut(self.put()),
                    4 => PbTxnOpRequest::RequestDeleteRange(self.delete()),
                    _ if depth > 0 => PbTxnOpRequest::RequestTxn(self.txn(now, depth - 1)),
                    _ => PbTxnOpRequest::RequestPut(self.put()),
                }),
            })
            .collect()
    }

    fn txn(&mut self, now: i64, depth: i64) -> PbTxnRequest {
        PbTxnRequest {
            compare: (0..self.below(3)).map(|_| self.compare(now)).collect(),
            success: self.ops(now, depth),
            failure: self.ops(now, depth),
        }
    }
}

trait Ignoring {
    fn without_value_if_ignored(self, keep: bool) -> Self;
}

impl Ignoring for PbPutRequest {
    /// Mostly valid, sometimes with what etcd refuses.
    fn without_value_if_ignored(mut self, keep: bool) -> Self {
        if self.ignore_value && !keep {
            self.value.clear();
        }
        if self.ignore_lease && !keep {
            self.lease = 0;
        }
        self
    }
}

struct Side(tonic::client::Grpc<Channel>);

impl Side {
    async fn connect(server: &Server) -> Self {
        let endpoint = Channel::from_shared(server.url.clone()).unwrap();
        Self(tonic::client::Grpc::new(endpoint.connect().await.unwrap()))
    }

    async fn call<In: Request>(&mut self, request: In) -> Result<In::Answer, Status> {
        self.0.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static(In::METHOD);
        let codec = ProstCodec::<In, In::Answer>::default();
        let answer = self
            .0
            .unary(tonic::Request::new(request), path, codec)
            .await;
        answer.map(tonic::Response::into_inner)
    }
}

/// An operation, and what of its answer is the same on both sides.
trait Request: Message + std::fmt::Debug + Clone + 'static {
    type Answer: Answer;
    const METHOD: &'static str;

    /// Takes from an answer what etcd leaves open.
    fn settle(&self, _answer: &mut Self::Answer) {}
}

/// The revision of the header is the same too.
trait Answer: Message + std::fmt::Debug + Default + Clone + PartialEq + 'static {
    fn header(&mut self) -> &mut Option<PbResponseHeader>;
}

macro_rules! operations {
    ($($method:literal $request:ty => $answer:ty $(: $settle:expr)?;)*) => {$(
        impl Request for $request {
            type Answer = $answer;
            const METHOD: &'static str = concat!("/etcdserverpb.", $method);
            $(fn settle(&self, answer: &mut $answer) {
                let settle: fn(&Self, &mut $answer) = $settle;
                settle(self, answer);
            })?
        }
        impl Answer for $answer {
            fn header(&mut self) -> &mut Option<PbResponseHeader> {
                &mut self.header
            }
        }
    )*};
}

operations!(
    "KV/Range" PbRangeRequest => PbRangeResponse: settle_ties;
    "KV/Put" PbPutRequest => PbPutResponse;
    "KV/DeleteRange" PbDeleteRequest => PbDeleteResponse;
    "KV/Txn" PbTxnRequest => PbTxnResponse: settle_ranges;
    "KV/Compact" PbCompactionRequest => PbCompactionResponse;
    // Later than 3.4.
    "Maintenance/HashKV" PbHashKvRequest => PbHashKvResponse: |_, a| a.hash_revision = 0;
    "Lease/LeaseGrant" PbLeaseGrantRequest => PbLeaseGrantResponse;
    "Lease/LeaseRevoke" PbLeaseRevokeRequest => PbLeaseRevokeResponse;
    // Time passes, and etcd lists in no order.
    "Lease/LeaseTimeToLive" PbLeaseTimeToLiveRequest => PbLeaseTimeToLiveResponse:
        |_, a| { a.ttl = a.ttl.signum(); a.keys.sort(); };
    "Lease/LeaseLeases" PbLeaseLeasesRequest => PbLeaseLeasesResponse: |_, a| a.leases.sort_by_key(|lease| lease.id);
);

/// The order of keys that are equal in what a range is sorted by depends on the release of Go that etcd was built with:
/// they are compared as a set, and those of which a limit leaves out some only in how many they are.
fn settle_ties(request: &PbRangeRequest, answer: &mut PbRangeResponse) {
    let sorted_by = |kv: &PbKeyValue| match request.sort_target {
        TARGET_KEY => kv.key.clone(),
        TARGET_VERSION => kv.version.to_be_bytes().to_vec(),
        TARGET_CREATE => kv.create_revision.to_be_bytes().to_vec(),
        TARGET_MOD => kv.mod_revision.to_be_bytes().to_vec(),
        // Without values all that can be told apart is not what they are sorted by.
        _ if request.keys_only => Vec::new(),
        _ => kv.value.clone(),
    };
    for ties in answer.kvs.chunk_by_mut(|a, b| sorted_by(a) == sorted_by(b)) {
        ties.sort_by(|a, b| a.key.cmp(&b.key));
    }
    if answer.more && request.sort_target != TARGET_KEY {
        let cut = answer.kvs.last().map(sorted_by);
        for kv in &mut answer.kvs {
            let tied = sorted_by(kv);
            if Some(&tied) == cut.as_ref() {
                *kv = PbKeyValue {
                    value: tied,
                    ..PbKeyValue::default()
                };
            }
        }
    }
}

fn settle_ranges(request: &PbTxnRequest, answer: &mut PbTxnResponse) {
    let ops = if answer.succeeded {
        &request.success
    } else {
        &request.failure
    };
    for (op, answer) in ops.iter().zip(&mut answer.responses) {
        match (&op.request, &mut answer.response) {
            (
                Some(PbTxnOpRequest::RequestRange(op)),
                Some(PbTxnOpResponse::ResponseRange(answer)),
            ) => {
                op.settle(answer);
            }
            (Some(PbTxnOpRequest::RequestTxn(op)), Some(PbTxnOpResponse::ResponseTxn(answer))) => {
                op.settle(answer);
            }
            _ => {}
        }
    }
}

struct Pair {
    ours: Side,
    theirs: Side,
    /// The newest revision that an answer named.
    revision: i64,
    seed: u64,
}

impl Pair {
    async fn both<In: Request>(&mut self, request: In) {
        let (ours, theirs) = tokio::join!(
            self.ours.call(request.clone()),
            self.theirs.call(request.clone()),
        );
        let (ours, theirs) = (seen(&request, ours), seen(&request, theirs));
        let method = In::METHOD;
        assert_eq!(ours, theirs, "seed {}: {method} {request:?}", self.seed);
        if let Ok(mut answer) = ours {
            self.revision = answer.header().as_ref().unwrap().revision;
        }
    }
}

fn seen<In: Request>(
    request: &In,
    answer: Result<In::Answer, Status>,
) -> Result<In::Answer, (tonic::Code, String)> {
    match answer {
        Ok(mut answer) => {
            let header = answer.header().as_mut().unwrap();
            (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
            request.settle(&mut answer);
            Ok(answer)
        }
        Err(status) => Err((status.code(), status.message().to_owned())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_etcds() {
    let seeds = setting("FLUYT_DIFFERENTIAL_SEEDS", SEEDS);
    let first = setting("FLUYT_DIFFERENTIAL_FIRST_SEED", 0);
    for seed in first..first + seeds {
        let seed = u64::try_from(seed).unwrap();
        let (ours, theirs) = (Server::fluyt(&[]).await, Server::etcd().await);
        let mut pair = Pair {
            ours: Side::connect(&ours).await,
            theirs: Side::connect(&theirs).await,
            revision: 1,
            seed,
        };
        let mut random = Random(seed);
        let mut compacted = 0;
        let mut watches = Watches::open(&ours, &theirs, seed).await;
        for _ in 0..OPERATIONS {
            if random.one_in(30) {
                watches.step(&mut random, pair.revision, compacted).await;
            } else if random.one_in(30) {
                keep_alive(&ours, &theirs, 1 + random.below(4)).await;
            } else {
                step(&mut pair, &mut random, &mut compacted).await;
            }
        }
        let last = PbPutRequest {
            key: LAST.to_vec(),
            ..PbPutRequest::default()
        };
        pair.both(last).await;
        let from = compacted + 1;
        let history = events(&ours, from).await;
        assert!(!history.is_empty());
        let reference = events(&theirs, from).await;
        for (ours, theirs) in history.iter().zip(&reference) {
            assert_eq!(ours, theirs, "seed {seed}");
        }
        assert_eq!(history.len(), reference.len(), "seed {seed}");
        watches.compare().await;
    }
}

/// The key that is put last.
const LAST: &[u8] = b"last";

async fn keep_alive(ours: &Server, theirs: &Server, id: i64) {
    let mut answers = Vec::new();
    for server in [ours, theirs] {
        let kept = server.client().await.lease_keep_alive(id).await;
        answers.push(match kept {
            Ok((mut keeper, mut stream)) => {
                keeper.keep_alive().await.unwrap();
                let answer = stream.message().await.unwrap().unwrap();
                Ok((answer.id(), answer.ttl()))
            }
            Err(error) => Err(error.to_string()),
        });
    }
    assert_eq!(answers[0], answers[1], "lease {id}");
}

/// What one server sent on a stream of watches.
#[derive(Default)]
struct Sent {
    /// Answers to requests, and cancellations, by watch.
    control: BTreeMap<i64, Vec<String>>,
    controls: usize,
    events: BTreeMap<i64, Vec<(i64, String)>>,
    progress: Vec<i64>,
}

/// One server's stream with its reader.
struct Stream {
    requests: WatchRequestSender,
    sent: Arc<tokio::sync::watch::Sender<Sent>>,
}

impl Stream {
    async fn open(server: &Server, options: WatchOptions) -> Self {
        let stream = server
            .client()
            .await
            .watch("", Some(options))
            .await
            .unwrap();
        let (requests, responses) = stream.split();
        let sent = Arc::new(tokio::sync::watch::Sender::new(Sent::default()));
        tokio::spawn(collect(responses, sent.clone()));
        Self { requests, sent }
    }

    /// Waits, for a while, until what was sent is as expected.
    async fn until(&self, what: &str, expected: impl FnMut(&Sent) -> bool) {
        let mut sent = self.sent.subscribe();
        let waiting = sent.wait_for(expected);
        let found = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        assert!(found.is_ok(), "{what}");
    }
}

async fn collect(mut responses: WatchResponseStream, sent: Arc<tokio::sync::watch::Sender<Sent>>) {
    while let Ok(Some(answer)) = responses.message().await {
        sent.send_modify(|sent| {
            let id = answer.watch_id();
            let revision = answer.header().unwrap().revision();
            if answer.created() || answer.canceled() {
                let text = format!(
                    "created {} canceled {} compacted {} at {revision}: {}",
                    answer.created(),
                    answer.canceled(),
                    answer.compact_revision(),
                    answer.cancel_reason()
                );
                sent.control.entry(id).or_default().push(text);
                sent.controls += 1;
            } else if answer.events().is_empty() {
                sent.progress.push(revision);
            }
            for event in answer.events() {
                let revision = event.kv().unwrap().mod_revision();
                let events = sent.events.entry(id).or_default();
                events.push((revision, format!("{event:?}")));
            }
        });
    }
}

/// What a watch that was made is about.
struct Wanted {
    start: i64,
    no_put: bool,
    no_delete: bool,
    key: Vec<u8>,
    end: Vec<u8>,
}

impl Wanted {
    fn contains(&self, key: &[u8]) -> bool {
        match &self.end[..] {
            [] => key == self.key,
            [0] => key >= &self.key[..],
            end => key >= &self.key[..] && key < end,
        }
    }
}

/// The same watches on one stream of both servers.
struct Watches {
    streams: [Stream; 2],
    /// Watches that neither the client nor the server has ended.
    live: BTreeMap<i64, Wanted>,
    /// Watches of the past that a compaction may overtake: etcd begins to serve them a moment after they are made.
    slow: HashSet<i64>,
    /// Answers to come so far.
    controls: usize,
    seed: u64,
}

/// The watch that sees everything.
const ALL: i64 = 1000;

impl Watches {
    async fn open(ours: &Server, theirs: &Server, seed: u64) -> Self {
        let all = WatchOptions::new().with_all_keys().with_watch_id(ALL);
        let all = all.with_prev_key();
        let watches = Self {
            streams: [
                Stream::open(ours, all.clone()).await,
                Stream::open(theirs, all).await,
            ],
            live: BTreeMap::new(),
            slow: HashSet::new(),
            controls: 1,
            seed,
        };
        watches.answered().await;
        watches
    }

    /// Waits for the answers to all requests; the same from both.
    async fn answered(&self) {
        for stream in &self.streams {
            // Cancellations because of compaction come unasked.
            stream
                .until("a watch is not answered", |sent| {
                    let asked = sent.control.values().flatten();
                    asked
                        .filter(|text| {
                            !text.contains("created false canceled true compacted")
                                || text.contains("compacted 0")
                        })
                        .count()
                        >= self.controls
                })
                .await;
        }
    }

    async fn step(&mut self, random: &mut Random, now: i64, compacted: i64) {
        if random.one_in(3)
            && let Some(id) = self.live.keys().copied().find(|_| random.one_in(2))
        {
            let cancelled = |stream: &Stream| {
                let sent = stream.sent.borrow();
                sent.control
                    .get(&id)
                    .is_some_and(|c| c.iter().any(|text| text.contains("canceled true")))
            };
            // One that compaction has ended is not there to be cancelled.
            if self.streams.iter().any(cancelled) {
                return;
            }
            self.live.remove(&id);
            self.controls += 1;
            for stream in &mut self.streams {
                stream.requests.cancel(id).await.unwrap();
            }
            return self.answered().await;
        }
        let (key, end) = (random.key(), random.end());
        let start = match random.below(4) {
            0 => (now - random.below(40)).max(1),
            1 => now + random.below(5),
            _ => 0,
        };
        // Ids are not used again, so that what comes late is not taken for another's. One that is taken is refused.
        let id = if random.one_in(6) {
            self.live.keys().next().copied().unwrap_or(0)
        } else {
            0
        };
        let (no_put, no_delete) = (random.one_in(4), random.one_in(4));
        let mut options = WatchOptions::new()
            .with_start_revision(start)
            .with_watch_id(id);
        let mut filters = Vec::new();
        if no_put {
            filters.push(WatchFilterType::NoPut);
        }
        if no_delete {
            filters.push(WatchFilterType::NoDelete);
        }
        options = options.with_filters(filters);
        if !end.is_empty() {
            options = options.with_range(end.clone());
        }
        if random.one_in(2) {
            options = options.with_prev_key();
        }
        self.controls += 1;
        let before: Vec<i64> = self.streams[0]
            .sent
            .borrow()
            .control
            .keys()
            .copied()
            .collect();
        for stream in &mut self.streams {
            let watch = stream.requests.watch(key.clone(), Some(options.clone()));
            watch.await.unwrap();
        }
        self.answered().await;
        let made: Vec<i64> = self.streams[0]
            .sent
            .borrow()
            .control
            .keys()
            .copied()
            .collect();
        for id in made
            .into_iter()
            .filter(|id| *id >= 0 && !before.contains(id))
        {
            let wanted = Wanted {
                start: if start > 0 { start } else { now + 1 },
                no_put,
                no_delete,
                key: if key.is_empty() { vec![0] } else { key.clone() },
                end: end.clone(),
            };
            if (compacted..=now).contains(&wanted.start) {
                self.slow.insert(id);
            }
            self.live.insert(id, wanted);
        }
    }

    /// After the last put: what every watch has seen.
    async fn compare(mut self) {
        let last = format!("{LAST:?}");
        for stream in &self.streams {
            stream
                .until("the last event does not come", |sent| {
                    let all = sent.events.get(&ALL);
                    all.and_then(|e| e.last())
                        .is_some_and(|(_, text)| text.contains(&last))
                })
                .await;
        }
        let ended = |sent: &Sent, id: &i64| {
            let control = sent.control.get(id);
            control.is_some_and(|c| c.iter().any(|text| text.contains("canceled true")))
        };
        // Those that still live have seen all that they are about.
        let all = self.streams[0].sent.borrow().events[&ALL].clone();
        for (id, wanted) in &self.live {
            let count = all.iter().filter(|(revision, text)| {
                let deleted = text.contains("r#type: Delete") || text.contains("type: 1");
                let key = key_of(text);
                *revision >= wanted.start
                    && wanted.contains(&key)
                    && !(if deleted {
                        wanted.no_delete
                    } else {
                        wanted.no_put
                    })
            });
            let count = count.count();
            for (stream, side) in self.streams.iter().zip(["ours", "theirs"]) {
                let what = format!("seed {}: watch {id} of {side} lacks events", self.seed);
                stream
                    .until(&what, |sent| {
                        sent.events.get(id).map_or(0, Vec::len) >= count || ended(sent, id)
                    })
                    .await;
            }
        }
        self.live.retain(|id, _| {
            let mut streams = self.streams.iter();
            !streams.any(|stream| ended(&stream.sent.borrow(), id))
        });
        let [ours, theirs] = &self.streams;
        {
            let (ours, theirs) = (ours.sent.borrow(), theirs.sent.borrow());
            let told = |sent: &Sent| {
                let mut control = sent.control.clone();
                // Which of several compactions a watch of what is gone is told of is a matter of time as well.
                for text in control.values_mut().flatten() {
                    if text.contains("at 0")
                        && let Some((before, _)) = text.split_once("compacted ")
                    {
                        *text = format!("{before}compacted");
                    }
                }
                for id in &self.slow {
                    let texts = control.get_mut(id).unwrap();
                    texts.retain(|text| !text.ends_with("compacted"));
                }
                control
            };
            assert_eq!(told(&ours), told(&theirs), "seed {}", self.seed);
            for id in self.live.keys().chain([&ALL]) {
                let events = |sent: &Sent| {
                    let mut events = sent.events.get(id).cloned().unwrap_or_default();
                    // What was there before may have been compacted by the time etcd serves a watch of the past.
                    if self.slow.contains(id) {
                        for (_, text) in &mut events {
                            text.truncate(text.find(", prev_kv: ").unwrap_or(text.len()));
                        }
                    }
                    events
                };
                assert_eq!(
                    events(&ours),
                    events(&theirs),
                    "seed {}: watch {id}",
                    self.seed
                );
            }
        }
        for stream in &mut self.streams {
            stream.requests.request_progress().await.unwrap();
        }
        for stream in &self.streams {
            stream
                .until("progress is not told", |sent| !sent.progress.is_empty())
                .await;
        }
        let progress = self
            .streams
            .each_ref()
            .map(|s| s.sent.borrow().progress.clone());
        assert_eq!(progress[0], progress[1]);
    }
}

async fn step(pair: &mut Pair, random: &mut Random, compacted: &mut i64) {
    let now = pair.revision;
    match random.below(40) {
        0..8 => {
            let request = random.range(now);
            pair.both(request).await;
        }
        8..16 => {
            pair.both(random.put()).await;
        }
        16..19 => {
            let request = random.delete();
            pair.both(request).await;
        }
        19..33 => {
            let request = random.txn(now, 2);
            pair.both(request).await;
        }
        33 => {
            let revision = now - random.below(30) + 1;
            let request = PbCompactionRequest {
                revision,
                physical: true,
            };
            pair.both(request).await;
            if revision <= now {
                *compacted = revision.max(*compacted);
            }
        }
        34 => {
            let request = PbHashKvRequest {
                revision: random.revision(now),
            };
            pair.both(request).await;
        }
        35 | 36 => {
            let request = PbLeaseGrantRequest {
                id: 1 + random.below(4),
                ttl: 1000 + random.below(3) * 9_000_000_000,
            };
            pair.both(request).await;
        }
        37 => {
            let request = PbLeaseRevokeRequest {
                id: 1 + random.below(4),
            };
            pair.both(request).await;
        }
        38 => {
            let request = PbLeaseTimeToLiveRequest {
                id: 1 + random.below(4),
                keys: true,
            };
            pair.both(request).await;
        }
        _ => {
            pair.both(PbLeaseLeasesRequest {}).await;
        }
    }
}

/// All events from a revision up to the last put, as text.
async fn events(server: &Server, from: i64) -> Vec<String> {
    let options = WatchOptions::new()
        .with_all_keys()
        .with_start_revision(from)
        .with_prev_key();
    let mut stream = server
        .client()
        .await
        .watch("", Some(options))
        .await
        .unwrap();
    let mut seen = Vec::new();
    loop {
        let answer = stream.message().await.unwrap().unwrap();
        assert!(!answer.canceled(), "{answer:?}");
        for event in answer.events() {
            seen.push(format!("{event:?}"));
            if event.kv().unwrap().key() == LAST {
                return seen;
            }
        }
    }
}

/// The key in an event's text.
fn key_of(text: &str) -> Vec<u8> {
    let list = text
        .split("key: [")
        .nth(1)
        .and_then(|t| t.split(']').next());
    let bytes = list
        .unwrap_or_default()
        .split(", ")
        .filter(|b| !b.is_empty());
    bytes.map(|b| b.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_of_watches_come_in_fragments() {
    let mut seen = Vec::new();
    for server in [Server::fluyt(&[]).await, Server::etcd().await] {
        let mut client = server.client().await;
        // One revision after the other, of more than fits into one answer.
        for i in 0..60_u8 {
            client
                .put(format!("k{i}"), vec![i; 60_000], None)
                .await
                .unwrap();
        }
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(2)
            .with_fragment();
        let mut stream = client.watch("k", Some(options)).await.unwrap();
        let (mut keys, mut fragments) = (Vec::new(), 0);
        while keys.len() < 60 {
            let answer = stream.message().await.unwrap().unwrap();
            fragments += usize::from(answer.0.fragment);
            keys.extend(
                answer
                    .events()
                    .iter()
                    .map(|e| e.kv().unwrap().key().to_vec()),
            );
        }
        assert!(fragments > 0);
        seen.push(keys);
    }
    assert_eq!(seen[0], seen[1]);
}
