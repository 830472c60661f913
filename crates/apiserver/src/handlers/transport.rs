//! What changes in answers that come through a proxy: links to the backend's own paths lead through the proxy as well,
//! in `Location` headers and in HTML.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder, GzDecoder, GzEncoder};
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::BodyExt as _;

use crate::http::{Body, BoxError};

/// A tag that is longer is left as it is.
const LONGEST_TAG: usize = 64 << 10;

/// Elements with the attributes that hold addresses, as HTML has them.
const ADDRESSES: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text, whatever it looks like.
const RAW: [&str; 4] = ["script", "style", "textarea", "title"];

/// Where a proxied answer is seen from.
#[derive(Clone, Debug)]
pub(super) struct Proxied {
    /// The proxy's own path, to which the backend's are appended.
    pub prefix: String,
    /// The backend, as its own links may name it.
    pub host: String,
}

impl Proxied {
    /// A link as the client can follow it; `None` where it stays as it is.
    fn rewritten(&self, link: &str) -> Option<String> {
        let own = |scheme: &str| {
            let rest = link.strip_prefix(scheme)?.strip_prefix(&self.host)?;
            (rest.is_empty() || rest.starts_with(['/', '?', '#'])).then_some(rest)
        };
        let path = own("http://")
            .or_else(|| own("https://"))
            .or_else(|| own("//"));
        let path = match path {
            Some(path) => path,
            None if link.starts_with('/') && !link.starts_with("//") => link,
            // Relative, or of another host.
            None => return None,
        };
        if path.starts_with(&self.prefix) {
            return None;
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Some(format!("{}{slash}{path}", self.prefix))
    }

    /// The answer as its client is to see it.
    pub fn answer(self, mut response: Response<Body>) -> Response<Body> {
        let headers = response.headers_mut();
        if let Some(location) = headers.get(header::LOCATION) {
            let rewritten = location.to_str().ok().and_then(|l| self.rewritten(l));
            if let Some(value) = rewritten.and_then(|l| HeaderValue::from_str(&l).ok()) {
                headers.insert(header::LOCATION, value);
            }
            return response;
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let media_type = text(header::CONTENT_TYPE).unwrap_or_default();
        if media_type.split(';').next().map(str::trim) != Some("text/html") {
            return response;
        }
        let coding = match text(header::CONTENT_ENCODING).unwrap_or_default() {
            "" | "identity" => Coding::Plain(Vec::new()),
            "gzip" => Coding::Gzip(
                GzDecoder::new(Vec::new()),
                GzEncoder::new(Vec::new(), Compression::fast()),
            ),
            "deflate" => Coding::Deflate(
                DeflateDecoder::new(Vec::new()),
                DeflateEncoder::new(Vec::new(), Compression::fast()),
            ),
            // Nobody can look into it.
            _ => return response,
        };
        headers.remove(header::CONTENT_LENGTH);
        let page = Page {
            proxied: self,
            pending: Vec::new(),
            raw: None,
        };
        response.map(|body| {
            let rewriting = Rewriting {
                body,
                coding,
                page,
                ended: false,
            };
            rewriting.boxed_unsync()
        })
    }
}

/// How the page is compressed, and shall be again.
enum Coding {
    Plain(Vec<u8>),
    Gzip(GzDecoder<Vec<u8>>, GzEncoder<Vec<u8>>),
    Deflate(DeflateDecoder<Vec<u8>>, DeflateEncoder<Vec<u8>>),
}

impl Coding {
    /// A piece as it came, uncompressed.
    fn decode(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain(_) => Ok(piece.to_vec()),
            Self::Gzip(decoder, _) => {
                decoder.write_all(piece)?;
                decoder.flush()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Deflate(decoder, _) => {
                decoder.write_all(piece)?;
                decoder.flush()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
        }
    }

    /// A piece as it goes on; `last` ends the stream.
    fn encode(&mut self, piece: &[u8], last: bool) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain(out) => out.extend_from_slice(piece),
            Self::Gzip(_, encoder) => {
                encoder.write_all(piece)?;
                if last {
                    encoder.try_finish()?
                } else {
                    encoder.flush()?
                }
            }
            Self::Deflate(_, encoder) => {
                encoder.write_all(piece)?;
                if last {
                    encoder.try_finish()?
                } else {
                    encoder.flush()?
                }
            }
        }
        Ok(std::mem::take(match self {
            Self::Plain(out) => out,
            Self::Gzip(_, encoder) => encoder.get_mut(),
            Self::Deflate(_, encoder) => encoder.get_mut(),
        }))
    }
}

/// A body whose links are rewritten as it passes.
struct Rewriting {
    body: Body,
    coding: Coding,
    page: Page,
    ended: bool,
}

impl http_body::Body for Rewriting {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()?;
            let this = &mut *self;
            let out = match frame.map(Frame::into_data) {
                Some(Ok(piece)) => {
                    let plain = this.coding.decode(&piece)?;
                    let rewritten = this.page.push(&plain);
                    this.coding.encode(&rewritten, false)?
                }
                // Trailers say nothing about what is made of the page.
                Some(Err(_)) => continue,
                None => {
                    this.ended = true;
                    let rest = this.page.finish();
                    this.coding.encode(&rest, true)?
                }
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }
}

/// A page that comes in pieces.
struct Page {
    proxied: Proxied,
    /// The beginning of a tag.
    pending: Vec<u8>,
    /// Within an element whose content is text.
    raw: Option<&'static str>,
}

impl Page {
    /// Takes a piece in; returns what is complete.
    fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(piece);
        let page = std::mem::take(&mut self.pending);
        let mut out = Vec::with_capacity(page.len());
        let mut rest = page.as_slice();
        while let Some(start) = rest.iter().position(|b| *b == b'<') {
            out.extend_from_slice(&rest[..start]);
            rest = &rest[start..];
            let Some(length) = tag_length(rest) else {
                if rest.len() <= LONGEST_TAG {
                    self.pending = rest.to_vec();
                    return out;
                }
                break;
            };
            self.tag(&rest[..length], &mut out);
            rest = &rest[length..];
        }
        out.extend_from_slice(rest);
        out
    }

    fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>) {
        let name_of = |bytes: &[u8]| -> String {
            let name = bytes.iter().take_while(|b| b.is_ascii_alphanumeric());
            name.map(|b| char::from(b.to_ascii_lowercase())).collect()
        };
        if let Some(raw) = self.raw {
            if tag.get(1) == Some(&b'/') && name_of(&tag[2..]) == raw {
                self.raw = None;
            }
            return out.extend_from_slice(tag);
        }
        let name = name_of(&tag[1..]);
        self.raw = RAW.into_iter().find(|raw| *raw == name);
        let addresses = ADDRESSES.iter().find(|(element, _)| *element == name);
        let Some((_, attributes)) = addresses else {
            return out.extend_from_slice(tag);
        };
        let mut at = 1 + name.len();
        out.extend_from_slice(&tag[..at]);
        while let Some(attribute) = Attribute::next(&tag[at..]) {
            let value = &tag[at..][attribute.value.clone()];
            let known = attributes.contains(&attribute.name.as_str());
            let link = std::str::from_utf8(value).ok().filter(|_| known);
            out.extend_from_slice(&tag[at..at + attribute.value.start]);
            match link.and_then(|link| self.proxied.rewritten(link)) {
                Some(link) => out.extend_from_slice(link.as_bytes()),
                None => out.extend_from_slice(value),
            }
            at += attribute.value.end;
        }
        out.extend_from_slice(&tag[at..]);
    }
}

/// How long the tag or comment is that the bytes begin with; `None` while its end is not there. What is no tag is as long
/// as its first character.
fn tag_length(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(b"<!--") {
        let end = bytes.windows(3).skip(2).position(|w| w == b"-->")?;
        return Some(end + 2 + 3);
    }
    match bytes.get(1)? {
        b'/' | b'!' | b'?' => {}
        first if first.is_ascii_alphabetic() => {}
        _ => return Some(1),
    }
    let (mut quote, mut before) = (None, b'<');
    for (i, byte) in bytes.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(i + 1),
            (None, b'"' | b'\'') if before == b'=' => quote = Some(*byte),
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            before = *byte;
        }
    }
    None
}

