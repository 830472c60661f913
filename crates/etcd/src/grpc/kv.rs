//! `etcdserverpb.KV`.

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService,
    PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse,
    PbTxnRequest, PbTxnResponse,
};
use tonic::{Request, Response, Status};

use super::{Member, convert, limits, status};
use crate::{Error, Op, OpResult, Store as _, Txn};

#[tonic::async_trait]
impl PbKvService for Member {
    async fn range(
        &self,
        request: Request<PbRangeRequest>,
    ) -> Result<Response<PbRangeResponse>, Status> {
        let request = request.into_inner();
        limits::range(&request)?;
        self.0.metrics.range.add();
        let result = self.store().range(convert::range(&request)).await?;
        let header = self.header(result.revision);
        Ok(Response::new(convert::range_response(
            &request, result, header,
        )))
    }

    type RangeStreamStream = tokio_stream::Empty<Result<PbRangeStreamResponse, Status>>;

    /// A method of later releases than the one that this presents itself as.
    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(status::unknown_method("etcdserverpb.KV", "RangeStream"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let request = request.into_inner();
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
        Ok(Response::new(convert::put_response(prev, header)))
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        let request = request.into_inner();
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
        Ok(Response::new(convert::delete_response(
            deleted, prev, header,
        )))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let request = request.into_inner();
        limits::txn(&request, self.0.options.max_txn_ops)?;
        limits::size(&request, self.0.options.max_request_bytes)?;
        self.0.metrics.txn.add();
        let result = self.store().txn(convert::txn(&request)).await?;
        let header = self.header(result.revision);
        Ok(Response::new(convert::txn_response(
            &request, result, header,
        )))
    }

    /// History is always gone when this answers, as with `physical`.
    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        self.store().compact(request.into_inner().revision).await?;
        Ok(Response::new(PbCompactionResponse {
            header: Some(self.current_header()),
        }))
    }
}
