//! What of a range is in use, as a bitmap in the store: upstream's `RangeAllocation`, which is served to nobody.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluyt_api::protobuf;
use prost::Message as _;
use serde_json::{Value, json};

use crate::storage::MediaType;

const KIND: &str = "RangeAllocation";

/// Metadata in which nothing is set, as upstream's encoder writes it: all of its plain fields are there.
const NO_METADATA: &[u8] = &[
    0x0a, 0, 0x12, 0, 0x1a, 0, 0x22, 0, 0x2a, 0, 0x32, 0, 0x38, 0, 0x42, 0,
];

/// The fields of the message. Of its metadata nothing is read.
#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(bytes = "vec", optional, tag = "1")]
    metadata: Option<Vec<u8>>,
    #[prost(string, optional, tag = "2")]
    range: Option<String>,
    #[prost(bytes = "vec", optional, tag = "3")]
    data: Option<Vec<u8>>,
}

/// A range and which of its items are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RangeAllocation {
    /// As upstream writes it: `30000-32767`.
    pub(super) range: String,
    pub(super) taken: Bitmap,
}

/// A set of offsets into a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bitmap(Vec<u8>);

impl Bitmap {
    pub(super) fn has(&self, offset: usize) -> bool {
        self.0
            .get(offset / 8)
            .is_some_and(|byte| byte >> (offset % 8) & 1 == 1)
    }

    pub(super) fn set(&mut self, offset: usize, taken: bool) {
        if self.0.len() <= offset / 8 {
            self.0.resize(offset / 8 + 1, 0);
        }
        let bit = 1 << (offset % 8);
        if taken {
            self.0[offset / 8] |= bit;
        } else {
            self.0[offset / 8] &= !bit;
        }
    }

    /// How many offsets are in it.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// The bytes of the number in which bit `n` stands for offset `n`, the most significant first, without leading zeros.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.0.iter().rev().copied().collect();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        bytes.drain(..zeros);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.iter().rev().copied().collect())
    }
}

impl RangeAllocation {
    /// The stored form, before encryption.
    pub(super) fn encode(&self, media_type: MediaType) -> Vec<u8> {
        let data = self.taken.to_bytes();
        if media_type == MediaType::Json {
            let object = json!({"kind": KIND, "apiVersion": "v1", "metadata": {},
                "range": self.range, "data": STANDARD.encode(data)});
            return object.to_string().into_bytes();
        }
        let message = Wire {
            metadata: Some(NO_METADATA.to_vec()),
            range: Some(self.range.clone()),
            data: Some(data),
        };
        let mut out = Vec::new();
        protobuf::seal_into("v1", KIND, &mut out, |out| {
            out.extend_from_slice(&message.encode_to_vec());
        });
        out
    }

    /// # Errors
    /// When it is damaged or something else.
    pub(super) fn decode(stored: &[u8]) -> Result<Self, String> {
        let (range, data) = if stored.starts_with(protobuf::MAGIC) {
            let envelope = protobuf::open(stored)?;
            let message = Wire::decode(envelope.raw).map_err(|e| e.to_string())?;
            let (range, data) = (message.range, message.data);
            (range.unwrap_or_default(), data.unwrap_or_default())
        } else {
            let object: Value = serde_json::from_slice(stored).map_err(|e| e.to_string())?;
            let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
            let data = STANDARD.decode(text("data")).map_err(|e| e.to_string())?;
            (text("range"), data)
        };
        Ok(Self {
            range,
            taken: Bitmap::from_bytes(&data),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocation(offsets: &[usize]) -> RangeAllocation {
        let mut taken = Bitmap::default();
        for offset in offsets {
            taken.set(*offset, true);
        }
        RangeAllocation {
            range: "30000-32767".into(),
            taken,
        }
    }

    /// Upstream's bytes of a range whose items 0 and 10 are taken.
    #[test]
    fn the_stored_form_is_upstreams() {
        let mut expected = b"k8s\0\x0a\x15\x0a\x02v1\x12\x0fRangeAllocation\x12\x23".to_vec();
        expected
            .extend(b"\x0a\x10\x0a\x00\x12\x00\x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00\x42\x00");
        expected.extend(b"\x12\x0b30000-32767\x1a\x02\x04\x01\x1a\x00\x22\x00");
        let ours = allocation(&[0, 10]);
        assert_eq!(ours.encode(MediaType::Protobuf), expected);
        assert_eq!(RangeAllocation::decode(&expected), Ok(ours));
    }

    #[test]
    fn what_is_written_is_read_again() {
        for offsets in [&[][..], &[7], &[8, 2767], &[0, 1, 2, 100]] {
            let written = allocation(offsets);
            for form in [MediaType::Protobuf, MediaType::Json] {
                let read = RangeAllocation::decode(&written.encode(form)).unwrap();
                let taken: Vec<usize> = (0..2768).filter(|n| read.taken.has(*n)).collect();
                assert_eq!((taken.as_slice(), &*read.range), (offsets, "30000-32767"));
            }
        }
        let mut freed = allocation(&[8, 2767]);
        freed.taken.set(2767, false);
        assert_eq!(
            freed.encode(MediaType::Protobuf),
            allocation(&[8]).encode(MediaType::Protobuf)
        );
        assert!(RangeAllocation::decode(b"k8s\0\xff").is_err());
    }
}
