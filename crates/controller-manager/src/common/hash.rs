//! Short hashes that name revisions, such as `pod-template-hash`.

use serde::Serialize;

/// Upstream's alphabet: no vowels, so that no hash is a word, and no characters that look alike.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A label-safe hash of `object` and, to get another one after a collision, of `collision_count`.
pub fn compute<T: Serialize>(object: &T, collision_count: Option<i32>) -> String {
    let mut hash = Fnv32::default();
    // Structs of the API always serialize.
    hash.write(&serde_json::to_vec(object).unwrap_or_default());
    if let Some(count) = collision_count {
        hash.write(&count.to_le_bytes());
    }
    encode(hash.0)
}

/// The decimal digits of `hash` in the alphabet.
fn encode(hash: u32) -> String {
    let digits = hash.to_string();
    let encoded = digits
        .bytes()
        .map(|digit| ALPHABET[usize::from(digit) % ALPHABET.len()]);
    encoded.map(char::from).collect()
}

/// FNV-1a of 32 bits.
pub struct Fnv32(pub u32);

impl Default for Fnv32 {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl Fnv32 {
    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_reference_values() {
        for (text, expected) in [
            ("", 0x811c_9dc5),
            ("a", 0xe40c_292c),
            ("foobar", 0xbf9c_f968),
        ] {
            let mut hash = Fnv32::default();
            hash.write(text.as_bytes());
            assert_eq!(hash.0, expected, "{text:?}");
        }
    }

    #[test]
    fn collisions_give_another_hash() {
        let first = compute(&"template", None);
        assert_eq!(first, compute(&"template", None));
        assert_ne!(first, compute(&"template", Some(1)));
        assert_ne!(compute(&"template", Some(1)), compute(&"template", Some(2)));
        assert!(first.bytes().all(|byte| ALPHABET.contains(&byte)));
    }
}
