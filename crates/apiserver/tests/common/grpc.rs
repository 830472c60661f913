//! gRPC services of tests' own, whose calls take one message and give one.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::path::Path;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _};
use futures::future::BoxFuture;
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Body, Service, StdError};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};

/// What answers the calls of a service.
pub trait Calls: Clone + Send + Sync + 'static {
    /// The service, with its package.
    const NAME: &'static str;

    /// The encoded answer to a call of a method.
    fn call(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, Status>;
}

/// Decodes a message, and encodes what is answered to it.
pub fn answer<Q: Message + Default, A: Message>(
    message: &[u8],
    answer: impl FnOnce(Q) -> Result<A, Status>,
) -> Result<Vec<u8>, Status> {
    let message = Q::decode(message).map_err(|e| Status::invalid_argument(e.to_string()))?;
    Ok(answer(message)?.encode_to_vec())
}

/// A service for tonic's server.
#[derive(Clone)]
pub struct Serving<C>(pub C);

/// Serves calls on a socket of this machine, until the test is over.
pub fn serve_on_socket(calls: impl Calls, socket: &Path) {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let incoming = futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let server = tonic::transport::Server::builder().add_service(Serving(calls));
    tokio::spawn(server.serve_with_incoming(incoming));
}

impl<C: Calls> NamedService for Serving<C> {
    const NAME: &'static str = C::NAME;
}

impl<C, B> Service<http::Request<B>> for Serving<C>
where
    C: Calls,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
    B::Data: Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let called = Called {
            calls: self.0.clone(),
            method: method.to_owned(),
        };
        Box::pin(async move { Ok(Grpc::new(Encoded).unary(called, request).await) })
    }
}

/// A call of one method.
struct Called<C> {
    calls: C,
    method: String,
}

impl<C: Calls> UnaryService<Vec<u8>> for Called<C> {
    type Response = Vec<u8>;
    type Future = Ready<Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let answer = self.calls.call(&self.method, request.get_ref());
        ready(answer.map(Response::new))
    }
}

/// Messages stay as they are on the wire.
struct Encoded;

impl Codec for Encoded {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
