//! What the author of a request is warned of, in the headers of the answer.

use std::collections::HashSet;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue, WARNING};
use parking_lot::Mutex;

/// Characters of all warnings of an answer; if there are more, each of them is cut to [`SHORT`].
const ALL: usize = 4096;

/// Characters of a warning among too many.
const SHORT: usize = 256;

/// Warnings in order, each once; shared by everything that works on a request.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Recorded>>);

#[derive(Debug, Default)]
struct Recorded {
    texts: Vec<Arc<str>>,
    known: HashSet<Arc<str>>,
    /// How many characters the headers have.
    written: usize,
    shortened: bool,
}

impl Warnings {
    /// Adds a warning. Once there are too many, more are of no use.
    pub fn add(&self, text: impl Into<Arc<str>>) {
        self.0.lock().add(text.into());
    }

    pub fn extend<T: Into<Arc<str>>>(&self, texts: impl IntoIterator<Item = T>) {
        let mut recorded = self.0.lock();
        for text in texts {
            recorded.add(text.into());
        }
    }

    /// Adds `Warning: 299` headers.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let recorded = self.0.lock();
        for text in &recorded.texts {
            let escaped = recorded.shown(text).replace('\\', "\\\\");
            let escaped = escaped.replace('"', "\\\"");
            // What has control characters cannot be told.
            if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{escaped}\"").as_bytes()) {
                headers.append(WARNING, value);
            }
        }
    }
}

impl Recorded {
    fn add(&mut self, text: Arc<str>) {
        let is_full = self.shortened && self.written >= ALL;
        if is_full || text.is_empty() || !self.known.insert(text.clone()) {
            return;
        }
        self.written += self.shown(&text).chars().count();
        self.texts.push(text);
        if !self.shortened && self.written > ALL {
            self.shortened = true;
            let lengths = self
                .texts
                .iter()
                .map(|text| self.shown(text).chars().count());
            self.written = lengths.sum();
        }
    }

    fn shown<'t>(&self, text: &'t str) -> &'t str {
        let end = text.char_indices().nth(SHORT).filter(|_| self.shortened);
        end.map_or(text, |(end, _)| text.get(..end).unwrap_or(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(texts: impl IntoIterator<Item = String>) -> Vec<String> {
        let warnings = Warnings::default();
        warnings.extend(texts);
        let mut headers = HeaderMap::new();
        warnings.tell(&mut headers);
        let values = headers.get_all(WARNING).iter();
        values
            .map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn each_is_told_once_and_quoted() {
        let texts = ["a", "b \"c\" \\", "a", "", "é", "with\ncontrol"].map(String::from);
        assert_eq!(
            told(texts),
            ["299 - \"a\"", "299 - \"b \\\"c\\\" \\\\\"", "299 - \"é\""]
        );
    }

    #[test]
    fn many_are_cut_and_no_more_than_fit_are_told() {
        // These fit, however long they are.
        assert_eq!(told(["x".repeat(ALL)])[0].len(), ALL + 8);
        let long = |n: usize| format!("{n}{}", "é".repeat(2000));
        let three = told((0..3).map(long));
        assert_eq!(three.len(), 3);
        for warning in &three {
            assert_eq!(warning.chars().count(), SHORT + 8);
        }
        assert_eq!(told((0..100_000).map(long)).len(), ALL / SHORT);
        let short = told((0..100_000).map(|n| format!("{n:05}")));
        assert_eq!(short.len(), ALL.div_ceil(5));
    }
}
