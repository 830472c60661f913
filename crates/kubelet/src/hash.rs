//! Content hashes: short and stable over restarts and versions, since they are written onto containers.

use sha2::{Digest, Sha256};

/// 32 hex digits.
pub fn hex128(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// 8 hex digits.
pub fn hex32(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
