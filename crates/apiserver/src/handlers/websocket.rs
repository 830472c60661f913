//! Answers that stream (a watch, a followed log) as messages of a WebSocket, for clients such as browsers that have no
//! other way to read them while they grow. What clients send is not read, but for the end.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fluyt_api::Error;
use fluyt_transport::websocket;
use futures::{SinkExt as _, StreamExt as _};
use http::request::Parts;
use http::{HeaderValue, Response, header};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes, protocol::Role};

use crate::http::Body;

/// How the bytes of an answer become messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// A message for each piece, as it comes.
    Binary,
    /// The same in base64, for clients that know text only.
    Base64,
    /// A message for each line: the events of a watch.
    Lines,
}

/// Set on a request whose answer's pieces become messages: each event has to be one.
#[derive(Clone, Copy)]
pub(super) struct PieceByPiece;

/// A client that asked for a WebSocket.
pub(super) struct Upgrade {
    upgrade: OnUpgrade,
    key: HeaderValue,
    protocol: Option<&'static str>,
    framing: Framing,
}

/// Takes the wish for a WebSocket out of a request for a stream; the rest is an ordinary request.
///
/// # Errors
/// 400 when only protocols are offered that nobody speaks.
pub(super) fn take(parts: &mut Parts, is_watch: bool) -> Result<Option<Upgrade>, Error> {
    let is_websocket = parts
        .headers
        .get(header::UPGRADE)
        .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_websocket {
        return Ok(None);
    }
    let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
        return Ok(None);
    };
    let Some(key) = parts.headers.remove(header::SEC_WEBSOCKET_KEY) else {
        return Err(Error::bad_request("missing Sec-WebSocket-Key"));
    };
    let offered = parts.headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    let offered = offered.as_ref().and_then(|v| v.to_str().ok());
    let protocol = choose(offered.unwrap_or_default())?;
    for name in [header::UPGRADE, header::CONNECTION] {
        parts.headers.remove(name);
    }
    let framing = match protocol {
        Some("base64.binary.k8s.io") => Framing::Base64,
        None if is_watch => Framing::Lines,
        _ => Framing::Binary,
    };
    if framing != Framing::Lines {
        parts.extensions.insert(PieceByPiece);
    }
    Ok(Some(Upgrade {
        upgrade,
        key,
        protocol,
        framing,
    }))
}

/// The first protocol offered that is known. Credentials may be among them, and are not one.
fn choose(offered: &str) -> Result<Option<&'static str>, Error> {
    let mut wanted = offered
        .split(',')
        .map(str::trim)
        .filter(|p| !p.is_empty() && !p.starts_with("base64url.bearer.authorization.k8s.io."))
        .peekable();
    if wanted.peek().is_none() {
        return Ok(None);
    }
    wanted
        .find_map(|p| {
            ["binary.k8s.io", "base64.binary.k8s.io"]
                .into_iter()
                .find(|known| *known == p)
        })
        .map(Some)
        .ok_or_else(|| {
            Error::bad_request(format!(
                "unable to upgrade: no protocol of {offered:?} is known"
            ))
        })
}

impl Upgrade {
    /// Switches protocols and sends `answer` as messages; one that failed is answered as it is.
    pub(super) fn answer(self, answer: Response<Body>) -> Response<Body> {
        if !answer.status().is_success() {
            return answer;
        }
        let response = websocket::accepted(&self.key, self.protocol);
        let framing = self.framing;
        let upgrade = self.upgrade;
        tokio::spawn(async move {
            if let Err(error) = send(upgrade, framing, answer.into_body()).await {
                tracing::debug!(%error, "a WebSocket ended");
            }
        });
        response.map(|()| crate::http::full(""))
    }
}

async fn send(upgrade: OnUpgrade, framing: Framing, body: Body) -> anyhow::Result<()> {
    let stream = TokioIo::new(upgrade.await?);
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let (mut sink, mut incoming) = socket.split();
    let mut pieces = body.into_data_stream();
    let mut cutter = Cutter::new(framing);
    loop {
        tokio::select! {
            piece = pieces.next() => {
                let Some(piece) = piece else { break };
                let piece = piece.map_err(|error| anyhow::anyhow!("{error}"))?;
                for message in cutter.cut(&piece)? {
                    sink.feed(message).await?;
                }
                sink.flush().await?;
            }
            // Answers to pings and the closing handshake are made by reading.
            message = incoming.next() => match message {
                None | Some(Err(_) | Ok(Message::Close(_))) => return Ok(()),
                Some(Ok(_)) => {}
            },
        }
    }
    for message in cutter.rest()? {
        sink.feed(message).await?;
    }
    sink.close().await?;
    Ok(())
}

/// Cuts an answer into messages.
struct Cutter {
    framing: Framing,
    /// Of a line, what has come.
    pending: Vec<u8>,
}

impl Cutter {
    fn new(framing: Framing) -> Self {
        Self {
            framing,
            pending: Vec::new(),
        }
    }

    fn cut(&mut self, piece: &Bytes) -> anyhow::Result<Vec<Message>> {
        match self.framing {
            _ if piece.is_empty() => Ok(Vec::new()),
            Framing::Binary => Ok(vec![Message::Binary(piece.clone())]),
            Framing::Base64 => Ok(vec![Message::Text(STANDARD.encode(piece).into())]),
            Framing::Lines => {
                self.pending.extend_from_slice(piece);
                let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else {
                    return Ok(Vec::new());
                };
                let rest = self.pending.split_off(end + 1);
                let whole = std::mem::replace(&mut self.pending, rest);
                lines(&whole)
            }
        }
    }

    fn rest(&mut self) -> anyhow::Result<Vec<Message>> {
        lines(&std::mem::take(&mut self.pending))
    }
}

fn lines(bytes: &[u8]) -> anyhow::Result<Vec<Message>> {
    let text = std::str::from_utf8(bytes)?;
    let messages = text
        .lines()
        .map(|line| Message::Text(Utf8Bytes::from(line)));
    Ok(messages.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_messages_however_they_arrive() {
        let mut cutter = Cutter::new(Framing::Lines);
        let mut all = Vec::new();
        for piece in ["{\"a\":", "1}\n{\"b\":2}\n{", "\"c\":3}"] {
            all.extend(cutter.cut(&Bytes::from(piece)).unwrap());
        }
        all.extend(cutter.rest().unwrap());
        let texts: Vec<String> = all
            .into_iter()
            .map(|m| m.into_text().unwrap().to_string())
            .collect();
        assert_eq!(texts, ["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
    }

    #[test]
    fn a_known_protocol_is_chosen() {
        assert_eq!(choose("").unwrap(), None);
        assert_eq!(
            choose("x, base64.binary.k8s.io").unwrap(),
            Some("base64.binary.k8s.io")
        );
        assert_eq!(
            choose("base64url.bearer.authorization.k8s.io.dG9r").unwrap(),
            None
        );
        assert_eq!(choose("chat").unwrap_err().code, 400);
    }
}
