//! The same random operations against this server and a real etcd (Debian's etcd-server): every answer must be the same,
//! field by field, except for the ids of the cluster and its member and the term.

#![allow(clippy::unwrap_used)]

mod common;

use common::Server;
use etcd_client::WatchOptions;
use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbCompare, PbDeleteRequest, PbDeleteResponse,
    PbHashKvRequest, PbHashKvResponse, PbLeaseGrantRequest, PbLeaseGrantResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbResponseHeader, PbTargetUnion, PbTxnOpRequest, PbTxnRequest,
    PbTxnRequestOp, PbTxnResponse,
};
use prost::Message;
use tonic::Status;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

/// Runs of the short form; `FLUYT_DIFFERENTIAL_SEEDS=150` makes it 100,000 operations.
const SEEDS: u64 = 3;
const OPERATIONS: usize = 700;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: i64) -> i64 {
        i64::try_from(self.next() % n.unsigned_abs()).unwrap()
    }

    fn one_in(&mut self, n: i64) -> bool {
        self.below(n) == 0
    }

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

    async fn call<In, Out>(&mut self, method: &'static str, request: In) -> Result<Out, Status>
    where
        In: Message + 'static,
        Out: Message + Default + 'static,
    {
        self.0.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static(method);
        let codec = ProstCodec::<In, Out>::default();
        let answer = self
            .0
            .unary(tonic::Request::new(request), path, codec)
            .await;
        answer.map(tonic::Response::into_inner)
    }
}

/// What is the same on both sides; the revision of the header is.
trait Answer: Message + std::fmt::Debug + Default + Clone + PartialEq + 'static {
    fn header(&mut self) -> &mut Option<PbResponseHeader>;
    fn normalize(&mut self) {}
}

macro_rules! answers {
    ($($answer:ty $(: $normalize:expr)?),* $(,)?) => {$(
        impl Answer for $answer {
            fn header(&mut self) -> &mut Option<PbResponseHeader> {
                &mut self.header
            }
            $(fn normalize(&mut self) {
                let normalize: fn(&mut Self) = $normalize;
                normalize(self);
            })?
        }
    )*};
}

answers!(
    PbRangeResponse,
    PbPutResponse,
    PbDeleteResponse,
    PbTxnResponse,
    PbCompactionResponse,
    PbLeaseGrantResponse,
    PbLeaseRevokeResponse,
    // Time passes, and etcd lists in no order.
    PbLeaseTimeToLiveResponse: |a| { a.ttl = a.ttl.signum(); a.keys.sort(); },
    PbLeaseLeasesResponse: |a| a.leases.sort_by_key(|lease| lease.id),
    // Later than 3.4.
    PbHashKvResponse: |a| a.hash_revision = 0,
);

struct Pair {
    ours: Side,
    theirs: Side,
    /// The newest revision that an answer named.
    revision: i64,
    seed: u64,
}

impl Pair {
    async fn both<In, Out>(&mut self, method: &'static str, request: In)
    where
        In: Message + std::fmt::Debug + Clone + 'static,
        Out: Answer,
    {
        let ours = seen(self.ours.call::<In, Out>(method, request.clone()).await);
        let theirs = seen(self.theirs.call::<In, Out>(method, request.clone()).await);
        assert_eq!(ours, theirs, "seed {}: {method} {request:?}", self.seed);
        if let Ok(mut answer) = ours {
            self.revision = answer.header().as_ref().unwrap().revision;
        }
    }
}

fn seen<Out: Answer>(answer: Result<Out, Status>) -> Result<Out, (tonic::Code, String)> {
    match answer {
        Ok(mut answer) => {
            let header = answer.header().as_mut().unwrap();
            (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
            answer.normalize();
            Ok(answer)
        }
        Err(status) => Err((status.code(), status.message().to_owned())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_etcds() {
    let seeds = std::env::var("FLUYT_DIFFERENTIAL_SEEDS");
    let seeds = seeds.map_or(SEEDS, |n| n.parse().unwrap());
    for seed in 0..seeds {
        let (ours, theirs) = (Server::fluyt(&[]).await, Server::etcd().await);
        let mut pair = Pair {
            ours: Side::connect(&ours).await,
            theirs: Side::connect(&theirs).await,
            revision: 1,
            seed,
        };
        let mut random = Random(seed);
        let mut compacted = 0;
        for _ in 0..OPERATIONS {
            step(&mut pair, &mut random, &mut compacted).await;
        }
        let last = PbPutRequest {
            key: b"last".to_vec(),
            ..PbPutRequest::default()
        };
        pair.both::<_, PbPutResponse>("/etcdserverpb.KV/Put", last)
            .await;
        let from = compacted + 1;
        let history = events(&ours, from).await;
        assert!(!history.is_empty());
        let reference = events(&theirs, from).await;
        for (ours, theirs) in history.iter().zip(&reference) {
            assert_eq!(ours, theirs, "seed {seed}");
        }
        assert_eq!(history.len(), reference.len(), "seed {seed}");
    }
}

async fn step(pair: &mut Pair, random: &mut Random, compacted: &mut i64) {
    let now = pair.revision;
    match random.below(40) {
        0..8 => {
            let request = random.range(now);
            pair.both::<_, PbRangeResponse>("/etcdserverpb.KV/Range", request)
                .await;
        }
        8..16 => {
            pair.both::<_, PbPutResponse>("/etcdserverpb.KV/Put", random.put())
                .await;
        }
        16..19 => {
            let request = random.delete();
            pair.both::<_, PbDeleteResponse>("/etcdserverpb.KV/DeleteRange", request)
                .await;
        }
        19..33 => {
            let request = random.txn(now, 2);
            pair.both::<_, PbTxnResponse>("/etcdserverpb.KV/Txn", request)
                .await;
        }
        33 => {
            let revision = now - random.below(30) + 1;
            let request = PbCompactionRequest {
                revision,
                physical: true,
            };
            pair.both::<_, PbCompactionResponse>("/etcdserverpb.KV/Compact", request)
                .await;
            if revision <= now {
                *compacted = revision.max(*compacted);
            }
        }
        34 => {
            let request = PbHashKvRequest {
                revision: random.revision(now),
            };
            pair.both::<_, PbHashKvResponse>("/etcdserverpb.Maintenance/HashKV", request)
                .await;
        }
        35 | 36 => {
            let request = PbLeaseGrantRequest {
                id: 1 + random.below(4),
                ttl: 1000 + random.below(3) * 9_000_000_000,
            };
            pair.both::<_, PbLeaseGrantResponse>("/etcdserverpb.Lease/LeaseGrant", request)
                .await;
        }
        37 => {
            let request = PbLeaseRevokeRequest {
                id: 1 + random.below(4),
            };
            pair.both::<_, PbLeaseRevokeResponse>("/etcdserverpb.Lease/LeaseRevoke", request)
                .await;
        }
        38 => {
            let request = PbLeaseTimeToLiveRequest {
                id: 1 + random.below(4),
                keys: true,
            };
            let method = "/etcdserverpb.Lease/LeaseTimeToLive";
            pair.both::<_, PbLeaseTimeToLiveResponse>(method, request)
                .await;
        }
        _ => {
            let method = "/etcdserverpb.Lease/LeaseLeases";
            pair.both::<_, PbLeaseLeasesResponse>(method, PbLeaseLeasesRequest {})
                .await;
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
            if event.kv().unwrap().key() == b"last" {
                return seen;
            }
        }
    }
}
