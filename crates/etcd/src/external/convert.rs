//! The store's requests in the words of `etcd-client`, and its answers back.

use etcd_client::proto::{
    PbDeleteResponse, PbKeyValue, PbPutResponse, PbRangeResponse, PbResponseHeader,
    PbTxnOpResponse, PbTxnResponse,
};
use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, Txn, TxnOp};

use crate::{Error, KeyValue, Keys, Op, OpResult, Range, RangeResult, Target, TxnResult};

/// Key and, for an interval, its end in etcd's notation.
pub(super) fn keys(keys: &Keys) -> (Vec<u8>, Option<Vec<u8>>) {
    // The smallest key stands for none, and one zero byte for an end that is open.
    let or_zero = |key: &[u8]| {
        if key.is_empty() {
            vec![0]
        } else {
            key.to_vec()
        }
    };
    match keys {
        Keys::One(key) => (key.to_vec(), None),
        Keys::Range(start, end) => (or_zero(start), Some(or_zero(end))),
    }
}

pub(super) fn range(range: &Range) -> (Vec<u8>, GetOptions) {
    let (key, end) = keys(&range.keys);
    let limit = i64::try_from(range.limit).unwrap_or(i64::MAX);
    let mut options = GetOptions::new()
        .with_revision(range.revision)
        .with_limit(limit);
    if let Some(end) = end {
        options = options.with_range(end);
    }
    if range.keys_only {
        options = options.with_keys_only();
    }
    if range.count_only {
        options = options.with_count_only();
    }
    (key, options)
}

pub(super) fn txn(txn: crate::Txn) -> Txn {
    let ops = |ops: Vec<Op>| ops.into_iter().map(op).collect::<Vec<_>>();
    Txn::new()
        .when(txn.compares.into_iter().map(compare).collect::<Vec<_>>())
        .and_then(ops(txn.success))
        .or_else(ops(txn.failure))
}

fn compare(compare: crate::Compare) -> Compare {
    let (key, end) = keys(&compare.keys);
    let op = match compare.op {
        crate::CompareOp::Equal => CompareOp::Equal,
        crate::CompareOp::NotEqual => CompareOp::NotEqual,
        crate::CompareOp::Greater => CompareOp::Greater,
        crate::CompareOp::Less => CompareOp::Less,
    };
    let compare = match compare.target {
        Target::Version(n) => Compare::version(key, op, n),
        Target::Create(n) => Compare::create_revision(key, op, n),
        Target::Mod(n) => Compare::mod_revision(key, op, n),
        Target::Value(value) => Compare::value(key, op, value),
        Target::Lease(n) => Compare::lease(key, op, n),
    };
    match end {
        Some(end) => compare.with_range(end),
        None => compare,
    }
}

fn op(op: Op) -> TxnOp {
    match op {
        Op::Range(request) => {
            let (key, options) = range(&request);
            TxnOp::get(key, Some(options))
        }
        Op::Put(put) => {
            let mut options = PutOptions::new().with_lease(put.lease);
            if put.prev_kv {
                options = options.with_prev_key();
            }
            if put.ignore_value {
                options = options.with_ignore_value();
            }
            if put.ignore_lease {
                options = options.with_ignore_lease();
            }
            TxnOp::put(put.key, put.value, Some(options))
        }
        Op::Delete(delete) => {
            let (key, end) = keys(&delete.keys);
            let mut options = DeleteOptions::new();
            if let Some(end) = end {
                options = options.with_range(end);
            }
            if delete.prev_kv {
                options = options.with_prev_key();
            }
            TxnOp::delete(key, Some(options))
        }
        Op::Txn(nested) => TxnOp::txn(txn(nested)),
    }
}

pub(super) fn key_value(kv: PbKeyValue) -> KeyValue {
    KeyValue {
        key: kv.key.into(),
        value: kv.value.into(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

fn revision(header: Option<&PbResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

pub(super) fn range_result(response: PbRangeResponse) -> RangeResult {
    RangeResult {
        revision: revision(response.header.as_ref()),
        kvs: response.kvs.into_iter().map(key_value).collect(),
        count: response.count,
        more: response.more,
    }
}

pub(super) fn txn_result(response: PbTxnResponse) -> Result<TxnResult, Error> {
    let revision = revision(response.header.as_ref());
    nested(response, revision)
}

/// Every part of the result names the revision that the whole transaction ended at.
fn nested(response: PbTxnResponse, revision: i64) -> Result<TxnResult, Error> {
    let results = response.responses.into_iter().map(|op| {
        Ok(match op.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => OpResult::Range(RangeResult {
                revision,
                ..range_result(range)
            }),
            Some(PbTxnOpResponse::ResponsePut(PbPutResponse { prev_kv, .. })) => OpResult::Put {
                prev: prev_kv.map(key_value),
            },
            Some(PbTxnOpResponse::ResponseDeleteRange(PbDeleteResponse {
                deleted,
                prev_kvs,
                ..
            })) => OpResult::Delete {
                deleted,
                prev: prev_kvs.into_iter().map(key_value).collect(),
            },
            Some(PbTxnOpResponse::ResponseTxn(txn)) => OpResult::Txn(nested(txn, revision)?),
            None => {
                let what = "the server left an operation of a transaction unanswered";
                return Err(Error::Unavailable(what.into()));
            }
        })
    });
    Ok(TxnResult {
        revision,
        succeeded: response.succeeded,
        results: results.collect::<Result<_, Error>>()?,
    })
}
