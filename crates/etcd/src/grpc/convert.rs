//! Requests of the wire as operations of the engine, and results back.

use bytes::Bytes;
use etcd_client::proto::{
    PbCompare, PbCompareTarget, PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion,
    PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};

use crate::{
    Compare, CompareOp, Delete, KeyValue, Keys, Op, OpResult, Put, Range, RangeResult, Target, Txn,
    TxnResult,
};

/// Numbers of `RangeRequest.SortOrder` and `RangeRequest.SortTarget`.
const ORDER_NONE: i32 = 0;
const ORDER_DESCEND: i32 = 2;
const TARGET_KEY: i32 = 0;
const TARGET_VERSION: i32 = 1;
const TARGET_CREATE: i32 = 2;
const TARGET_MOD: i32 = 3;
const TARGET_VALUE: i32 = 4;

/// An interval as requests give it: no end is one key, an end of one zero byte is no upper bound.
pub(super) fn keys(key: Vec<u8>, range_end: Vec<u8>) -> Keys {
    match &range_end[..] {
        [] => Keys::One(key.into()),
        [0] => Keys::Range(key.into(), Bytes::new()),
        _ => Keys::Range(key.into(), range_end.into()),
    }
}

/// `mvccpb.KeyValue`, sharing its bytes with the store.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SharedKeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(int64, tag = "2")]
    create_revision: i64,
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(int64, tag = "4")]
    version: i64,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
    #[prost(int64, tag = "6")]
    lease: i64,
}

impl From<KeyValue> for SharedKeyValue {
    fn from(kv: KeyValue) -> Self {
        Self {
            key: kv.key,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: kv.value,
            lease: kv.lease,
        }
    }
}

/// `etcdserverpb.RangeResponse`, whose values may be many and large.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<PbResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<SharedKeyValue>,
    #[prost(bool, tag = "3")]
    more: bool,
    #[prost(int64, tag = "4")]
    count: i64,
}

