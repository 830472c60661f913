//! `application/cbor` as upstream writes and reads it: the self-described tag in front, strings as byte strings, and of
//! CBOR's many types only those that JSON has.

use base64::Engine as _;
use serde_json::{Map, Number, Value};

use crate::decode::MAX_DEPTH;

/// The tag that says "this is CBOR", which starts every body.
pub const SELF_DESCRIBED: [u8; 3] = [0xd9, 0xd9, 0xf7];

/// Encodes a value with the tag in front.
#[must_use]
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = SELF_DESCRIBED.to_vec();
    write(value, &mut out);
    out
}

fn head(major: u8, n: u64, out: &mut Vec<u8>) {
    let major = major << 5;
    match n {
        #[allow(clippy::cast_possible_truncation)]
        0..24 => out.push(major | n as u8),
        24..0x100 => {
            out.push(major | 24);
            out.extend_from_slice(&n.to_be_bytes()[7..]);
        }
        0x100..0x1_0000 => {
            out.push(major | 25);
            out.extend_from_slice(&n.to_be_bytes()[6..]);
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(major | 26);
            out.extend_from_slice(&n.to_be_bytes()[4..]);
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&n.to_be_bytes());
        }
    }
}

fn text(text: &str, out: &mut Vec<u8>) {
    head(2, text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(0xf6),
        Value::Bool(false) => out.push(0xf4),
        Value::Bool(true) => out.push(0xf5),
        Value::Number(n) => match (n.as_u64(), n.as_i64()) {
            (Some(n), _) => head(0, n, out),
            (None, Some(n)) => head(1, n.unsigned_abs() - 1, out),
            _ => {
                out.push(0xfb);
                out.extend_from_slice(&n.as_f64().unwrap_or_default().to_be_bytes());
            }
        },
        Value::String(s) => text(s, out),
        Value::Array(items) => {
            head(4, items.len() as u64, out);
            for item in items {
                write(item, out);
            }
        }
        Value::Object(map) => {
            head(5, map.len() as u64, out);
            // Shorter keys first, as the deterministic encoding has it.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| (key.len(), key.as_str()));
            for (key, item) in entries {
                text(key, out);
                write(item, out);
            }
        }
    }
}

/// Decodes one value, with or without the tag in front.
///
/// # Errors
/// When the input is malformed, goes on after the value, or has what JSON has not.
pub fn decode(input: &[u8]) -> Result<Value, String> {
    let mut reader = Reader(input.strip_prefix(&SELF_DESCRIBED).unwrap_or(input));
    let value = reader.value(0)?;
    if reader.0.is_empty() {
        Ok(value)
    } else {
        Err(format!(
            "cbor: {} bytes of extraneous data starting at index {}",
            reader.0.len(),
            input.len() - reader.0.len()
        ))
    }
}

struct Reader<'a>(&'a [u8]);

const EOF: &str = "unexpected EOF";

