//! How two objects differ, as upstream says it of fields that may not change.

use std::fmt::Write as _;

use serde_json::Value;

use super::render::internal;

const CONTEXT: usize = 3;

/// The unified difference of two objects of a type in their internal form, one field a line.
#[must_use]
pub fn internal_diff(type_name: &str, old: &Value, new: &Value) -> String {
    let lines = |value| indent(&internal(type_name, value));
    let (old, new) = (lines(old), lines(new));
    unified(&old, &new)
}

/// JSON as lines, one space deeper for each level.
fn indent(json: &str) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut letters = json.chars().peekable();
    let next_line = |line: &mut String, lines: &mut Vec<String>, depth: usize| {
        lines.push(std::mem::take(line));
        line.push_str(&" ".repeat(depth));
    };
    while let Some(c) = letters.next() {
        if in_string {
            line.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '"' => {
                in_string = true;
                line.push(c);
            }
            '{' | '[' => {
                line.push(c);
                match letters.next_if(|c| matches!(c, '}' | ']')) {
                    Some(close) => line.push(close),
                    None => {
                        depth += 1;
                        next_line(&mut line, &mut lines, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                next_line(&mut line, &mut lines, depth);
                line.push(c);
            }
            ',' => {
                line.push(c);
                next_line(&mut line, &mut lines, depth);
            }
            ':' => line.push_str(": "),
            c => line.push(c),
        }
    }
    lines.push(line);
    lines
}

/// One line of an edit script.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edit {
    Keep(usize, usize),
    Remove(usize),
    Add(usize),
}

impl Edit {
    /// The same so many lines further down.
    fn later(self, lines: usize) -> Self {
        match self {
            Self::Keep(i, j) => Self::Keep(i + lines, j + lines),
            Self::Remove(i) => Self::Remove(i + lines),
            Self::Add(j) => Self::Add(j + lines),
        }
    }
}

/// How many pairs of lines are compared to find the shortest script; beyond that what differs is replaced as a whole. An
/// object may have a hundred thousand lines.
const MOST_PAIRS: usize = 1 << 22;

/// From so many pairs on the end that both have in common is set aside first.
const MANY_PAIRS: usize = 1 << 18;

/// An edit script: the shortest one, unless that takes too long to find.
fn edits(old: &[String], new: &[String]) -> Vec<Edit> {
    let same = |(a, b): &(&String, &String)| a == b;
    let start = old.iter().zip(new).take_while(same).count();
    let (before, now) = (&old[start..], &new[start..]);
    let end = if before.len().saturating_mul(now.len()) < MANY_PAIRS {
        0
    } else {
        let backwards = before.iter().rev().zip(now.iter().rev());
        backwards.take_while(same).count()
    };
    let (before, now) = (&before[..before.len() - end], &now[..now.len() - end]);
    let middle = if before.len().saturating_mul(now.len()) > MOST_PAIRS {
        let removed = (0..before.len()).map(Edit::Remove);
        removed.chain((0..now.len()).map(Edit::Add)).collect()
    } else {
        shortest(before, now)
    };
    let after = |length: usize, i: usize| length - end + i;
    (0..start)
        .map(|i| Edit::Keep(i, i))
        .chain(middle.into_iter().map(|edit| edit.later(start)))
        .chain((0..end).map(|i| Edit::Keep(after(old.len(), i), after(new.len(), i))))
        .collect()
}

/// The shortest edit script, by the longest common subsequence.
fn shortest(old: &[String], new: &[String]) -> Vec<Edit> {
    let width = new.len() + 1;
    let mut longest = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            longest[i * width + j] = if old[i] == new[j] {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut script) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            script.push(Edit::Keep(i, j));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len()
            || (i < old.len() && longest[(i + 1) * width + j] >= longest[i * width + j + 1])
        {
            script.push(Edit::Remove(i));
            i += 1;
        } else {
            script.push(Edit::Add(j));
            j += 1;
        }
    }
    script
}

