//! SPDY/3.1, as far as Kubernetes uses it: streams with headers over one connection, both roles.
//!
//! There is no flow control by windows, as in upstream's library: a reader that is slow stops the connection.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;
const REFUSED_STREAM: u32 = 3;

/// Bytes of a frame that we accept and of a header block after decompression.
const MAX_FRAME: usize = 16 * 1024 * 1024;
const MAX_HEADERS: usize = 64 * 1024;
/// Bytes of data that we put into one frame.
const MAX_DATA: usize = 32 * 1024;
/// Frames that may wait for a stream's reader, and for the connection's writer.
const QUEUE: usize = 16;
/// Streams that a peer may have open.
const MAX_STREAMS: usize = 1000;
/// How long a closed connection's peer may take to close it as well.
const LINGER: Duration = Duration::from_secs(10);

/// Words of the header dictionary (SPDY/3, section 2.6.10.1), each preceded by its length.
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
const REST: &str = concat!(
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request",
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented",
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 ",
    "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,",
    "application/xml,application/xhtml+xml,text/plain,text/javascript,public",
    "privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
);

/// Names (in lower case) and values.
pub type Headers = Vec<(String, String)>;

/// One SPDY connection. Dropping it closes it once its streams are done.
#[derive(Debug)]
pub struct Connection {
    incoming: mpsc::Receiver<Stream>,
    outgoing: mpsc::Sender<Outgoing>,
    registrations: mpsc::UnboundedSender<(u32, mpsc::Sender<Bytes>)>,
    first_id: u32,
    next_id: AtomicU32,
}

/// One stream of a connection, to be read and written. Shutting it down ends our half.
#[derive(Debug)]
pub struct Stream {
    id: u32,
    headers: Headers,
    data: mpsc::Receiver<Bytes>,
    current: Bytes,
    outgoing: PollSender<Outgoing>,
    sender: mpsc::Sender<Outgoing>,
    finished: bool,
}

#[derive(Debug)]
enum Outgoing {
    Open { id: u32, headers: Headers },
    Reply { id: u32 },
    Data { id: u32, bytes: Bytes, fin: bool },
    Reset { id: u32, status: u32 },
    Ping { id: u32 },
    Close,
}

#[derive(Debug)]
enum Frame {
    Open {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    Data {
        id: u32,
        fin: bool,
        bytes: Bytes,
    },
    Reset {
        id: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    Other,
}

struct Reader<T> {
    io: ReadHalf<T>,
    /// The ids that this end gives out are odd, or even, as this one is.
    first_id: u32,
    inflate: Decompress,
}

struct Writer<T> {
    io: WriteHalf<T>,
    deflate: Compress,
    started: bool,
}

// === impl Connection ===

impl Connection {
    /// The accepting end of a connection that was switched to SPDY.
    pub fn server<T: AsyncRead + AsyncWrite + Send + 'static>(io: T) -> Self {
        Self::new(io, 2)
    }

    /// The connecting end.
    pub fn client<T: AsyncRead + AsyncWrite + Send + 'static>(io: T) -> Self {
        Self::new(io, 1)
    }

    fn new<T: AsyncRead + AsyncWrite + Send + 'static>(io: T, first_id: u32) -> Self {
        let (read_half, write_half) = tokio::io::split(io);
        let (outgoing, to_write) = mpsc::channel(QUEUE);
        let (opened, incoming) = mpsc::channel(QUEUE);
        let (registrations, registered) = mpsc::unbounded_channel();
        let reader = Reader {
            io: read_half,
            first_id,
            inflate: Decompress::new(true),
        };
        let writer = Writer {
            io: write_half,
            deflate: Compress::new(Compression::fast(), true),
            started: false,
        };
        // The reader only needs to write while somebody may still use the connection.
        tokio::spawn(reader.run(opened, outgoing.downgrade(), registered));
        tokio::spawn(writer.run(to_write));
        Self {
            incoming,
            outgoing,
            registrations,
            first_id,
            next_id: AtomicU32::new(first_id),
        }
    }

    /// The next stream that the peer opens; `None` when it is gone.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Opens a stream.
    pub async fn open(&self, headers: Headers) -> io::Result<Stream> {
        let id = self.next_id.fetch_add(2, Ordering::Relaxed);
        let (sender, data) = mpsc::channel(QUEUE);
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        self.registrations.send((id, sender)).map_err(|_| gone())?;
        self.outgoing
            .send(Outgoing::Open {
                id,
                headers: headers.clone(),
            })
            .await
            .map_err(|_| gone())?;
        Ok(Stream::new(id, headers, data, self.outgoing.clone()))
    }

    /// Has something under way every `period`, so that nobody between the ends takes the connection for dead.
    pub fn keep_alive(&self, period: Duration) {
        let outgoing = self.outgoing.downgrade();
        let mut ids = (self.first_id..).step_by(2);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                let (Some(outgoing), Some(id)) = (outgoing.upgrade(), ids.next()) else {
                    return;
                };
                if outgoing.send(Outgoing::Ping { id }).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Says goodbye after everything that was written so far.
    pub async fn close(self) {
        // The writer may be gone already, which is as closed as can be.
        let _ = self.outgoing.send(Outgoing::Close).await;
    }
}

