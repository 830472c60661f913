//! A few short texts by name, compactly: what selectors look at is kept of every object there is.

/// Names with their values, in two allocations whatever their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Names and values, one after the other.
    text: Box<str>,
    /// Where each of them ends.
    ends: Box<[u32]>,
}

impl Pairs {
    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut start = 0;
        let mut texts = self.ends.iter().map(move |end| {
            let end = *end as usize;
            let text = self.text.get(start..end).unwrap_or_default();
            start = end;
            text
        });
        std::iter::from_fn(move || Some((texts.next()?, texts.next()?)))
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let (mut text, mut ends) = (String::new(), Vec::new());
        for (name, value) in pairs {
            for part in [name.as_ref(), value.as_ref()] {
                text.push_str(part);
                // An object is far smaller than this can count.
                ends.push(u32::try_from(text.len()).unwrap_or(u32::MAX));
            }
        }
        Self {
            text: text.into(),
            ends: ends.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_put_in_is_found(pairs: Vec<(String, String)>) {
            let compact: Pairs = pairs.iter().map(|(n, v)| (n, v)).collect();
            let found: Vec<(String, String)> = compact.iter().map(|(n, v)| (n.into(), v.into())).collect();
            prop_assert_eq!(&found, &pairs);
            for (name, _) in &pairs {
                let first = pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
                prop_assert_eq!(compact.get(name), first);
            }
        }
    }
}
