//! gRPC services without generated server code, for messages of our own.
//!
//! A call of one message each way is read, answered and written here, from the frames of HTTP/2 to the engine and back
//! with nothing in between: what stands there in a general server costs more than reading a key does. Streams are
//! tonic's.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic_prost::ProstCodec;

use super::status;

/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Requests that are not looked at are not longer.
const SMALL: usize = 1 << 20;

pub(super) type Reply = BoxFuture<'static, Response<Answer>>;

/// What requests come in.
pub(super) trait RequestBody:
    HttpBody<Data = Bytes, Error: Into<tonic::codegen::StdError>> + Send + 'static
{
}

impl<B> RequestBody for B where
    B: HttpBody<Data = Bytes, Error: Into<tonic::codegen::StdError>> + Send + 'static
{
}

/// The methods of a service.
pub(super) trait Methods: Clone + Send + Sync + 'static {
    const NAME: &'static str;

    fn call<B: RequestBody>(&self, method: &str, request: Request<B>) -> Reply;
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
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let method = path.rsplit('/').next().unwrap_or_default();
        let reply = self.0.call(method, request);
        Box::pin(async move { Ok(reply.await.map(Body::new)) })
    }
}

/// The body of an answer.
#[derive(Default)]
pub enum Answer {
    /// Headers say it all.
    #[default]
    Empty,
    /// A message that is to be sent, then that all went well.
    Message(Bytes),
    /// What is behind a message.
    End,
    Stream(Body),
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let (frame, next) = match &mut *self {
            Self::Stream(body) => return Pin::new(body).poll_frame(context),
            Self::Empty => return Poll::Ready(None),
            Self::Message(message) => (Frame::data(std::mem::take(message)), Self::End),
            Self::End => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                (Frame::trailers(trailers), Self::Empty)
            }
        };
        *self = next;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(body) => body.is_end_stream(),
            Self::Message(_) | Self::End => false,
        }
    }
}

/// An answer whose body is of gRPC.
pub(super) fn accepted(body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// A message with its prefix, in one piece of memory: one that grows by doubling copies a large answer once more.
fn framed(message: &impl Message) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let Ok(announced) = u32::try_from(length) else {
        return Err(Status::resource_exhausted(format!(
            "grpc: message too large ({length} bytes)"
        )));
    };
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(announced);
    let encoded = message.encode(&mut bytes);
    encoded.map_err(|error| Status::internal(error.to_string()))?;
    Ok(bytes.freeze())
}

/// The one message of a request, of at most `limit` bytes. Errors are worded as Go's gRPC words them.
async fn message<B: RequestBody>(request: Request<B>, limit: usize) -> Result<Bytes, Status> {
    let (head, body) = request.into_parts();
    let mut body = pin!(body);
    // Nearly always all of it is in one piece, which is kept as it is; pieces are put together in one place.
    let (mut received, mut together) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::unknown(error.into().to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if received.is_empty() && together.is_empty() {
            received = data;
        } else {
            together.extend_from_slice(&std::mem::take(&mut received));
            if announced(&together).is_none_or(|length| together.len() < PREFIX + length) {
                together.extend_from_slice(&data);
            }
        }
        let so_far = if together.is_empty() {
            &received[..]
        } else {
            &together
        };
        if let Some(length) = announced(so_far).filter(|length| *length > limit) {
            return Err(Status::resource_exhausted(format!(
                "grpc: received message larger than max ({length} vs. {limit})"
            )));
        }
    }
    if !together.is_empty() {
        received = together.freeze();
    }
    let Some(length) = announced(&received).filter(|length| received.len() >= PREFIX + length)
    else {
        return Err(Status::internal("unexpected EOF"));
    };
    let encoding = head.headers.get("grpc-encoding");
    match (received.get_u8(), encoding.map(HeaderValue::as_bytes)) {
        (0, _) => {}
        (1, None | Some(b"identity")) => {
            return Err(Status::internal(
                "grpc: compressed flag set with identity or empty encoding",
            ));
        }
        (1, Some(encoding)) => {
            return Err(Status::unimplemented(format!(
                "grpc: Decompressor is not installed for grpc-encoding {:?}",
                String::from_utf8_lossy(encoding)
            )));
        }
        (format, _) => {
            return Err(Status::internal(format!(
                "grpc: received unexpected payload format {format}"
            )));
        }
    }
    received.advance(PREFIX - 1);
    received.truncate(length);
    Ok(received)
}

/// The length that stands before a message.
fn announced(received: &[u8]) -> Option<usize> {
    let prefix = received.first_chunk::<PREFIX>()?;
    let [_, length @ ..] = prefix;
    usize::try_from(u32::from_be_bytes(*length)).ok()
}

/// Answers a call with what a function makes of its request, which is of at most `limit` bytes.
pub(super) fn call<In, Out, A, F>(
    request: Request<impl RequestBody>,
    limit: usize,
    answer: A,
) -> Reply
where
    In: Message + Default,
    Out: Message,
    A: FnOnce(In) -> F + Send + 'static,
    F: Future<Output = Result<Out, Status>> + Send,
{
    answered(async move {
        let message = decoded(message(request, limit).await?)?;
        framed(&answer(message).await?)
    })
}

/// As [`call`] for calls of which some take long: those are answered in a task of their own, beside the others of their
/// connection.
pub(super) fn call_apart<In, Out, A, F>(
    request: Request<impl RequestBody>,
    limit: usize,
    long: fn(&In) -> bool,
    answer: A,
) -> Reply
where
    In: Message + Default + 'static,
    Out: Message + 'static,
    A: FnOnce(In) -> F + Send + 'static,
    F: Future<Output = Result<Out, Status>> + Send + 'static,
{
    answered(async move {
        let message = decoded(message(request, limit).await?)?;
        if !long(&message) {
            return framed(&answer(message).await?);
        }
        let task = tokio::spawn(async move { framed(&answer(message).await?) });
        task.await
            .unwrap_or_else(|error| Err(Status::internal(error.to_string())))
    })
}

fn decoded<In: Message + Default>(message: Bytes) -> Result<In, Status> {
    In::decode(message)
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
}

fn answered(message: impl Future<Output = Result<Bytes, Status>> + Send + 'static) -> Reply {
    Box::pin(async move {
        match message.await {
            Ok(message) => accepted(Answer::Message(message)),
            Err(status) => status.into_http(),
        }
    })
}

/// Answers a call of which no field matters.
pub(super) fn unary<Out>(request: Request<impl RequestBody>, answer: Result<Out, Status>) -> Reply
where
    Out: Message + 'static,
{
    answered(async move {
        message(request, SMALL).await?;
        framed(&answer?)
    })
}

/// What is answered to a method that the service does not have.
pub(super) fn unknown<M: Methods>(method: &str, request: Request<impl RequestBody>) -> Reply {
    unary::<Ignored>(request, Err(status::unknown_method(M::NAME, method)))
}

/// A message of which no field matters.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ignored {}

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

pub(super) fn streaming<Out>(
    request: Request<impl RequestBody>,
    stream: BoxStream<'static, Result<Out, Status>>,
) -> Reply
where
    Out: Message + Default + 'static,
{
    Box::pin(async move {
        let mut grpc = Grpc::new(ProstCodec::<Out, Ignored>::default());
        let request = request.map(Body::new);
        let response = grpc.server_streaming(Once(Some(stream)), request).await;
        response.map(Answer::Stream)
    })
}

#[cfg(test)]
mod tests;