// === impl Stream ===

impl Stream {
    fn new(
        id: u32,
        headers: Headers,
        data: mpsc::Receiver<Bytes>,
        sender: mpsc::Sender<Outgoing>,
    ) -> Self {
        Self {
            id,
            headers,
            data,
            current: Bytes::new(),
            outgoing: PollSender::new(sender.clone()),
            sender,
            finished: false,
        }
    }

    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn headers(&self) -> &Headers {
        &self.headers
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.finished {
            // If the queue is full the connection's end will do.
            let _ = self.sender.try_send(Outgoing::Data {
                id: self.id,
                bytes: Bytes::new(),
                fin: true,
            });
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.data.poll_recv(context)) {
                Some(bytes) => self.current = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.current.len().min(buffer.remaining());
        buffer.put_slice(&self.current.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = bytes.len().min(MAX_DATA);
        let id = self.id;
        ready!(self.outgoing.poll_reserve(context)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        let item = Outgoing::Data {
            id,
            bytes: Bytes::copy_from_slice(&bytes[..length]),
            fin: false,
        };
        self.outgoing
            .send_item(item)
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        let id = self.id;
        ready!(self.outgoing.poll_reserve(context)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        let item = Outgoing::Data {
            id,
            bytes: Bytes::new(),
            fin: true,
        };
        self.outgoing
            .send_item(item)
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.finished = true;
        Poll::Ready(Ok(()))
    }
}

// === impl Reader ===

impl<T: AsyncRead + AsyncWrite + Send + 'static> Reader<T> {
    async fn run(
        mut self,
        opened: mpsc::Sender<Stream>,
        outgoing: mpsc::WeakSender<Outgoing>,
        mut registered: mpsc::UnboundedReceiver<(u32, mpsc::Sender<Bytes>)>,
    ) {
        let mut streams: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
        loop {
            let frame = match self.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, "reading SPDY");
                    return;
                }
            };
            while let Ok((id, sender)) = registered.try_recv() {
                streams.insert(id, sender);
            }
            match frame {
                Frame::Open { id, fin, headers } => {
                    let Some(outgoing) = outgoing.upgrade() else {
                        continue;
                    };
                    streams.retain(|_, sender| !sender.is_closed());
                    if streams.len() >= MAX_STREAMS {
                        let _ = outgoing
                            .send(Outgoing::Reset {
                                id,
                                status: REFUSED_STREAM,
                            })
                            .await;
                        continue;
                    }
                    let (sender, data) = mpsc::channel(QUEUE);
                    if !fin {
                        streams.insert(id, sender);
                    }
                    let _ = outgoing.send(Outgoing::Reply { id }).await;
                    let stream = Stream::new(id, headers, data, outgoing);
                    // Nobody accepts any more: dropping the stream ends it.
                    let _ = opened.send(stream).await;
                }
                Frame::Data { id, fin, bytes } => {
                    if !bytes.is_empty()
                        && let Some(sender) = streams.get(&id)
                        && sender.send(bytes).await.is_err()
                    {
                        streams.remove(&id);
                    }
                    if fin {
                        streams.remove(&id);
                    }
                }
                Frame::Reset { id } => {
                    streams.remove(&id);
                }
                // Answers to our own come back as they are.
                Frame::Ping { id } if id % 2 == self.first_id % 2 => {}
                Frame::Ping { id } => {
                    if let Some(outgoing) = outgoing.upgrade() {
                        let _ = outgoing.send(Outgoing::Ping { id }).await;
                    }
                }
                Frame::GoAway | Frame::Other => {}
            }
        }
    }

