//! `-o`: results as az prints them.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use serde_json::Value;

use crate::Result;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Json,
    Jsonc,
    Table,
    Tsv,
    Yaml,
    None,
}

#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Output {
    /// Output format
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        default_value_t,
        global = true
    )]
    pub format: Format,
}

/// A column of a table: its title, and where its value is.
pub type Column = (&'static str, &'static str);

// === impl Output ===

impl Output {
    /// Prints an object, or an array of them.
    pub fn print(self, value: &Value, columns: &[Column]) -> Result {
        match self.format {
            Format::None => {}
            Format::Json => println!("{}", serde_json::to_string_pretty(&sorted(value))?),
            Format::Jsonc => println!(
                "{}",
                colored(
                    &serde_json::to_string_pretty(&sorted(value))?,
                    std::io::stdout().is_terminal()
                )
            ),
            Format::Yaml => print!("{}", serde_saphyr::to_string(&sorted(value))?),
            Format::Table => println!("{}", table(value, columns)),
            Format::Tsv => {
                for row in rows(value) {
                    println!("{}", tsv(row));
                }
            }
        }
        Ok(())
    }
}

fn rows(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(rows) => rows.iter().collect(),
        Value::Null => Vec::new(),
        one => vec![one],
    }
}

/// Fields in the order of their names, as az has them.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: std::collections::BTreeMap<_, _> =
                map.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            Value::Object(ordered.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        // As az does, which is written in Python.
        Value::Bool(flag) => if *flag { "True" } else { "False" }.to_owned(),
        other => other.to_string(),
    }
}

fn table(value: &Value, columns: &[Column]) -> String {
    let rows = rows(value);
    if rows.is_empty() {
        return String::new();
    }
    // A column of which no row has anything is left out.
    let columns: Vec<&Column> = columns
        .iter()
        .filter(|(_, path)| {
            rows.iter()
                .any(|row| !row.pointer(path).is_none_or(Value::is_null))
        })
        .collect();
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            columns
                .iter()
                .map(|(_, path)| row.pointer(path).map(cell).unwrap_or_default())
                .collect()
        })
        .collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|i| {
            cells
                .iter()
                .map(|r| r[i].chars().count())
                .max()
                .unwrap_or(0)
                .max(columns[i].0.len())
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut lines = vec![
        line(columns.iter().map(|(title, _)| *title).collect()),
        line(rules.iter().map(String::as_str).collect()),
    ];
    lines.extend(
        cells
            .iter()
            .map(|row| line(row.iter().map(String::as_str).collect())),
    );
    lines.join("\n")
}

fn tsv(row: &Value) -> String {
    match row {
        Value::Object(map) => {
            let ordered: std::collections::BTreeMap<_, _> = map.iter().collect();
            ordered
                .values()
                .map(|v| {
                    if v.is_object() || v.is_array() {
                        String::new()
                    } else {
                        cell(v)
                    }
                })
                .collect::<Vec<_>>()
                .join("\t")
        }
        other => cell(other),
    }
}

/// Keys in one colour, text values in another.
fn colored(text: &str, is_terminal: bool) -> String {
    if !is_terminal {
        return text.to_owned();
    }
    let color = |line: &str| match line.split_once("\": ") {
        Some((key, value)) => format!("\x1b[94m{key}\"\x1b[0m: \x1b[33m{value}\x1b[0m"),
        None => line.to_owned(),
    };
    text.lines().map(color).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_look_as_those_of_az() {
        let value = json!([{"name": "demo", "count": 2, "on": true}, {"name": "a-longer-name", "count": 10, "on": false}]);
        let text = table(
            &value,
            &[
                ("Name", "/name"),
                ("Count", "/count"),
                ("On", "/on"),
                ("Nothing", "/nothing"),
            ],
        );
        let expected = "Name           Count  On\n-------------  -----  -----\ndemo           2      True\na-longer-name  10     False";
        assert_eq!(text, expected);
        assert_eq!(table(&json!([]), &[("Name", "/name")]), "");
    }

    #[test]
    fn tsv_has_the_values_in_the_order_of_their_names() {
        assert_eq!(
            tsv(&json!({"b": 1, "a": "x", "c": {"d": 1}, "e": null})),
            "x\t1\t\t"
        );
    }
}
