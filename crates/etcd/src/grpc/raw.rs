//! gRPC services without generated server code, for messages of our own.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::task::{Context, Poll};

use futures::stream::BoxStream;
use http::{Request, Response};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic_prost::{ProstCodec, ProstDecoder};

use super::status;

pub(super) type Reply = BoxFuture<Response<Body>, Infallible>;

/// The methods of a service.
pub(super) trait Methods: Clone + Send + Sync + 'static {
    const NAME: &'static str;

    fn call(&self, method: &str, request: Request<Body>) -> Reply;
}

/// Serves a service by its methods' names.
#[derive(Clone)]
pub(super) struct Server<M>(pub M);

impl<M: Methods> NamedService for Server<M> {
    const NAME: &'static str = M::NAME;
}

impl<M: Methods> Service<Request<Body>> for Server<M> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Reply;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Reply {
        let path = request.uri().path().to_owned();
        let method = path.rsplit('/').next().unwrap_or_default();
        self.0.call(method, request)
    }
}

/// What is answered to a method that the service does not have.
pub(super) fn unknown<M: Methods>(method: &str, request: Request<Body>) -> Reply {
    unary::<Ignored>(request, Err(status::unknown_method(M::NAME, method)))
}

/// A request of which no field matters.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ignored {}

/// Encodes an answer in one piece of memory: one that grows by doubling copies a large answer once more.
struct Answers<Out, In>(PhantomData<(Out, In)>);

struct Encode<Out>(PhantomData<Out>);

impl<Out, In> Codec for Answers<Out, In>
where
    Out: Message + 'static,
    In: Message + Default + 'static,
{
    type Encode = Out;
    type Decode = In;
    type Encoder = Encode<Out>;
    type Decoder = ProstDecoder<In>;

    fn encoder(&mut self) -> Self::Encoder {
        Encode(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

impl<Out: Message> Encoder for Encode<Out> {
    type Item = Out;
    type Error = Status;

    fn encode(&mut self, answer: Out, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(answer.encoded_len());
        answer
            .encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

/// Answers every call in the same way.
struct Fixed<T>(T);

impl<In, Out> UnaryService<In> for Fixed<Result<Out, Status>>
where
    Out: Message + Clone + 'static,
{
    type Response = Out;
    type Future = std::future::Ready<Result<tonic::Response<Out>, Status>>;

    fn call(&mut self, _: tonic::Request<In>) -> Self::Future {
        std::future::ready(self.0.clone().map(tonic::Response::new))
    }
}

/// Answers the one call with what a function makes of its request.
struct Call<A>(Option<A>);

impl<In, Out, A, F> UnaryService<In> for Call<A>
where
    In: Send + 'static,
    Out: Message + 'static,
    A: FnOnce(In) -> F + Send + 'static,
    F: Future<Output = Result<Out, Status>> + Send + 'static,
{
    type Response = Out;
    type Future = BoxFuture<tonic::Response<Out>, Status>;

    fn call(&mut self, request: tonic::Request<In>) -> Self::Future {
        let answer = self.0.take();
        Box::pin(async move {
            let answer = answer.ok_or_else(|| Status::internal("answered already"))?;
            answer(request.into_inner()).await.map(tonic::Response::new)
        })
    }
}

/// Answers the one call with a stream.
struct Once<Out>(Option<BoxStream<'static, Result<Out, Status>>>);

impl<In, Out> ServerStreamingService<In> for Once<Out>
where
    Out: Message + 'static,
{
    type Response = Out;
    type ResponseStream = BoxStream<'static, Result<Out, Status>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: tonic::Request<In>) -> Self::Future {
        let stream = self.0.take().map(tonic::Response::new);
        std::future::ready(stream.ok_or_else(|| Status::internal("answered already")))
    }
}

pub(super) fn unary<Out>(request: Request<Body>, answer: Result<Out, Status>) -> Reply
where
    Out: Message + Default + Clone + 'static,
{
    Box::pin(async move {
        let mut grpc = Grpc::new(ProstCodec::<Out, Ignored>::default());
        Ok(grpc.unary(Fixed(answer), request).await)
    })
}

/// Takes a request of at most `limit` bytes.
pub(super) fn call<In, Out, A, F>(request: Request<Body>, limit: usize, answer: A) -> Reply
where
    In: Message + Default + 'static,
    Out: Message + 'static,
    A: FnOnce(In) -> F + Send + 'static,
    F: Future<Output = Result<Out, Status>> + Send + 'static,
{
    Box::pin(async move {
        let codec = Answers::<Out, In>(PhantomData);
        let mut grpc = Grpc::new(codec).max_decoding_message_size(limit);
        Ok(grpc.unary(Call(Some(answer)), request).await)
    })
}

pub(super) fn streaming<Out>(
    request: Request<Body>,
    stream: BoxStream<'static, Result<Out, Status>>,
) -> Reply
where
    Out: Message + Default + 'static,
{
    Box::pin(async move {
        let mut grpc = Grpc::new(ProstCodec::<Out, Ignored>::default());
        Ok(grpc.server_streaming(Once(Some(stream)), request).await)
    })
}
