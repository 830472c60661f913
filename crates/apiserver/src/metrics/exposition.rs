//! Flags about what of `/metrics` is shown.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::served::MINOR;

/// What a label's value is shown as that is not allowed.
const UNEXPECTED: &str = "unexpected";

/// Flags about metrics.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Exposition {
    /// Also show metrics that are hidden since the minor version before this one, which it has to name (1.35).
    #[arg(long, value_parser = previous_version)]
    show_hidden_metrics_for_version: Option<String>,
    /// Metrics that are not shown, by their full names, comma separated.
    #[arg(long, value_delimiter = ',', value_parser = metric_name)]
    disabled_metrics: Vec<String>,
    /// Values that a metric's label may have, others being shown as "unexpected": METRIC,LABEL=VALUE,VALUE. May be repeated.
    #[arg(long, value_parser = allowed)]
    allow_metric_labels: Vec<Allowed>,
    /// File with the same as YAML, METRIC,LABEL: VALUE,VALUE.
    #[arg(long)]
    allow_metric_labels_manifest: Option<PathBuf>,
}

/// The values that a label of a metric may have.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Allowed {
    metric: String,
    label: String,
    values: HashSet<String>,
}

/// What is left out and changed.
#[derive(Debug, Default)]
pub struct Filter {
    /// Metrics are shown that are not to be used any more.
    hidden: bool,
    disabled: HashSet<String>,
    /// By metric and label.
    allowed: HashMap<String, HashMap<String, HashSet<String>>>,
}

// === impl Exposition ===

impl Exposition {
    /// Whether metrics are shown that are not to be used any more.
    #[must_use]
    pub fn shows_hidden(&self) -> bool {
        let version = self.show_hidden_metrics_for_version.as_deref();
        version.is_some_and(|version| !version.is_empty())
    }

    /// # Errors
    /// When the file cannot be read, or names no metric, or flag and file are both given.
    pub fn filter(&self) -> anyhow::Result<Filter> {
        let mut allowed = self.allow_metric_labels.clone();
        if let Some(path) = self.allow_metric_labels_manifest.as_deref() {
            if !allowed.is_empty() {
                bail!("cannot specify both allowListMapping and allowListMappingManifest");
            }
            allowed = manifest(path).context("metrics.allowListMappingManifest")?;
        }
        let mut filter = Filter {
            hidden: self.shows_hidden(),
            disabled: self.disabled_metrics.iter().cloned().collect(),
            allowed: HashMap::new(),
        };
        for one in allowed {
            let of_metric = filter.allowed.entry(one.metric).or_default();
            of_metric.insert(one.label, one.values);
        }
        Ok(filter)
    }
}

fn previous_version(text: &str) -> Result<String, String> {
    let previous = format!("1.{}", MINOR - 1);
    if text.is_empty() || text == previous {
        return Ok(text.to_owned());
    }
    Err(format!(
        "metrics.showHiddenMetricsForVersion: Invalid value: {text:?}: must be omitted or have the value '{previous}'; only the previous minor version is allowed"
    ))
}

fn manifest(path: &Path) -> anyhow::Result<Vec<Allowed>> {
    let text = std::fs::read_to_string(path).context("failed to read allow list manifest")?;
    let mapping: BTreeMap<String, String> =
        serde_saphyr::from_str(&text).context("failed to parse allow list manifest")?;
    let all = mapping.iter().map(|(key, values)| of(key, values));
    all.collect::<Result<_, _>>().map_err(anyhow::Error::msg)
}

fn allowed(text: &str) -> Result<Allowed, String> {
    let text = text.trim_matches('"');
    let (key, values) = text
        .split_once('=')
        .ok_or_else(|| format!("{text} must be formatted as key=value"))?;
    of(key, values)
}

fn is_name(name: &str, colons: bool) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    let begins = !name.starts_with(|c: char| c.is_ascii_digit());
    !name.is_empty() && begins && name.chars().all(is_part)
}

fn metric_name(text: &str) -> Result<String, String> {
    if is_name(text, true) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "must be fully qualified metric names matching \"^[a-zA-Z_:][a-zA-Z0-9_:]*$\", got {text:?}"
    ))
}

fn of(key: &str, values: &str) -> Result<Allowed, String> {
    match key.split_once(',') {
        Some((metric, label)) if is_name(metric, true) && is_name(label, false) => Ok(Allowed {
            metric: metric.to_owned(),
            label: label.to_owned(),
            values: values.split(',').map(str::to_owned).collect(),
        }),
        _ => Err(
            "must have keys with format `metricName,labelName` where metricName matches \"[a-zA-Z_:][a-zA-Z0-9_:]*\" and labelName matches \"[a-zA-Z_][a-zA-Z0-9_]*\""
                .to_owned(),
        ),
    }
}

// === impl Filter ===

impl Filter {
    #[must_use]
    pub fn shows_hidden(&self) -> bool {
        self.hidden
    }