    async fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut header = [0; 8];
        match self.io.read_exact(&mut header).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut header = &header[..];
        let first = header.get_u32();
        let rest = header.get_u32();
        let flags = (rest >> 24) as u8;
        let length = (rest & 0x00ff_ffff) as usize;
        if length > MAX_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = BytesMut::zeroed(length);
        self.io.read_exact(&mut payload).await?;
        let mut payload = payload.freeze();
        if first & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data {
                id: first,
                fin: flags & FLAG_FIN != 0,
                bytes: payload,
            }));
        }
        let need = |payload: &Bytes, length: usize| {
            if payload.len() < length {
                Err(io::Error::from(io::ErrorKind::InvalidData))
            } else {
                Ok(())
            }
        };
        let frame = match (first & 0xffff) as u16 {
            SYN_STREAM => {
                need(&payload, 10)?;
                let id = payload.get_u32() & 0x7fff_ffff;
                payload.advance(6);
                Frame::Open {
                    id,
                    fin: flags & FLAG_FIN != 0,
                    headers: self.headers(&payload)?,
                }
            }
            SYN_REPLY => {
                need(&payload, 4)?;
                payload.advance(4);
                // Of no interest, but it moves the decompressor on.
                self.headers(&payload)?;
                Frame::Other
            }
            RST_STREAM => {
                need(&payload, 8)?;
                Frame::Reset {
                    id: payload.get_u32() & 0x7fff_ffff,
                }
            }
            PING => {
                need(&payload, 4)?;
                Frame::Ping {
                    id: payload.get_u32(),
                }
            }
            GOAWAY => Frame::GoAway,
            _ => Frame::Other,
        };
        Ok(Some(frame))
    }

    fn headers(&mut self, block: &[u8]) -> io::Result<Headers> {
        let plain = inflate(&mut self.inflate, block)?;
        parse_headers(&plain).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

// === impl Writer ===

impl<T: AsyncRead + AsyncWrite + Send + 'static> Writer<T> {
    async fn run(mut self, mut outgoing: mpsc::Receiver<Outgoing>) {
        let mut buffer = BytesMut::new();
        let mut closing = false;
        while !closing {
            let Some(first) = outgoing.recv().await else {
                break;
            };
            let mut next = Some(first);
            while let Some(item) = next {
                closing |= matches!(item, Outgoing::Close);
                if let Err(error) = self.encode(item, &mut buffer) {
                    tracing::debug!(%error, "encoding SPDY");
                    return;
                }
                next = if closing || buffer.len() > MAX_DATA * 2 {
                    None
                } else {
                    outgoing.try_recv().ok()
                };
            }
            let written = async {
                self.io.write_all(&buffer).await?;
                self.io.flush().await
            };
            if let Err(error) = written.await {
                tracing::debug!(%error, "writing SPDY");
                return;
            }
            buffer.clear();
        }
        let _ = self.io.shutdown().await;
        // Our half of the connection is held while the peer reads what is under way: closing it with input unread
        // would make the kernel throw that away.
        let _ =
            tokio::time::timeout(LINGER, async { while outgoing.recv().await.is_some() {} }).await;
    }

    fn encode(&mut self, item: Outgoing, buffer: &mut BytesMut) -> io::Result<()> {
        match item {
            Outgoing::Open { id, headers } => {
                let block = self.deflate(&headers)?;
                control(buffer, SYN_STREAM, 0, 10 + block.len());
                buffer.put_u32(id);
                buffer.put_u32(0);
                buffer.put_u16(0);
                buffer.put_slice(&block);
            }
            Outgoing::Reply { id } => {
                let block = self.deflate(&Vec::new())?;
                control(buffer, SYN_REPLY, 0, 4 + block.len());
                buffer.put_u32(id);
                buffer.put_slice(&block);
            }
            Outgoing::Data { id, bytes, fin } => {
                buffer.put_u32(id);
                let flags = if fin { u32::from(FLAG_FIN) << 24 } else { 0 };
                buffer.put_u32(flags | bytes.len() as u32);
                buffer.put_slice(&bytes);
            }
            Outgoing::Reset { id, status } => {
                control(buffer, RST_STREAM, 0, 8);
                buffer.put_u32(id);
                buffer.put_u32(status);
            }
            Outgoing::Ping { id } => {
                control(buffer, PING, 0, 4);
                buffer.put_u32(id);
            }
            Outgoing::Close => {
                control(buffer, GOAWAY, 0, 8);
                buffer.put_u32(0);
                buffer.put_u32(0);
            }
        }
        Ok(())
    }

    fn deflate(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        if !self.started {
            self.deflate
                .set_dictionary(&dictionary())
                .map_err(io::Error::other)?;
            self.started = true;
        }
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                plain.put_u32(text.len() as u32);
                plain.put_slice(text.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let start = self.deflate.total_in();
        loop {
            let consumed = (self.deflate.total_in() - start) as usize;
            self.deflate
                .compress_vec(&plain[consumed..], &mut block, FlushCompress::Sync)
                .map_err(io::Error::other)?;
            // Room left over means that all of it is out.
            if block.len() < block.capacity() {
                return Ok(block);
            }
            block.reserve(block.len() + 64);
        }
    }
}

fn control(buffer: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    buffer.put_u16(0x8000 | VERSION);
    buffer.put_u16(kind);
    buffer.put_u32(u32::from(flags) << 24 | length as u32);
}

fn inflate(decompress: &mut Decompress, block: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::with_capacity(1024);
    let start = decompress.total_in();
    loop {
        let consumed = (decompress.total_in() - start) as usize;
        match decompress.decompress_vec(&block[consumed..], &mut plain, FlushDecompress::Sync) {
            Ok(_) => {}
            Err(error) if error.needs_dictionary().is_some() => {
                decompress
                    .set_dictionary(&dictionary())
                    .map_err(io::Error::other)?;
                continue;
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        if plain.len() > MAX_HEADERS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let consumed = (decompress.total_in() - start) as usize;
        if consumed == block.len() && plain.len() < plain.capacity() {
            return Ok(plain);
        }
        plain.reserve(plain.len() + 1024);
    }
}

fn parse_headers(mut block: &[u8]) -> Option<Headers> {
    fn text(block: &mut &[u8]) -> Option<String> {
        let length = block.try_get_u32().ok()? as usize;
        let (text, rest) = block.split_at_checked(length)?;
        *block = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }
    let count = block.try_get_u32().ok()?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = text(&mut block)?.to_ascii_lowercase();
        let value = text(&mut block)?;
        headers.push((name, value));
    }
    Some(headers)
}

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS {
        bytes.put_u32(word.len() as u32);
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(REST.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // Tests fail by panicking.

    use super::*;

    #[test]
    fn the_dictionary_is_the_protocol_s() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    #[test]
    fn header_blocks_that_lie_about_lengths_are_refused() {
        assert!(parse_headers(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_none());
        assert!(parse_headers(&[0, 0]).is_none());
    }

    #[tokio::test]
    async fn two_ends_exchange_streams() {
        let (a, b) = tokio::io::duplex(4096);
        let client = Connection::client(a);
        let mut server = Connection::server(b);
        for round in 0..3 {
            let name = format!("stream {round}");
            let mut ours = client
                .open(vec![("streamtype".to_owned(), name.clone())])
                .await
                .unwrap();
            let mut theirs = server.accept().await.unwrap();
            assert_eq!(theirs.header("streamtype"), Some(name.as_str()));
            let payload = vec![7u8; 200_000];
            let sent = payload.clone();
            let write = tokio::spawn(async move {
                ours.write_all(&sent).await.unwrap();
                ours.shutdown().await.unwrap();
                let mut answer = String::new();
                ours.read_to_string(&mut answer).await.unwrap();
                answer
            });
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).await.unwrap();
            assert_eq!(received, payload);
            theirs.write_all(b"done").await.unwrap();
            theirs.shutdown().await.unwrap();
            assert_eq!(write.await.unwrap(), "done");
        }
        client.close().await;
        assert!(server.accept().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn pings_are_answered_once() {
        let (a, mut peer) = tokio::io::duplex(4096);
        let client = Connection::client(a);
        client.keep_alive(Duration::from_secs(5));
        let ping = |id: u8| [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, id];
        let mut frame = [0; 12];
        // Ours; the answer to it is not answered, but the peer's own is.
        for ours in [1, 3] {
            peer.read_exact(&mut frame).await.unwrap();
            assert_eq!(frame, ping(ours));
            peer.write_all(&ping(ours)).await.unwrap();
            peer.write_all(&ping(ours + 1)).await.unwrap();
            peer.read_exact(&mut frame).await.unwrap();
            assert_eq!(frame, ping(ours + 1));
        }
        drop(client);
        assert_eq!(peer.read(&mut frame).await.unwrap(), 0);
    }
}
