//! Where something is in its trace, and how that is told to others: the headers of W3C Trace Context.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;

use ::http::{HeaderMap, HeaderValue};

pub const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const BAGGAGE: &str = "baggage";

/// The version of the header that is written.
const VERSION: u8 = 0;

/// The version that never is.
const FORBIDDEN_VERSION: u8 = 0xff;

/// Members of a trace state.
const MAX_MEMBERS: usize = 32;

/// The place of one span in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    /// Whether the spans of this trace are collected.
    pub sampled: bool,
    /// Whether the span is somebody else's.
    pub remote: bool,
    /// What tracing systems on the way have to say to each other.
    pub state: Option<Arc<str>>,
}

impl SpanContext {
    /// What a request's headers say. `None` if they say nothing, or nothing that makes sense.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let parent = headers.get(TRACEPARENT)?.to_str().ok()?;
        let state = headers
            .get(TRACESTATE)
            .and_then(|value| value.to_str().ok());
        Some(Self {
            state: state.and_then(trace_state),
            ..Self::parse(parent)?
        })
    }

    /// A `traceparent`: version, trace, span and flags in lower-case hexadecimals.
    fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut next = || {
            let (part, after) = rest.split_once('-').unwrap_or((rest, ""));
            rest = after;
            part
        };
        let [version] = hexadecimal::<1>(next())?;
        let trace_id = hexadecimal::<16>(next())?;
        let span_id = hexadecimal::<8>(next())?;
        let [flags] = hexadecimal::<1>(next())?;
        // Later versions may have more to say; this one has two flags.
        let strange = version == VERSION && (!rest.is_empty() || flags > 2);
        let nowhere = trace_id == [0; 16] || span_id == [0; 8];
        if version == FORBIDDEN_VERSION || strange || nowhere {
            return None;
        }
        Some(Self {
            trace_id,
            span_id,
            sampled: flags & 1 != 0,
            remote: true,
            state: None,
        })
    }

    /// As a `traceparent`.
    #[must_use]
    pub fn traceparent(&self) -> String {
        let mut text = String::with_capacity(55);
        let flags = [u8::from(self.sampled)];
        for part in [&[VERSION][..], &self.trace_id, &self.span_id, &flags] {
            if !text.is_empty() {
                text.push('-');
            }
            for byte in part {
                // Writing to a string cannot fail.
                let _ = write!(text, "{byte:02x}");
            }
        }
        text
    }

    /// Tells whoever gets these headers.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::from_str(&self.traceparent()) {
            headers.insert(TRACEPARENT, value);
        }
        let state = self.state.as_deref().map(HeaderValue::from_str);
        if let Some(Ok(state)) = state {
            headers.insert(TRACESTATE, state);
        }
    }
}

/// What a request carries along for those behind this server.
#[must_use]
pub fn baggage(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(BAGGAGE).cloned()
}

pub fn inject_baggage(baggage: Option<&HeaderValue>, headers: &mut HeaderMap) {
    if let Some(baggage) = baggage {
        headers.insert(BAGGAGE, baggage.clone());
    }
}

/// Exactly so many bytes.
fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 2 * N || !text.bytes().all(is_digit) {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

/// A `tracestate` without needless space; `None` for one that is empty or wrong anywhere.
fn trace_state(text: &str) -> Option<Arc<str>> {
    let space = [' ', '\t'];
    let mut keys = HashSet::new();
    let mut members = Vec::new();
    for member in text.split(',').filter(|member| !member.is_empty()) {
        let (key, value) = member.split_once('=')?;
        let (key, value) = (key.trim_start_matches(space), value.trim_end_matches(space));
        if !is_key(key) || !is_value(value) || !keys.insert(key) {
            return None;
        }
        members.push(format!("{key}={value}"));
    }
    let fits = (1..=MAX_MEMBERS).contains(&members.len());
    fits.then(|| members.join(",").into())
}

/// A vendor, or a tenant of one: `tenant@vendor`.
fn is_key(key: &str) -> bool {
    let part = |part: &str, longest: usize, digit: bool| {
        let first = part.bytes().next();
        let begins = first.is_some_and(|b| b.is_ascii_lowercase() || digit && b.is_ascii_digit());
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/".contains(&b);
        begins && part.len() <= longest && part.bytes().all(known)
    };
    match key.split_once('@') {
        None => part(key, 256, false),
        Some((tenant, vendor)) => part(tenant, 241, true) && part(vendor, 14, false),
    }
}

fn is_value(value: &str) -> bool {
    let known = |b: u8| matches!(b, b' '..=b'~') && b != b',' && b != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(known) && !value.ends_with(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn of(parent: &'static str, state: &'static str) -> Option<SpanContext> {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(parent));
        headers.insert(TRACESTATE, HeaderValue::from_static(state));
        SpanContext::of(&headers)
    }

    #[test]
    fn a_parent_is_read_and_written() {
        let context = of(PARENT, "rojo=00f067aa0ba902b7, congo=t61rcWkgMzE ").unwrap();
        assert_eq!(context.trace_id[..3], [0x0a, 0xf7, 0x65]);
        assert_eq!(context.span_id[7], 0x31);
        assert!(context.sampled && context.remote);
        assert_eq!(context.traceparent(), PARENT);
        let mut headers = HeaderMap::new();
        context.inject(&mut headers);
        assert_eq!(headers[TRACEPARENT], PARENT);
        let state = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE";
        assert_eq!(headers[TRACESTATE], state);
        assert_eq!(SpanContext::of(&HeaderMap::new()), None);
    }

    #[test]
    fn flags_say_whether_it_is_sampled() {
        let sampled = |flags: &str| {
            let parent = format!("{}{flags}", &PARENT[..PARENT.len() - 2]);
            SpanContext::parse(&parent).map(|context| context.sampled)
        };
        assert_eq!(sampled("00"), Some(false));
        assert_eq!(sampled("01"), Some(true));
        assert_eq!(sampled("02"), Some(false));
        assert_eq!(
            sampled("03"),
            None,
            "a flag that this version does not have"
        );
    }

    #[test]
    fn what_makes_no_sense_is_no_parent() {
        for wrong in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c8031é-b7ad6b7169203331-01",
        ] {
            assert_eq!(SpanContext::parse(wrong), None, "{wrong}");
        }
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-09-more";
        assert!(SpanContext::parse(later).unwrap().sampled);
    }

    #[test]
    fn a_wrong_state_does_not_spoil_the_parent() {
        let many: Vec<String> = (0..33).map(|i| format!("k{i}=v")).collect();
        for wrong in [
            "",
            "a",
            "a=",
            "A=b",
            "a=b,a=c",
            "1a=b",
            "a=b\tc",
            "t@V=1",
            &many.join(","),
        ] {
            assert_eq!(trace_state(wrong), None, "{wrong}");
        }
        assert_eq!(
            trace_state(" 1t@v=x y,,b=c").as_deref(),
            Some("1t@v=x y,b=c")
        );
        assert_eq!(of(PARENT, "a=b,a=c").unwrap().state, None);
    }
}