/// One attribute of a tag: its name, and where its value is.
struct Attribute {
    name: String,
    value: std::ops::Range<usize>,
}

impl Attribute {
    fn next(bytes: &[u8]) -> Option<Self> {
        let skip = |from: usize, skipped: &dyn Fn(u8) -> bool| {
            let rest = &bytes[from..];
            from + rest.iter().take_while(|b| skipped(**b)).count()
        };
        let space = |b: u8| b.is_ascii_whitespace();
        let start = skip(0, &|b| space(b) || b == b'/');
        let end = skip(start, &|b| !space(b) && !b"=>/".contains(&b));
        if start == end {
            return None;
        }
        let name = String::from_utf8_lossy(&bytes[start..end]).to_ascii_lowercase();
        let equals = skip(end, &space);
        if bytes.get(equals) != Some(&b'=') {
            return Some(Self {
                name,
                value: end..end,
            });
        }
        let open = skip(equals + 1, &space);
        let value = match bytes.get(open) {
            Some(quote @ (b'"' | b'\'')) => open + 1..skip(open + 1, &|b| b != *quote),
            _ => open..skip(open, &|b| !space(b) && b != b'>'),
        };
        Some(Self { name, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxied() -> Proxied {
        Proxied {
            prefix: "/api/v1/namespaces/n/pods/p/proxy".into(),
            host: "10.0.0.1:80".into(),
        }
    }

    fn rewritten(page: &str, size: usize) -> String {
        let mut state = Page {
            proxied: proxied(),
            pending: Vec::new(),
            raw: None,
        };
        let mut out = Vec::new();
        for piece in page.as_bytes().chunks(size) {
            out.extend(state.push(piece));
        }
        out.extend(state.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn links_lead_through_the_proxy() {
        let page = concat!(
            "<!doctype html><!-- <a href=\"/kept\"> --><a href=\"/x\">1 < 2</a><IMG alt= 'a>b' src = /y/>",
            "<a href='http://10.0.0.1:80/z?q'></a><a href=\"http://elsewhere/w\"></a><a href=\"rel\" title=\"/t\"></a>",
            "<script src=\"/s.js\">var a = '<a href=\"/kept\">'</script><link href=/api/v1/namespaces/n/pods/p/proxy/k>",
        );
        let prefix = proxied().prefix;
        let expected = format!(
            concat!(
                "<!doctype html><!-- <a href=\"/kept\"> --><a href=\"{0}/x\">1 < 2</a><IMG alt= 'a>b' src = {0}/y/>",
                "<a href='{0}/z?q'></a><a href=\"http://elsewhere/w\"></a><a href=\"rel\" title=\"/t\"></a>",
                "<script src=\"{0}/s.js\">var a = '<a href=\"/kept\">'</script><link href=/api/v1/namespaces/n/pods/p/proxy/k>",
            ),
            prefix
        );
        for size in [1, 7, 1000] {
            assert_eq!(rewritten(page, size), expected, "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn compressed_pages_are_rewritten_and_compressed_again() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"<a href=\"/x\">test</a>").unwrap();
        let response = Response::builder()
            .header("content-type", "text/html; charset=utf-8")
            .header("content-encoding", "gzip")
            .body(crate::http::full(Bytes::from(encoder.finish().unwrap())))
            .unwrap();
        let body = proxied().answer(response).into_body();
        let bytes = body.collect().await.unwrap().to_bytes();
        let mut decoder = GzDecoder::new(Vec::new());
        decoder.write_all(&bytes).unwrap();
        let expected = format!("<a href=\"{}/x\">test</a>", proxied().prefix);
        assert_eq!(decoder.finish().unwrap(), expected.as_bytes());
    }

    #[test]
    fn redirects_stay_within_the_proxy() {
        let response = Response::builder().header("location", "/login");
        let response = response.body(crate::http::full(Bytes::new())).unwrap();
        let answer = proxied().answer(response);
        let expected = format!("{}/login", proxied().prefix);
        assert_eq!(answer.headers()["location"], expected.as_str());
    }
}
