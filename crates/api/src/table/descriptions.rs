//! What columns are described as. Most show a field, and are described as it is.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::schema;

const TEXT: &str = include_str!("descriptions.txt");

/// Descriptions by column, of one kind or of all.
type Described = HashMap<&'static str, &'static str>;

/// Stands for kinds that have nothing else to say of a column.
const ANY: &str = "*";

/// The description of a column; empty when there is none.
pub(super) fn of(group: &str, kind: &str, column: &str) -> String {
    static INDEX: OnceLock<HashMap<&'static str, Described>> = OnceLock::new();
    let index = INDEX.get_or_init(read);
    let name = match group {
        "" => kind.to_owned(),
        group => format!("{group}/{kind}"),
    };
    let of = |kind: &str| index.get(kind)?.get(column).copied();
    let text = of(&name).or_else(|| of(ANY)).unwrap_or_default();
    match text
        .strip_prefix("= ")
        .and_then(|field| field.split_once(' '))
    {
        Some((ty, field)) => schema::description(ty, field).unwrap_or_default(),
        None => text.replace("\\n", "\n"),
    }
}

fn read() -> HashMap<&'static str, Described> {
    let mut index: HashMap<_, Described> = HashMap::new();
    let mut kind = "";
    for line in TEXT.lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("  ") {
            Some(row) => {
                let (column, text) = row.split_once('\t').unwrap_or((row, ""));
                index.entry(kind).or_default().insert(column, text);
            }
            None => kind = line,
        }
    }
    index
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::resources;
    use crate::table::columns;

    /// Descriptions that no column has are not wanted, and fields that there are not have none.
    #[test]
    fn every_line_describes_a_column() {
        let mut shown: HashMap<String, HashSet<&str>> = HashMap::new();
        for resource in resources::builtin() {
            let name = match resource.group {
                "" => resource.kind.to_owned(),
                group => format!("{group}/{}", resource.kind),
            };
            let names = columns(resource.group, resource.kind)
                .iter()
                .map(|c| c.name);
            shown.entry(ANY.into()).or_default().extend(names.clone());
            shown.entry(name).or_default().extend(names);
        }
        for (kind, described) in read() {
            for (column, text) in described {
                assert!(shown[kind].contains(column), "{kind} {column}");
                if let Some(field) = text.strip_prefix("= ") {
                    let (ty, name) = field.split_once(' ').unwrap();
                    assert!(schema::description(ty, name).is_some(), "{field}");
                }
            }
        }
    }

    #[test]
    fn columns_are_described_as_their_kind_does_or_as_all_do() {
        assert!(of("", "Pod", "Name").starts_with("Name must be unique"));
        assert!(of("", "Pod", "Node").starts_with("NodeName indicates in which node"));
        assert_eq!(of("", "Namespace", "Status"), "The status of the namespace");
        assert_eq!(of("node.k8s.io", "RuntimeClass", "Handler"), "");
    }
}
