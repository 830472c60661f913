//! `etcdserverpb.KV`.

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbTxnRequest, PbTxnResponse,
};
use http::Request;
use tonic::Status;

use super::convert::RangeResponse;
use super::raw::{self, Methods, Reply, RequestBody};
use super::{MESSAGE_OVERHEAD, Member, convert, limits};
use crate::{Error, Op, OpResult, Store as _, Txn};

#[derive(Clone)]
pub(super) struct Kv(pub Member);

impl Methods for Kv {
    const NAME: &'static str = "etcdserverpb.KV";

    fn call<B: RequestBody>(&self, method: &str, request: Request<B>) -> Reply {
        let member = self.0.clone();
        let limit = member.0.options.max_request_bytes + MESSAGE_OVERHEAD;
        match method {
            "Range" => raw::call_apart(request, limit, reads_many, |range| member.range(range)),
            "Put" => raw::call(request, limit, |put| member.put(put)),
            "DeleteRange" => raw::call(request, limit, |delete| member.delete_range(delete)),
            "Txn" => raw::call(request, limit, |txn| member.txn(txn)),
            "Compact" => raw::call(request, limit, |compaction| member.compact(compaction)),
            method => raw::unknown::<Self>(method, request),
        }
    }
}

/// Whether a request is for more than one key.
fn reads_many(request: &PbRangeRequest) -> bool {
    !request.range_end.is_empty()
}

impl Member {
    async fn range(self, request: PbRangeRequest) -> Result<RangeResponse, Status> {
        limits::range(&request)?;
        self.0.metrics.range.add();
        let result = self.store().range(convert::range(&request)).await?;
        let header = self.header(result.revision);
        Ok(convert::range_response(&request, result, header))
    }

    async fn put(self, request: PbPutRequest) -> Result<PbPutResponse, Status> {
        limits::put(&request)?;
        limits::size(&request, self.0.options.max_request_bytes)?;
        self.0.metrics.put.add();
        let lease = request.lease;
        let txn = Txn {
            success: vec![Op::Put(convert::put(request))],
            ..Txn::default()
        };
        let mut result = match self.store().txn(txn).await {
            // Outside of transactions etcd looks for the lease first.
            Err(Error::KeyNotFound) if lease != 0 => {
                self.store().lease_status(lease).await?;
                return Err(Error::KeyNotFound.into());
            }
            result => result?,
        };
        let prev = match result.results.pop() {
            Some(OpResult::Put { prev }) => prev,
            _ => None,
        };
        let header = self.header(result.revision);
        Ok(convert::put_response(prev, header))
    }

    async fn delete_range(self, request: PbDeleteRequest) -> Result<PbDeleteResponse, Status> {
        limits::delete(&request)?;
        limits::size(&request, self.0.options.max_request_bytes)?;
        self.0.metrics.delete.add();
        let txn = Txn {
            success: vec![Op::Delete(convert::delete(request))],
            ..Txn::default()
        };
        let mut result = self.store().txn(txn).await?;
        let (deleted, prev) = match result.results.pop() {
            Some(OpResult::Delete { deleted, prev }) => (deleted, prev),
            _ => (0, Vec::new()),
        };
        let header = self.header(result.revision);
        Ok(convert::delete_response(deleted, prev, header))
    }

    async fn txn(self, request: PbTxnRequest) -> Result<PbTxnResponse, Status> {
        limits::txn(&request, self.0.options.max_txn_ops)?;
        limits::size(&request, self.0.options.max_request_bytes)?;
        self.0.metrics.txn.add();
        let result = self.store().txn(convert::txn(&request)).await?;
        let header = self.header(result.revision);
        Ok(convert::txn_response(&request, result, header))
    }

    /// History is always gone when this answers, as with `physical`.
    async fn compact(self, request: PbCompactionRequest) -> Result<PbCompactionResponse, Status> {
        self.store().compact(request.revision).await?;
        Ok(PbCompactionResponse {
            header: Some(self.current_header()),
        })
    }
}
