//! Bytes that nobody would send, for everything that reads bytes from outside: requests of the wire, records of the log,
//! entries of the trees, pages of snapshots. Valid inputs are changed at random, so that the changes reach deep.
//!
//! `FLUYT_FUZZ_SECONDS=60 cargo nextest run -p fluyt-etcd fuzz` is the nightly form; a failure prints its seed, which
//! `FLUYT_FUZZ_SEED` runs again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbPutRequest, PbRangeRequest, PbTargetUnion, PbTxnOpRequest,
    PbTxnRequest, PbTxnRequestOp,
};
use http::Request;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;
use tonic::codegen::Service as _;

use crate::embedded::{Embedded, fuzz as stored};
use crate::grpc::{Member, Options};
use crate::{Op, Put, Store as _, Txn};

/// Runs a target for its time, on changed copies of the samples.
fn attack(samples: &[Vec<u8>], mut target: impl FnMut(&[u8])) {
    let seconds = setting("FLUYT_FUZZ_SECONDS").unwrap_or(1);
    let seed = setting("FLUYT_FUZZ_SEED").unwrap_or_else(rand::random);
    println!("FLUYT_FUZZ_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut runs = 0_u64;
    while Instant::now() < end {
        let sample = &samples[random.random_range(0..samples.len())];
        let other = &samples[random.random_range(0..samples.len())];
        target(&changed(sample, other, &mut random));
        runs += 1;
    }
    println!("{runs} runs");
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn changed(sample: &[u8], other: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..7) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.random()),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            // Lengths and counts.
            3 if at + 4 <= bytes.len() => {
                let number = [0, 1, u32::MAX, 1 << 31][random.random_range(0..4)];
                bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            4 if at < bytes.len() => bytes[at] = [0, 0x7f, 0x80, 0xff][random.random_range(0..4)],
            5 if !other.is_empty() => {
                let from = random.random_range(0..other.len());
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let copy = bytes[at..].to_vec();
                bytes.extend(copy.into_iter().take(64));
            }
        }
    }
    bytes
}

#[test]
fn fuzz_log_records() {
    let samples = stored::log_samples();
    attack(&samples, |bytes| {
        stored::read_log(bytes);
    });
}

#[test]
fn fuzz_stored_entries() {
    attack(&stored::batch_samples(), |bytes| {
        stored::read_entries(&Bytes::copy_from_slice(bytes))
    });
}

#[test]
fn fuzz_snapshots() {
    let directory = in_memory();
    let path = directory.path().join("fuzz.db");
    let mut turn = 0;
    attack(&stored::snapshot_samples(directory.path()), |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let _ = crate::embedded::snapshot::status(&path);
        let data = directory.path().join("data");
        turn += 1;
        if turn % 8 == 0 && crate::embedded::snapshot::restore(&path, &data, true).is_ok() {
            std::fs::remove_dir_all(&data).unwrap();
        }
    });
}

/// Every write waits for the disk; memory does not.
fn in_memory() -> tempfile::TempDir {
    let shm = std::path::Path::new("/dev/shm");
    if shm.is_dir() {
        tempfile::tempdir_in(shm).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let range = PbRangeRequest {
        key: b"a".to_vec(),
        range_end: b"z".to_vec(),
        limit: 3,
        revision: 2,
        sort_order: 1,
        sort_target: 2,
        ..PbRangeRequest::default()
    };
    let put = PbPutRequest {
        key: b"k".to_vec(),
        value: b"v".to_vec(),
        prev_kv: true,
        ..PbPutRequest::default()
    };
    let delete = PbDeleteRequest {
        key: b"x".to_vec(),
        range_end: vec![0],
        prev_kv: true,
    };
    let op = |request| PbTxnRequestOp {
        request: Some(request),
    };
    let compare = PbCompare {
        result: 1,
        target: 3,
        key: b"k".to_vec(),
        range_end: Vec::new(),
        target_union: Some(PbTargetUnion::Value(b"v".to_vec())),
    };
    let mut txn = PbTxnRequest {
        compare: vec![compare],
        success: vec![op(PbTxnOpRequest::RequestPut(put.clone()))],
        failure: vec![
            op(PbTxnOpRequest::RequestRange(range.clone())),
            op(PbTxnOpRequest::RequestDeleteRange(delete.clone())),
        ],
    };
    for _ in 0..3 {
        let nested = op(PbTxnOpRequest::RequestTxn(txn.clone()));
        txn.success = vec![nested];
    }
    vec![
        ("/etcdserverpb.KV/Range", range.encode_to_vec()),
        ("/etcdserverpb.KV/Put", put.encode_to_vec()),
        ("/etcdserverpb.KV/DeleteRange", delete.encode_to_vec()),
        ("/etcdserverpb.KV/Txn", txn.encode_to_vec()),
        ("/etcdserverpb.KV/Compact", vec![8, 1]),
        ("/etcdserverpb.Lease/LeaseGrant", vec![8, 1, 16, 1]),
        ("/etcdserverpb.Lease/LeaseTimeToLive", vec![8, 1, 16, 1]),
        ("/etcdserverpb.Maintenance/HashKV", vec![8, 1]),
        ("/etcdserverpb.Maintenance/Alarm", vec![8, 0]),
        ("/etcdserverpb.Watch/Watch", vec![10, 3, 10, 1, 107]),
    ]
}

/// One request in gRPC's framing: not compressed, its length, itself.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], bytes].concat()
}

#[test]
fn fuzz_requests() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let directory = in_memory();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());
    let shutdown = CancellationToken::new();
    let member = Member::new(store.clone(), Options::default(), shutdown.clone());
    let mut router = member.routes();
    let requests = requests();
    let samples: Vec<Vec<u8>> = requests.iter().map(|(_, bytes)| bytes.clone()).collect();
    let mut turn = 0;
    attack(&samples, |bytes| {
        let (path, _) = requests[turn % requests.len()];
        turn += 1;
        // Sometimes the framing itself is what is wrong.
        let body = if turn % 16 == 0 {
            bytes.to_vec()
        } else {
            framed(bytes)
        };
        let request = Request::post(path)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(axum::body::Body::from(body))
            .unwrap();
        // A router is always ready.
        let answer = runtime.block_on(router.call(request)).unwrap();
        assert!(answer.status().is_success(), "{path}: {answer:?}");
    });
    // It serves as if nothing had been, apart from the alarm that a request may have raised.
    runtime.block_on(store.set_no_space(false)).unwrap();
    let put = Txn {
        success: vec![Op::Put(Put::new("alive", "yes"))],
        ..Txn::default()
    };
    runtime.block_on(store.txn(put)).unwrap();
    shutdown.cancel();
}
