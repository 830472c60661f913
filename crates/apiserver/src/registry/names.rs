//! Names for `generateName`.

/// Consonants and digits that cannot spell anything.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

const SUFFIX: usize = 5;

/// Longest base so that the name stays a label.
const MAX_BASE: usize = 63 - SUFFIX;

pub(super) fn generate(base: &str) -> String {
    let cut = base
        .char_indices()
        .map(|(i, _)| i)
        .find(|i| *i >= MAX_BASE)
        .unwrap_or(base.len());
    let mut name = base[..cut].to_owned();
    for _ in 0..SUFFIX {
        name.push(char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]));
    }
    name
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_valid_and_differ() {
        let name = super::generate("web-");
        assert!(name.starts_with("web-") && name.len() == 9);
        assert!(fluyt_api::validation::dns_label(&name).is_empty());
        assert_ne!(name, super::generate("web-"));
        assert_eq!(super::generate(&"a".repeat(80)).len(), 63);
    }
}
