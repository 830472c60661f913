//! Answers of a stream in gRPC's framing.

use bytes::{BufMut as _, Bytes, BytesMut};
use etcd_client::proto::{PbEvent, PbWatchResponse};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::super::convert;
use crate::{Event, KeyValue};

/// Number of the field `WatchResponse.events`.
const EVENTS: u32 = 11;

/// Number of `Event.EventType.DELETE`.
const DELETE: i32 = 1;

/// A piece of the answer is handed on at this size.
const PIECE: usize = 64 << 10;

/// An event in its wire form.
pub(super) fn event(event: &Event, prev: Option<KeyValue>) -> Bytes {
    let mut kv = event.kv.clone();
    if event.deleted {
        kv.value = Bytes::new();
    }
    let event = PbEvent {
        r#type: if event.deleted { DELETE } else { 0 },
        kv: Some(convert::key_value(kv)),
        prev_kv: prev.map(convert::key_value),
    };
    event.encode_to_vec().into()
}

/// Messages, one after the other.
#[derive(Default)]
pub(super) struct Frames(BytesMut);

impl Frames {
    /// Appends the response with these events.
    pub fn push(&mut self, response: &PbWatchResponse, events: &[Bytes]) {
        let framed =
            |event: &Bytes| key_len(EVENTS) + encoded_len_varint(event.len() as u64) + event.len();
        let length = response.encoded_len() + events.iter().map(framed).sum::<usize>();
        self.0.reserve(5 + length);
        // Not compressed.
        self.0.put_u8(0);
        self.0.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        // A buffer that grows takes everything.
        let _ = response.encode(&mut self.0);
        for event in events {
            encode_key(EVENTS, WireType::LengthDelimited, &mut self.0);
            encode_varint(event.len() as u64, &mut self.0);
            self.0.put_slice(event);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.0.len() >= PIECE
    }

    /// What has been pushed so far.
    pub fn take(&mut self) -> Bytes {
        self.0.split().freeze()
    }
}

/// Cuts events into parts of at most `max_bytes`, each of at least one event.
pub(super) fn fragments(events: &[Bytes], max_bytes: usize) -> Vec<&[Bytes]> {
    let mut parts = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (i, event) in events.iter().enumerate() {
        if i > start && size + event.len() > max_bytes {
            parts.push(&events[start..i]);
            (start, size) = (i, 0);
        }
        size += event.len();
    }
    parts.push(&events[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &[u8]) -> Event {
        Event {
            kv: KeyValue {
                key: Bytes::from_static(b"k"),
                value: Bytes::copy_from_slice(value),
                create_revision: 1,
                mod_revision: 300,
                version: 2,
                lease: 0,
            },
            deleted: false,
            prev: None,
        }
    }

    #[test]
    fn fragments_are_bounded_and_lose_nothing() {
        let events = [10, 10, 100, 10].map(|n| Bytes::from(vec![1; n]));
        let parts = fragments(&events, 50);
        let sizes: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        assert_eq!(sizes, [2, 1, 1]);
    }

    #[test]
    fn a_message_is_what_generated_code_makes_of_it() {
        let head = PbWatchResponse {
            watch_id: 7,
            fragment: true,
            ..PbWatchResponse::default()
        };
        let (first, second) = (put(&[b'v'; 1000]), put(b"w"));
        let mut frames = Frames::default();
        let events = [event(&first, Some(second.kv.clone())), event(&second, None)];
        frames.push(&head, &events);
        let frame = frames.take();
        assert_eq!(frame[0], 0);
        assert_eq!(
            u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize,
            frame.len() - 5
        );
        let decoded = PbWatchResponse::decode(&frame[5..]).unwrap();
        let pb = |event: &Bytes| PbEvent::decode(&event[..]).unwrap();
        let expected = PbWatchResponse {
            events: events.iter().map(pb).collect(),
            ..head
        };
        assert_eq!(decoded, expected);
        assert!(frames.is_empty());
    }
}