/// An item's major type, its argument (none: of indefinite length), and the low bits of its first byte.
struct Head {
    major: u8,
    argument: Option<u64>,
    low: u8,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let length = usize::try_from(length).map_err(|_| EOF)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(EOF)?;
        self.0 = rest;
        Ok(taken)
    }

    fn head(&mut self) -> Result<Head, String> {
        let first = self.take(1)?[0];
        let low = first & 0x1f;
        let argument = match low {
            0..24 => Some(u64::from(low)),
            24..28 => {
                let bytes = self.take(1 << (low - 24))?;
                Some(bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
            }
            31 => None,
            _ => return Err(format!("cbor: invalid additional information {low}")),
        };
        Ok(Head {
            major: first >> 5,
            argument,
            low,
        })
    }

    /// Whether a container of indefinite length ends here.
    fn ends(&mut self) -> Result<bool, String> {
        if *self.0.first().ok_or(EOF)? == 0xff {
            self.0 = &self.0[1..];
            return Ok(true);
        }
        Ok(false)
    }

    fn string(&mut self, head: &Head) -> Result<Vec<u8>, String> {
        if let Some(length) = head.argument {
            return Ok(self.take(length)?.to_vec());
        }
        let mut joined = Vec::new();
        while !self.ends()? {
            let part = self.head()?;
            match part.argument {
                Some(length) if part.major == head.major => {
                    joined.extend_from_slice(self.take(length)?);
                }
                _ => return Err("cbor: wrong element type for indefinite-length string".into()),
            }
        }
        Ok(joined)
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err(format!("cbor: exceeded max nested level {MAX_DEPTH}"));
        }
        let head = self.head()?;
        match (head.major, head.argument) {
            (0, Some(n)) if i64::try_from(n).is_ok() => Ok(n.into()),
            (1, Some(n)) => i64::try_from(n)
                .map(|n| (-1 - n).into())
                .map_err(|_| format!("cbor: cannot unmarshal -1-{n} into an int64")),
            (0, Some(n)) => Err(format!("cbor: cannot unmarshal {n} into an int64")),
            (2 | 3, _) => utf8(self.string(&head)?).map(Value::String),
            (4, length) => {
                let mut items = Vec::new();
                while !self.done(length, items.len())? {
                    items.push(self.value(depth + 1)?);
                }
                Ok(items.into())
            }
            (5, length) => {
                let mut map = Map::new();
                while !self.done(length, map.len())? {
                    let key = self.head()?;
                    if !matches!(key.major, 2 | 3) {
                        return Err("cbor: cannot unmarshal a map key that is no string".into());
                    }
                    let key = utf8(self.string(&key)?)?;
                    let item = self.value(depth + 1)?;
                    if map.contains_key(&key) {
                        return Err(format!("cbor: found duplicate map key {key:?}"));
                    }
                    map.insert(key, item);
                }
                Ok(map.into())
            }
            (6, Some(number)) => self.tagged(number, depth),
            (7, _) => self.simple(&head),
            _ => Err("cbor: an indefinite length where there is none".into()),
        }
    }

    fn done(&mut self, length: Option<u64>, read: usize) -> Result<bool, String> {
        match length {
            Some(length) => Ok(read as u64 >= length),
            None => self.ends(),
        }
    }

    /// Byte strings that are to appear as base64 text; any other tag that JSON could not show is refused.
    fn tagged(&mut self, number: u64, depth: usize) -> Result<Value, String> {
        let engine = base64::engine::general_purpose::STANDARD;
        match number {
            22 => {
                let head = self.head()?;
                if head.major != 2 {
                    return Err("cbor: a base64 hint on what is no byte string".into());
                }
                Ok(engine.encode(self.string(&head)?).into())
            }
            // A time as text, or the tag of CBOR itself once more.
            0 | 55799 => self.value(depth + 1),
            other => Err(format!("cbor: unsupported tag {other}")),
        }
    }

    fn simple(&mut self, head: &Head) -> Result<Value, String> {
        let bits = head.argument.unwrap_or_default();
        let float = match head.low {
            20 => return Ok(false.into()),
            21 => return Ok(true.into()),
            22 => return Ok(Value::Null),
            25 => half(bits),
            #[allow(clippy::cast_possible_truncation)]
            26 => f64::from(f32::from_bits(bits as u32)),
            27 => f64::from_bits(bits),
            other => return Err(format!("cbor: simple value {other} is not recognized")),
        };
        Number::from_f64(float)
            .map(Value::Number)
            .ok_or_else(|| "cbor: floating-point NaN or infinity".to_owned())
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|_| "cbor: invalid UTF-8 string".to_owned())
}

/// A float of 16 bits.
fn half(bits: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let mantissa = (bits & 0x3ff) as f64;
    let exponent = i32::try_from(bits >> 10 & 0x1f).unwrap_or_default();
    let size = match exponent {
        0 => mantissa * 2_f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (mantissa / 1024.0 + 1.0) * 2_f64.powi(exponent - 15),
    };
    if bits & 0x8000 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn known_bytes() {
        let value = json!({"b": [1, -1, 1.5, true, null], "aa": "x"});
        let bytes = encode(&value);
        assert_eq!(
            bytes,
            b"\xd9\xd9\xf7\xa2\x41b\x85\x01\x20\xfb\x3f\xf8\0\0\0\0\0\0\xf5\xf6\x42aa\x41x"
        );
        assert_eq!(decode(&bytes).unwrap(), value);
        // Text strings, indefinite lengths, half floats and base64 hints are read as well.
        let other = b"\xbf\x61a\x9f\xf9\x3c\x00\x7f\x61x\x61y\xff\xff\x61b\xd6\x42\x01\x02\xff";
        assert_eq!(
            decode(other).unwrap(),
            json!({"a": [1.0, "xy"], "b": "AQI="})
        );
    }

    #[test]
    fn what_json_has_not_is_refused() {
        for bad in [
            &b"\xa2\x41a\x01\x41a\x02"[..],
            b"\xf7",
            b"\xfb\x7f\xf8\0\0\0\0\0\0",
            b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\xa1\x01\x02",
            b"\x41\xff",
            b"\x01\x01",
            b"\xc2\x41\x01",
            b"",
        ] {
            assert!(decode(bad).is_err(), "{bad:x?}");
        }
        assert!(decode(&[0x81; 1000]).is_err());
    }

    proptest! {
        #[test]
        fn anything_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn integers_round_trip(n in any::<i64>()) {
            prop_assert_eq!(decode(&encode(&n.into())).unwrap(), json!(n));
        }
    }
}
