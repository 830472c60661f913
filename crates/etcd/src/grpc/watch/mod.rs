//! `etcdserverpb.Watch`. Its answers are written into frames here rather than by generated code, so that an event is
//! encoded once for all watches of a stream.

mod frames;
mod session;

use std::convert::Infallible;

use bytes::Bytes;
use etcd_client::proto::PbWatchRequest;
use futures::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{Codec as _, Streaming};
use tonic_prost::ProstCodec;

use super::Member;
use super::raw::{self, Answer, Methods, Reply, RequestBody};
use session::Session;

/// Pieces of the answer that a client may leave unread before its watches stop reading.
const QUEUE: usize = 4;

#[derive(Clone)]
pub(super) struct Watch(pub Member);

impl Methods for Watch {
    const NAME: &'static str = "etcdserverpb.Watch";

    fn call<B: RequestBody>(&self, method: &str, request: Request<B>) -> Reply {
        match method {
            "Watch" => {
                let requests = Body::new(request.into_body());
                let response = watch(self.0.clone(), requests);
                Box::pin(std::future::ready(response))
            }
            method => raw::unknown::<Self>(method, request),
        }
    }
}

fn watch(member: Member, requests: Body) -> Response<Answer> {
    let (pieces, answer) = mpsc::channel(QUEUE);
    let decoder = ProstCodec::<(), PbWatchRequest>::default().decoder();
    let requests = Streaming::new_request(decoder, requests, None, None);
    tokio::spawn(async move { Session::new(&member, pieces).run(requests).await });
    raw::accepted(Answer::Stream(body(answer)))
}

/// The pieces, and behind the last one that all went well.
fn body(pieces: mpsc::Receiver<Bytes>) -> Body {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let end = stream::once(std::future::ready(Frame::trailers(trailers)));
    let frames = ReceiverStream::new(pieces).map(Frame::data).chain(end);
    Body::new(StreamBody::new(frames.map(Ok::<_, Infallible>)))
}