pub(super) fn key_value(kv: KeyValue) -> PbKeyValue {
    PbKeyValue {
        key: kv.key.into(),
        value: kv.value.into(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

pub(super) fn range(request: &PbRangeRequest) -> Range {
    // Sorted and filtered answers are cut to the limit last.
    let limit = if request.sort_order == ORDER_NONE && !filters(request) {
        match usize::try_from(request.limit) {
            // One more than asked for: what is sorted by another field than the key is cut after that.
            Ok(limit) if limit > 0 => limit.saturating_add(1),
            _ => 0,
        }
    } else {
        0
    };
    Range {
        keys: keys(request.key.clone(), request.range_end.clone()),
        revision: request.revision.max(0),
        limit,
        keys_only: request.keys_only && request.sort_target != TARGET_VALUE,
        count_only: request.count_only,
        uncounted: false,
    }
}

fn filters(request: &PbRangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

pub(super) fn range_response(
    request: &PbRangeRequest,
    result: RangeResult,
    header: PbResponseHeader,
) -> RangeResponse {
    let result = as_requested(request, result);
    RangeResponse {
        header: Some(header),
        kvs: result.kvs.into_iter().map(Into::into).collect(),
        more: result.more,
        count: result.count,
    }
}

/// The answer inside that of a transaction.
fn nested_range_response(
    request: &PbRangeRequest,
    result: RangeResult,
    header: PbResponseHeader,
) -> PbRangeResponse {
    let result = as_requested(request, result);
    PbRangeResponse {
        header: Some(header),
        kvs: result.kvs.into_iter().map(key_value).collect(),
        more: result.more,
        count: result.count,
    }
}

/// Filters, sorts and cuts what the engine read for [`range`].
fn as_requested(request: &PbRangeRequest, result: RangeResult) -> RangeResult {
    let mut kvs = result.kvs;
    let within = |n: i64, min: i64, max: i64| (min == 0 || n >= min) && (max == 0 || n <= max);
    if filters(request) {
        kvs.retain(|kv| {
            within(
                kv.mod_revision,
                request.min_mod_revision,
                request.max_mod_revision,
            ) && within(
                kv.create_revision,
                request.min_create_revision,
                request.max_create_revision,
            )
        });
    }
    let order = |a: &KeyValue, b: &KeyValue| match request.sort_target {
        TARGET_VERSION => a.version.cmp(&b.version),
        TARGET_CREATE => a.create_revision.cmp(&b.create_revision),
        TARGET_MOD => a.mod_revision.cmp(&b.mod_revision),
        TARGET_VALUE => a.value.cmp(&b.value),
        _ => a.key.cmp(&b.key),
    };
    // Stable either way: equals stay in the order of their keys.
    if request.sort_order == ORDER_DESCEND {
        kvs.sort_by(|a, b| order(b, a));
    } else if request.sort_target != TARGET_KEY {
        kvs.sort_by(order);
    }
    let mut more = false;
    if let Ok(limit) = usize::try_from(request.limit)
        && limit > 0
        && kvs.len() > limit
    {
        kvs.truncate(limit);
        more = true;
    }
    if request.keys_only {
        for kv in &mut kvs {
            kv.value = Bytes::new();
        }
    }
    RangeResult {
        kvs,
        more,
        ..result
    }
}

pub(super) fn put(request: PbPutRequest) -> Put {
    Put {
        key: request.key.into(),
        value: request.value.into(),
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

pub(super) fn delete(request: PbDeleteRequest) -> Delete {
    Delete {
        keys: keys(request.key, request.range_end),
        prev_kv: request.prev_kv,
    }
}

pub(super) fn txn(request: &PbTxnRequest) -> Txn {
    Txn {
        compares: request.compare.iter().map(compare).collect(),
        success: request.success.iter().filter_map(op).collect(),
        failure: request.failure.iter().filter_map(op).collect(),
    }
}

fn op(op: &PbTxnRequestOp) -> Option<Op> {
    Some(match op.request.as_ref()? {
        PbTxnOpRequest::RequestRange(request) => Op::Range(range(request)),
        PbTxnOpRequest::RequestPut(request) => Op::Put(put(request.clone())),
        PbTxnOpRequest::RequestDeleteRange(request) => Op::Delete(delete(request.clone())),
        PbTxnOpRequest::RequestTxn(request) => Op::Txn(txn(request)),
    })
}

fn compare(request: &PbCompare) -> Compare {
    let number = match &request.target_union {
        Some(
            PbTargetUnion::Version(n)
            | PbTargetUnion::CreateRevision(n)
            | PbTargetUnion::ModRevision(n)
            | PbTargetUnion::Lease(n),
        ) => *n,
        _ => 0,
    };
    let value = match &request.target_union {
        Some(PbTargetUnion::Value(value)) => Bytes::copy_from_slice(value),
        _ => Bytes::new(),
    };
    // The target decides, as in etcd: a union that does not fit it counts as empty.
    let target = match PbCompareTarget::try_from(request.target) {
        Ok(PbCompareTarget::Create) => Target::Create(number),
        Ok(PbCompareTarget::Mod) => Target::Mod(number),
        Ok(PbCompareTarget::Value) => Target::Value(value),
        Ok(PbCompareTarget::Lease) => Target::Lease(number),
        Ok(PbCompareTarget::Version) | Err(_) => Target::Version(number),
    };
    Compare {
        keys: keys(request.key.clone(), request.range_end.clone()),
        target,
        op: match request.result {
            1 => CompareOp::Greater,
            2 => CompareOp::Less,
            3 => CompareOp::NotEqual,
            _ => CompareOp::Equal,
        },
    }
}

/// The answer to a transaction. Inside it etcd's headers carry only a revision: the one before the transaction until
/// its first change, then its own; nested transactions carry none.
pub(super) fn txn_response(
    request: &PbTxnRequest,
    result: TxnResult,
    header: PbResponseHeader,
) -> PbTxnResponse {
    let changed = result.results.iter().any(changes);
    let mut revisions = Revisions {
        now: result.revision - i64::from(changed),
        own: result.revision,
    };
    let mut response = revisions.txn(request, result);
    response.header = Some(header);
    response
}

fn changes(result: &OpResult) -> bool {
    match result {
        OpResult::Put { .. } => true,
        OpResult::Delete { deleted, .. } => *deleted > 0,
        OpResult::Range(_) => false,
        OpResult::Txn(nested) => nested.results.iter().any(changes),
    }
}

struct Revisions {
    now: i64,
    own: i64,
}

impl Revisions {
    fn txn(&mut self, request: &PbTxnRequest, result: TxnResult) -> PbTxnResponse {
        let ops = if result.succeeded {
            &request.success
        } else {
            &request.failure
        };
        let responses = ops
            .iter()
            .filter_map(|op| op.request.as_ref())
            .zip(result.results)
            .map(|(request, result)| PbResponseOp {
                response: Some(self.op(request, result)),
            })
            .collect();
        PbTxnResponse {
            header: Some(PbResponseHeader::default()),
            succeeded: result.succeeded,
            responses,
        }
    }

    fn op(&mut self, request: &PbTxnOpRequest, result: OpResult) -> PbTxnOpResponse {
        if !matches!(result, OpResult::Txn(_)) && changes(&result) {
            self.now = self.own;
        }
        let header = PbResponseHeader {
            revision: self.now,
            ..PbResponseHeader::default()
        };
        match (request, result) {
            (PbTxnOpRequest::RequestRange(request), OpResult::Range(result)) => {
                PbTxnOpResponse::ResponseRange(nested_range_response(request, result, header))
            }
            (PbTxnOpRequest::RequestTxn(request), OpResult::Txn(result)) => {
                PbTxnOpResponse::ResponseTxn(self.txn(request, result))
            }
            (_, OpResult::Put { prev }) => PbTxnOpResponse::ResponsePut(put_response(prev, header)),
            (_, OpResult::Delete { deleted, prev }) => {
                PbTxnOpResponse::ResponseDeleteRange(delete_response(deleted, prev, header))
            }
            // The engine answers every operation with its own kind.
            (_, OpResult::Range(_) | OpResult::Txn(_)) => {
                PbTxnOpResponse::ResponseRange(PbRangeResponse::default())
            }
        }
    }
}

pub(super) fn put_response(prev: Option<KeyValue>, header: PbResponseHeader) -> PbPutResponse {
    PbPutResponse {
        header: Some(header),
        prev_kv: prev.map(key_value),
    }
}

pub(super) fn delete_response(
    deleted: i64,
    prev: Vec<KeyValue>,
    header: PbResponseHeader,
) -> PbDeleteResponse {
    PbDeleteResponse {
        header: Some(header),
        deleted,
        prev_kvs: prev.into_iter().map(key_value).collect(),
    }
}
