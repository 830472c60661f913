//! Upstream's flags of every component: how much it logs and how, and its version.

use std::ffi::OsString;
use std::time::Duration;

use fluyt_service::logs::{Format, Rule};

/// The flags of a component, and those of all.
#[derive(clap::Args, Debug)]
pub struct Logged<T: clap::Args> {
    #[command(flatten)]
    pub args: T,
    #[command(flatten)]
    pub logging: Logging,
}

#[derive(clap::Args, Debug)]
pub struct Logging {
    /// Log level: 0 to 3 tell what happens, 4 and 5 more, higher ones everything.
    #[arg(long, short, default_value_t = 0)]
    pub v: u32,
    /// Log levels of single files: PATTERN=N, comma separated; only in the text format.
    #[arg(long, value_delimiter = ',', value_parser = rule)]
    vmodule: Vec<Option<Rule>>,
    /// Log format: text, or json for an object a line.
    #[arg(long, default_value = "text", value_parser = format)]
    pub logging_format: Format,
    /// How long what is logged may be held back at most. It never is.
    #[arg(long, default_value = "5s", value_parser = frequency)]
    log_flush_frequency: Duration,
    /// Of the feature LoggingAlphaOptions, which cannot be turned on: only false.
    #[arg(long, value_parser = text_stream, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    log_text_split_stream: Option<bool>,
    /// Of the same feature: only 0.
    #[arg(long, value_parser = text_buffer)]
    log_text_info_buffer_size: Option<String>,
    /// Of the same feature: only false.
    #[arg(long, value_parser = json_stream, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    log_json_split_stream: Option<bool>,
    /// Of the same feature: only 0.
    #[arg(long, value_parser = json_buffer)]
    log_json_info_buffer_size: Option<String>,
    /// Print the version and quit; --version=raw with all that is known of it.
    #[arg(long, value_parser = version, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    version: Option<Version>,
}

/// What is to be told of the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Nothing,
    Number,
    Raw,
}

fn rule(text: &str) -> Result<Option<Rule>, String> {
    // What is empty, as after a last comma, is ignored.
    match text {
        "" => Ok(None),
        text => text.parse().map(Some),
    }
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        other => Err(format!(
            "format: Invalid value: {other:?}: Unsupported log format"
        )),
    }
}

fn frequency(text: &str) -> Result<Duration, String> {
    let frequency = fluyt_apiserver::duration(text)?;
    if frequency.is_zero() {
        return Err(format!(
            "flushFrequency: Invalid value: {text:?}: Must be greater than zero"
        ));
    }
    Ok(frequency)
}

fn text_stream(text: &str) -> Result<bool, String> {
    off(text, "options.text.splitStream")
}

fn json_stream(text: &str) -> Result<bool, String> {
    off(text, "options.json.splitStream")
}

fn text_buffer(text: &str) -> Result<String, String> {
    empty(text, "options.text.infoBufferSize")
}

fn json_buffer(text: &str) -> Result<String, String> {
    empty(text, "options.json.infoBufferSize")
}

fn off(text: &str, field: &str) -> Result<bool, String> {
    match fluyt_apiserver::boolean(text)? {
        false => Ok(false),
        true => Err(disabled(field)),
    }
}

/// Takes only a quantity that is none.
fn empty(text: &str, field: &str) -> Result<String, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    match number.parse::<f64>() {
        Ok(0.0) => Ok(text.to_owned()),
        Ok(_) => Err(disabled(field)),
        Err(_) => Err("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".to_owned()),
    }
}

fn disabled(field: &str) -> String {
    format!("{field}: Forbidden: Feature LoggingAlphaOptions is disabled")
}

fn version(text: &str) -> Result<Version, String> {
    match text {
        "raw" => Ok(Version::Raw),
        fluyt_apiserver::VERSION => Ok(Version::Nothing),
        other if other.starts_with('v') => Err(format!(
            "version {other:?} cannot be reported: it is {:?}",
            fluyt_apiserver::VERSION
        )),
        text => Ok(match fluyt_apiserver::boolean(text)? {
            true => Version::Number,
            false => Version::Nothing,
        }),
    }
}

