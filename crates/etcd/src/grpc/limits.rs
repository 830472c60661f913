//! What etcd refuses before it looks at any data: the checks of its `api/v3rpc/key.go`.

use etcd_client::proto::{
    PbDeleteRequest, PbPutRequest, PbRangeRequest, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp,
};
use prost::Message;
use tonic::Status;

use super::status::invalid;
use crate::Error;

/// Sort orders and targets that exist.
const SORT_ORDERS: i32 = 3;
const SORT_TARGETS: i32 = 5;

pub(super) fn size(request: &impl Message, max_bytes: usize) -> Result<(), Status> {
    if request.encoded_len() > max_bytes {
        return Err(invalid("request is too large"));
    }
    Ok(())
}

pub(super) fn range(request: &PbRangeRequest) -> Result<(), Status> {
    key(&request.key)?;
    if !(0..SORT_ORDERS).contains(&request.sort_order)
        || !(0..SORT_TARGETS).contains(&request.sort_target)
    {
        return Err(invalid("invalid sort option"));
    }
    Ok(())
}

pub(super) fn put(request: &PbPutRequest) -> Result<(), Status> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(invalid("value is provided"));
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(invalid("lease is provided"));
    }
    Ok(())
}

pub(super) fn delete(request: &PbDeleteRequest) -> Result<(), Status> {
    key(&request.key)
}

pub(super) fn txn(request: &PbTxnRequest, max_ops: usize) -> Result<(), Status> {
    let ops = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let Some(left) = max_ops.checked_sub(ops) else {
        return Err(invalid("too many operations in txn request"));
    };
    for compare in &request.compare {
        key(&compare.key)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        self::op(op, left)?;
    }
    Ok(())
}

fn op(op: &PbTxnRequestOp, left: usize) -> Result<(), Status> {
    match &op.request {
        Some(PbTxnOpRequest::RequestRange(request)) => range(request),
        Some(PbTxnOpRequest::RequestPut(request)) => put(request),
        Some(PbTxnOpRequest::RequestDeleteRange(request)) => delete(request),
        Some(PbTxnOpRequest::RequestTxn(request)) => txn(request, left),
        None => Err(Error::KeyNotFound.into()),
    }
}

fn key(key: &[u8]) -> Result<(), Status> {
    if key.is_empty() {
        return Err(Error::EmptyKey.into());
    }
    Ok(())
}