    /// The metrics of a text that are shown, as they are shown. Series that become the same are added up.
    #[must_use]
    pub fn apply(&self, text: String) -> String {
        if self.disabled.is_empty() && self.allowed.is_empty() {
            return text;
        }
        let mut out = String::with_capacity(text.len());
        let mut metric = Metric::default();
        for line in text.lines() {
            if let Some(name) = line
                .strip_prefix("# HELP ")
                .and_then(|l| l.split(' ').next())
            {
                metric.finish(&mut out);
                metric = Metric {
                    disabled: self.disabled.contains(name),
                    allowed: self.allowed.get(name),
                    ..Metric::default()
                };
            }
            metric.line(line, &mut out);
        }
        metric.finish(&mut out);
        out
    }
}

/// A metric whose lines are read.
#[derive(Default)]
struct Metric<'f> {
    disabled: bool,
    allowed: Option<&'f HashMap<String, HashSet<String>>>,
    /// Series in the order in which they came.
    series: Vec<(String, f64)>,
    places: HashMap<String, usize>,
}

impl Metric<'_> {
    fn line(&mut self, line: &str, out: &mut String) {
        if self.disabled {
            return;
        }
        let allowed = self.allowed.filter(|_| !line.starts_with('#'));
        let (Some(allowed), Some((series, value))) = (allowed, line.rsplit_once(' ')) else {
            out.push_str(line);
            out.push('\n');
            return;
        };
        let series = constrained(series, allowed);
        let value = value.parse().unwrap_or_default();
        match self.places.get(&series) {
            Some(place) => self.series[*place].1 += value,
            None => {
                self.places.insert(series.clone(), self.series.len());
                self.series.push((series, value));
            }
        }
    }

    fn finish(&mut self, out: &mut String) {
        for (series, value) in self.series.drain(..) {
            out.push_str(&format!("{series} {value}\n"));
        }
    }
}

/// A series (`name{label="value",…}`) with values that are allowed.
fn constrained(series: &str, allowed: &HashMap<String, HashSet<String>>) -> String {
    let Some((name, labels)) = series.split_once('{') else {
        return series.to_owned();
    };
    let mut out = format!("{name}{{");
    let mut rest = labels;
    while let Some((label, after)) = rest.split_once("=\"") {
        let end = end_of_value(after);
        let (value, after) = after.split_at(end);
        let label_name = label.trim_start_matches(',');
        let is_allowed = allowed
            .get(label_name)
            .is_none_or(|values| values.contains(value));
        let shown = if is_allowed { value } else { UNEXPECTED };
        out.push_str(&format!("{label}=\"{shown}\""));
        rest = after.get(1..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// Where the quote is that ends a value.
fn end_of_value(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = concat!(
        "# HELP a Some.\n# TYPE a counter\n",
        "a{code=\"200\",verb=\"GET\"} 1\na{code=\"200\",verb=\"LIST\"} 2\na{code=\"200\",verb=\"x\\\"y\"} 4\n",
        "# HELP b Other.\n# TYPE b gauge\nb 7\n",
    );

    fn filter(disabled: &[&str], allowed: &[&str]) -> Filter {
        let exposition = Exposition {
            disabled_metrics: disabled.iter().map(|d| (*d).to_owned()).collect(),
            allow_metric_labels: allowed.iter().map(|a| super::allowed(a).unwrap()).collect(),
            allow_metric_labels_manifest: None,
            show_hidden_metrics_for_version: None,
        };
        exposition.filter().unwrap()
    }

    #[test]
    fn nothing_is_left_out_unless_it_is_wanted() {
        assert_eq!(Filter::default().apply(TEXT.to_owned()), TEXT);
    }

    #[test]
    fn disabled_metrics_are_not_shown() {
        let shown = filter(&["a"], &[]).apply(TEXT.to_owned());
        assert_eq!(shown, "# HELP b Other.\n# TYPE b gauge\nb 7\n");
    }

    #[test]
    fn series_with_values_that_are_not_allowed_are_one() {
        let shown = filter(&[], &["a,verb=GET,PUT"]).apply(TEXT.to_owned());
        let series: Vec<&str> = shown.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            series,
            [
                "a{code=\"200\",verb=\"GET\"} 1",
                "a{code=\"200\",verb=\"unexpected\"} 6",
                "b 7"
            ]
        );
    }

    #[test]
    fn a_file_says_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("labels.yaml");
        std::fs::write(&path, "a,verb: GET\n").unwrap();
        let mut exposition = Exposition {
            allow_metric_labels_manifest: Some(path),
            ..Exposition::default()
        };
        let shown = exposition.filter().unwrap().apply(TEXT.to_owned());
        assert!(shown.contains("unexpected"), "{shown}");
        exposition.allow_metric_labels = vec![allowed("b,x=y").unwrap()];
        assert_eq!(
            exposition.filter().unwrap_err().to_string(),
            "cannot specify both allowListMapping and allowListMappingManifest"
        );
    }

    #[test]
    fn keys_are_a_metric_and_a_label() {
        assert_eq!(
            allowed("a").unwrap_err(),
            "a must be formatted as key=value"
        );
        for bad in ["a=b", "1a,b=c", "a,b:c=d", "a,=b"] {
            assert!(allowed(bad).is_err(), "{bad}");
        }
        assert!(metric_name("a:b_1").is_ok());
        assert!(metric_name("a-b").is_err());
    }
}