impl Logging {
    /// The levels of single files.
    ///
    /// # Errors
    /// When the format has no such levels.
    pub fn rules(&self) -> anyhow::Result<Vec<Rule>> {
        let rules: Vec<Rule> = self.vmodule.iter().flatten().cloned().collect();
        anyhow::ensure!(
            rules.is_empty() || self.logging_format == Format::Text,
            "vmodule: Forbidden: Only supported for text log format"
        );
        Ok(rules)
    }
}

/// What is printed instead of running a component, if its arguments ask for its version: whatever else they lack.
pub fn asked_version(arguments: &[OsString]) -> Option<String> {
    let texts = arguments.iter().filter_map(|argument| argument.to_str());
    let mut asked = texts.filter_map(|text| match text.strip_prefix("--version")? {
        "" => Some(Version::Number),
        value => version(value.strip_prefix('=')?).ok(),
    });
    let release = fluyt_apiserver::VERSION;
    match asked.next_back()? {
        Version::Nothing => None,
        Version::Number => Some(format!("Kubernetes {release}")),
        Version::Raw => {
            let mut numbers = release.trim_start_matches('v').split('.');
            let mut number = || numbers.next().unwrap_or_default();
            let (major, minor) = (number(), number());
            Some(format!(
                "version.Info{{Major:{major:?}, Minor:{minor:?}, EmulationMajor:\"\", EmulationMinor:\"\", MinCompatibilityMajor:\"\", MinCompatibilityMinor:\"\", GitVersion:{release:?}, GitCommit:\"\", GitTreeState:\"clean\", BuildDate:\"\", GoVersion:\"\", Compiler:\"rustc\", Platform:\"linux/amd64\"}}"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser, Debug)]
    struct Line {
        #[command(flatten)]
        logging: Logging,
    }

    fn parse(flags: &[&str]) -> Result<Logging, String> {
        let line = std::iter::once("kubelet").chain(flags.iter().copied());
        match Line::try_parse_from(line) {
            Ok(line) => Ok(line.logging),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn upstreams_logging_flags_are_taken() {
        let logging = parse(&[
            "-v=4",
            "--vmodule=cache*=5,x=1,",
            "--log-flush-frequency=1s",
            "--log-text-split-stream=false",
            "--log-json-info-buffer-size=0Ki",
            "--version=v1.36.0",
        ])
        .unwrap();
        assert_eq!(logging.v, 4);
        assert_eq!(logging.rules().unwrap().len(), 2);
        let json = parse(&["--vmodule=a=1", "--logging-format=json"]).unwrap();
        assert_eq!(
            json.rules().unwrap_err().to_string(),
            "vmodule: Forbidden: Only supported for text log format"
        );
        for (flag, why) in [
            ("--log-flush-frequency=0s", "Must be greater than zero"),
            (
                "--log-text-split-stream",
                "options.text.splitStream: Forbidden: Feature LoggingAlphaOptions is disabled",
            ),
            (
                "--log-json-info-buffer-size=1Mi",
                "options.json.infoBufferSize: Forbidden: Feature LoggingAlphaOptions is disabled",
            ),
            ("--logging-format=xml", "Unsupported log format"),
            ("--version=v1.35.0", "cannot be reported"),
            ("--version=x", "invalid syntax"),
        ] {
            let error = parse(&[flag]).unwrap_err();
            assert!(error.contains(why), "{flag}: {error}");
        }
    }

    #[test]
    fn the_version_is_told_whatever_is_missing() {
        let asked = |flags: &[&str]| {
            let arguments: Vec<OsString> = flags.iter().map(OsString::from).collect();
            asked_version(&arguments)
        };
        assert_eq!(asked(&["--v=1"]), None);
        assert_eq!(asked(&["--version=false"]), None);
        assert_eq!(asked(&["--version"]).as_deref(), Some("Kubernetes v1.36.0"));
        let raw = asked(&["--version=raw"]).unwrap();
        assert!(raw.contains("GitVersion:\"v1.36.0\""), "{raw}");
    }
}
