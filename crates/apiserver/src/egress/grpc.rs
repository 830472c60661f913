//! Tunnels of a konnectivity server: packets over a gRPC stream, one connection each.

use std::io;
use std::time::Duration;

use ::http::uri::PathAndQuery;
use bytes::BytesMut;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tonic::transport::{Endpoint, Uri};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::packets::{CloseRequest, Data, DialRequest, Kind, Packet, Payload};
use crate::dial::Connection;

/// How long the server and, behind it, the address may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long the server may take to close a connection.
const CLOSING: Duration = Duration::from_secs(10);

/// Bytes in one packet.
const PIECE: usize = 32 << 10;

/// Packets that wait to be sent.
const QUEUE: usize = 16;

const PATH: &str = "/ProxyService/Proxy";

/// A connection to `address` through the server at a socket.
///
/// # Errors
/// When the server cannot be reached, or it cannot reach the address.
pub(super) async fn tunnel(path: &str, address: &str) -> io::Result<Connection> {
    let dialing = dial(path.to_owned(), address);
    match tokio::time::timeout(TIMEOUT, dialing).await {
        Ok(dialed) => dialed,
        Err(_) => Err(io::Error::other("dial timeout, backstop")),
    }
}

async fn dial(path: String, address: &str) -> io::Result<Connection> {
    // gRPC wants an authority; nobody looks it up.
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { io::Result::Ok(TokioIo::new(UnixStream::connect(path).await?)) }
        }))
        .await
        .map_err(io::Error::other)?;
    let random = rand::random::<i64>() & i64::MAX;
    let (packets, queue) = mpsc::channel(QUEUE);
    let request = DialRequest {
        protocol: "tcp".into(),
        address: address.into(),
        random,
    };
    send(&packets, Kind::DialRequest, Payload::DialRequest(request)).await?;
    let outgoing = futures::stream::unfold(queue, |mut queue: mpsc::Receiver<Packet>| async move {
        queue.recv().await.map(|packet| (packet, queue))
    });
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(io::Error::other)?;
    let codec = ProstCodec::<Packet, Packet>::default();
    let path = PathAndQuery::from_static(PATH);
    let answer = client.streaming(Request::new(outgoing), path, codec).await;
    let mut incoming = answer.map_err(refused)?.into_inner();
    let connect_id = loop {
        let packet = incoming.message().await.map_err(refused)?;
        let packet = packet.ok_or_else(|| io::Error::other("tunnel closed"))?;
        match packet.payload {
            Some(Payload::DialResponse(answer)) if answer.random == random => {
                if answer.error.is_empty() {
                    break answer.connect_id;
                }
                return Err(io::Error::other(answer.error));
            }
            Some(Payload::CloseDial(closed)) if closed.random == random => {
                return Err(io::Error::other("dial closed"));
            }
            _ => {}
        }
    };
    let (near, far) = tokio::io::duplex(2 * PIECE);
    tokio::spawn(carry(far, connect_id, packets, incoming));
    Ok(Box::new(near))
}

fn refused(status: Status) -> io::Error {
    io::Error::other(status.to_string())
}

async fn send(packets: &mpsc::Sender<Packet>, kind: Kind, payload: Payload) -> io::Result<()> {
    let packet = Packet {
        kind: kind.into(),
        payload: Some(payload),
    };
    let sent = packets.send(packet).await;
    sent.map_err(|_| io::Error::other("tunnel closed"))
}

/// Carries bytes until either side closes the connection.
async fn carry(
    connection: DuplexStream,
    connect_id: i64,
    packets: mpsc::Sender<Packet>,
    mut incoming: Streaming<Packet>,
) {
    let (from, mut to) = tokio::io::split(connection);
    let receiving = async {
        while let Ok(Some(packet)) = incoming.message().await {
            let kept = match packet.payload {
                Some(Payload::Data(data)) => to.write_all(&data.data).await.is_ok(),
                Some(Payload::CloseResponse(_)) => false,
                _ => true,
            };
            if !kept {
                break;
            }
        }
        // What has come can still be read.
        let _ = to.shutdown().await;
    };
    let sending = async {
        upload(from, connect_id, &packets).await;
        tokio::time::sleep(CLOSING).await;
    };
    tokio::select! {
        () = receiving => {}
        () = sending => {}
    }
}

/// Sends what is written, and then that there is nothing more.
async fn upload(mut from: ReadHalf<DuplexStream>, connect_id: i64, packets: &mpsc::Sender<Packet>) {
    let mut buffer = BytesMut::with_capacity(PIECE);
    while matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
        let data = Data {
            connect_id,
            data: buffer.split().freeze(),
            ..Data::default()
        };
        if send(packets, Kind::Data, Payload::Data(data))
            .await
            .is_err()
        {
            return;
        }
        buffer.reserve(PIECE);
    }
    let close = CloseRequest { connect_id };
    let _ = send(packets, Kind::CloseRequest, Payload::CloseRequest(close)).await;
}
