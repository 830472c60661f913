//! How much single files log: `--vmodule=PATTERN=N,…`, as klog has it.

use std::str::FromStr;

use regex::Regex;
use tracing::{Level, Metadata};

use super::level;

/// Files by a pattern, and how much they log at least.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Of the file's name without its ending, or of its whole path if there is a slash in it.
    pattern: Regex,
    of_path: bool,
    level: Level,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('=').collect();
        let (pattern, verbosity) = match parts[..] {
            [pattern, verbosity] if !pattern.is_empty() && !verbosity.is_empty() => {
                (pattern, verbosity)
            }
            _ => return Err(format!("{text:?} does not have the pattern=N format")),
        };
        let verbosity = verbosity.parse::<u32>().map_err(|_| {
            format!(
                "parsing verbosity in {text:?}: strconv.ParseUint: parsing {verbosity:?}: invalid syntax"
            )
        })?;
        let mut expression = String::from("^");
        let mut in_class = false;
        for c in pattern.chars() {
            match c {
                '*' if !in_class => expression.push_str("[^/]*"),
                '?' if !in_class => expression.push_str("[^/]"),
                '[' | ']' => {
                    in_class = c == '[';
                    expression.push(c);
                }
                '^' | '-' if in_class => expression.push(c),
                c => expression.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
            }
        }
        expression.push('$');
        Ok(Self {
            pattern: Regex::new(&expression)
                .map_err(|_| format!("syntax error in pattern: {text}"))?,
            of_path: pattern.contains('/'),
            level: level(verbosity),
        })
    }
}

impl Rule {
    /// Whether something is logged because of this rule.
    pub(super) fn enables(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && self.is_of(metadata)
    }

    fn is_of(&self, metadata: &Metadata<'_>) -> bool {
        if self.of_path {
            let path = metadata.file().unwrap_or_default();
            return self.pattern.is_match(path.trim_end_matches(".rs"));
        }
        // A module is named as its file is, or as its folder where the file is `mod.rs`.
        let module = metadata.module_path().unwrap_or_default();
        let name = module.rsplit("::").next().unwrap_or_default();
        self.pattern.is_match(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_of_names_or_of_paths() {
        let rule = |text: &str| text.parse::<Rule>().unwrap();
        let is_match = |text: &str, name: &str| rule(text).pattern.is_match(name);
        assert!(is_match("cache*=4", "cache") && is_match("cache*=4", "caches"));
        assert!(!is_match("cache=4", "caches") && !is_match("ca.he=4", "cache"));
        assert!(is_match("ca?h[a-f]=4", "cache"));
        assert!(rule("*/src/cache=4").of_path && !rule("cache=4").of_path);
        assert_eq!(rule("cache=4").level, Level::DEBUG);
        for (bad, why) in [
            ("cache", "\"cache\" does not have the pattern=N format"),
            ("=1", "\"=1\" does not have the pattern=N format"),
            (
                "cache=x",
                "parsing verbosity in \"cache=x\": strconv.ParseUint: parsing \"x\": invalid syntax",
            ),
        ] {
            assert_eq!(bad.parse::<Rule>().unwrap_err(), why);
        }
    }
}