fn unified(old: &[String], new: &[String]) -> String {
    let script = edits(old, new);
    let changes: Vec<usize> = (0..script.len())
        .filter(|i| !matches!(script[*i], Edit::Keep(..)))
        .collect();
    let mut text = String::new();
    let mut rest = changes.as_slice();
    while let Some(&first) = rest.first() {
        // Changes with little between them share a hunk.
        let together = rest
            .windows(2)
            .take_while(|w| w[1] - w[0] <= 2 * CONTEXT + 1)
            .count();
        let last = rest[together];
        rest = &rest[together + 1..];
        let hunk = &script[first.saturating_sub(CONTEXT)..(last + CONTEXT + 1).min(script.len())];
        write_hunk(hunk, old, new, &mut text);
    }
    text
}

fn write_hunk(hunk: &[Edit], old: &[String], new: &[String], text: &mut String) {
    let of_old = hunk.iter().filter_map(|e| match e {
        Edit::Keep(i, _) | Edit::Remove(i) => Some(*i),
        Edit::Add(_) => None,
    });
    let of_new = hunk.iter().filter_map(|e| match e {
        Edit::Keep(_, j) | Edit::Add(j) => Some(*j),
        Edit::Remove(_) => None,
    });
    let range = |lines: Vec<usize>| match lines.as_slice() {
        [] => "0,0".to_owned(),
        [one] => format!("{}", one + 1),
        [first, ..] => format!("{},{}", first + 1, lines.len()),
    };
    let _ = writeln!(
        text,
        "@@ -{} +{} @@",
        range(of_old.collect()),
        range(of_new.collect())
    );
    for edit in hunk {
        let _ = match edit {
            Edit::Keep(i, _) => writeln!(text, " {}", old[*i]),
            Edit::Remove(i) => writeln!(text, "-{}", old[*i]),
            Edit::Add(j) => writeln!(text, "+{}", new[*j]),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_shown_with_its_surroundings() {
        let old = indent(r#"{"A":1,"B":[],"C":{"D":"x, y"},"E":2,"F":3}"#);
        let new = indent(r#"{"A":1,"B":[],"C":{"D":"z"},"E":2,"F":3}"#);
        assert_eq!(
            unified(&old, &new),
            "@@ -2,7 +2,7 @@\n  \"A\": 1,\n  \"B\": [],\n  \"C\": {\n-  \"D\": \"x, y\"\n+  \"D\": \"z\"\n  },\n  \"E\": 2,\n  \"F\": 3\n"
        );
        assert_eq!(unified(&old, &old), "");
    }

    /// Both sides, as a script has them.
    fn sides(script: &[Edit]) -> (Vec<usize>, Vec<usize>) {
        let old = script.iter().filter_map(|edit| match edit {
            Edit::Keep(i, _) | Edit::Remove(i) => Some(*i),
            Edit::Add(_) => None,
        });
        let new = script.iter().filter_map(|edit| match edit {
            Edit::Keep(_, j) | Edit::Add(j) => Some(*j),
            Edit::Remove(_) => None,
        });
        (old.collect(), new.collect())
    }

    #[test]
    fn objects_of_any_size_are_compared() {
        let lines = |numbers: std::ops::Range<usize>, step| -> Vec<String> {
            numbers.step_by(step).map(|n| n.to_string()).collect()
        };
        let large = lines(0..100_000, 1);
        let mut changed = large.clone();
        changed[70_000] = "x".into();
        let script = edits(&large, &changed);
        let differ = |edit: &&Edit| !matches!(edit, Edit::Keep(..));
        assert_eq!(script.iter().filter(differ).count(), 2);
        for (old, new) in [
            (large.clone(), changed),
            (large, lines(0..100_000, 2)),
            (lines(0..600, 1), lines(0..600, 3)),
        ] {
            let script = edits(&old, &new);
            let (i, j) = sides(&script);
            assert!(i.into_iter().eq(0..old.len()) && j.into_iter().eq(0..new.len()));
            let kept = |edit: &Edit| !matches!(edit, Edit::Keep(i, j) if old[*i] != new[*j]);
            assert!(script.iter().all(kept));
        }
    }
}
