//! A client that does little: what it takes of the machine is missing for the server under load.

use anyhow::{Context as _, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use fluyt_transport::in_turns;
use futures::future::try_join_all;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use prost::Message;
use tokio::net::TcpStream;

/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What a server may send before it is read.
const WINDOW: u32 = 8 << 20;

/// A client on a connection that it shares with others.
#[derive(Clone)]
pub struct Client {
    requests: SendRequest<Bytes>,
    url: String,
}

/// Runs clients on one connection, all of them in one task, until they are done.
///
/// # Errors
/// When the connection breaks or a client fails.
pub async fn on_one_connection<F, R, T>(
    url: &str,
    clients: impl IntoIterator<Item = usize>,
    run: F,
) -> anyhow::Result<Vec<T>>
where
    F: Fn(Client, usize) -> R,
    R: Future<Output = anyhow::Result<T>>,
{
    let address = url.strip_prefix("http://").context("a URL of http")?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (stream, turns) = in_turns(stream);
    let connected = async {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let (requests, connection) = builder.handshake(stream).await?;
        let client = Client {
            requests,
            url: url.to_owned(),
        };
        let running = try_join_all(clients.into_iter().map(|n| run(client.clone(), n)));
        tokio::select! {
            done = running => done,
            ended = connection => {
                ended?;
                anyhow::bail!("the server has closed a connection")
            }
        }
    };
    turns.run(connected).await
}

/// A method of the server, and how to ask for it.
pub struct Call {
    client: Client,
    uri: Uri,
}

/// A call that goes on.
pub struct Calling {
    pub requests: SendStream<Bytes>,
    answers: RecvStream,
    received: BytesMut,
}

impl Client {
    pub fn method(&self, path: &str) -> anyhow::Result<Call> {
        Ok(Call {
            client: self.clone(),
            uri: format!("{}/etcdserverpb.{path}", self.url).parse()?,
        })
    }
}

pub fn framed(message: &impl Message) -> anyhow::Result<Bytes> {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(length.try_into()?);
    message.encode(&mut bytes)?;
    Ok(bytes.freeze())
}

impl Call {
    async fn begin(&self, first: Bytes, is_last: bool) -> anyhow::Result<Calling> {
        let mut requests = self.client.requests.clone().ready().await?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        let (response, mut stream) = requests.send_request(request, false)?;
        stream.send_data(first, is_last)?;
        let response = response.await?;
        check(response.headers())?;
        Ok(Calling {
            requests: stream,
            answers: response.into_body(),
            received: BytesMut::new(),
        })
    }

    /// Sends a message, and more of them later.
    pub async fn open(&self, first: &impl Message) -> anyhow::Result<Calling> {
        self.begin(framed(first)?, false).await
    }

    /// One message, one answer.
    pub async fn unary<Out: Message + Default>(
        &self,
        request: &impl Message,
    ) -> anyhow::Result<Out> {
        let mut calling = self.begin(framed(request)?, true).await?;
        let answer = calling.next().await?.context("no answer")?;
        while calling.receive().await? {}
        let trailers = calling.answers.trailers().await?;
        check(&trailers.context("no trailers")?)?;
        Ok(answer)
    }
}

impl Calling {
    /// The next message.
    pub async fn next<Out: Message + Default>(&mut self) -> anyhow::Result<Option<Out>> {
        loop {
            if let Some([_, length @ ..]) = self.received.first_chunk::<PREFIX>() {
                let whole = PREFIX + u32::from_be_bytes(*length) as usize;
                if self.received.len() >= whole {
                    let message = self.received.split_to(whole);
                    return Ok(Some(Out::decode(&message[PREFIX..])?));
                }
            }
            if !self.receive().await? {
                ensure!(self.received.is_empty(), "an answer is cut off");
                return Ok(None);
            }
        }
    }

    async fn receive(&mut self) -> anyhow::Result<bool> {
        let Some(data) = self.answers.data().await else {
            return Ok(false);
        };
        let data = data?;
        self.answers.flow_control().release_capacity(data.len())?;
        self.received.extend_from_slice(&data);
        Ok(true)
    }
}

/// Whether a call has gone well, so far as these headers know.
fn check(headers: &HeaderMap) -> anyhow::Result<()> {
    let status = headers.get("grpc-status");
    let message = headers.get("grpc-message");
    ensure!(status.is_none_or(|status| status == "0"), "{message:?}");
    Ok(())
}
