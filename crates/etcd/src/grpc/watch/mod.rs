//! `etcdserverpb.Watch`. Its answers are written into frames here rather than by generated code, so that an event is
//! encoded once for all watches of a stream.

mod frames;
mod session;

use std::convert::Infallible;

use bytes::Bytes;
use etcd_client::proto::PbWatchRequest;
use futures::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{Codec as _, Streaming};
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic_prost::ProstCodec;

use super::Member;
use super::raw::{self, Methods, Reply};
use session::Session;

/// Pieces of the answer that a client may leave unread before its watches stop reading.
const QUEUE: usize = 4;

#[derive(Clone)]
pub(super) struct Watch(pub Member);

impl Methods for Watch {
    const NAME: &'static str = "etcdserverpb.Watch";

    fn call(&self, method: &str, request: Request<Body>) -> Reply {
        match method {
            "Watch" => {
                let response = watch(self.0.clone(), request.into_body());
                Box::pin(async move { Ok(response) })
            }
            method => raw::unknown::<Self>(method, request),
        }
    }
}

fn watch(member: Member, requests: Body) -> Response<Body> {
    let (pieces, answer) = mpsc::channel(QUEUE);
    let decoder = ProstCodec::<(), PbWatchRequest>::default().decoder();
    let requests = Streaming::new_request(decoder, requests, None, None);
    tokio::spawn(async move { Session::new(&member, pieces).run(requests).await });
    let mut response = Response::new(body(answer));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// The pieces, and behind the last one that all went well.
fn body(pieces: mpsc::Receiver<Bytes>) -> Body {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let end = stream::once(std::future::ready(Frame::trailers(trailers)));
    let frames = ReceiverStream::new(pieces).map(Frame::data).chain(end);
    Body::new(StreamBody::new(frames.map(Ok::<_, Infallible>)))
}
