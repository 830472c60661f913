//! A log as lines of JSON, with the keys of upstream's.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes an event as an object: `ts` (milliseconds), `caller`, `msg`, `v` or `err`, and what else it says.
pub struct Lines;

/// What an event says.
#[derive(Default)]
struct Said {
    message: String,
    others: Map<String, Value>,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let milliseconds = now.map_or(0.0, |now| now.as_secs_f64() * 1000.0);
        writeln!(writer, "{}", line(event, said, milliseconds))
    }
}

fn line(event: &Event<'_>, mut said: Said, milliseconds: f64) -> Value {
    let metadata = event.metadata();
    let mut object = Map::new();
    object.insert("ts".into(), milliseconds.into());
    if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
        // The folder and the file.
        let short = file.rsplitn(3, '/').take(2).collect::<Vec<_>>();
        let short: Vec<&str> = short.into_iter().rev().collect();
        object.insert(
            "caller".into(),
            format!("{}:{line}", short.join("/")).into(),
        );
    }
    object.insert("msg".into(), said.message.into());
    match *metadata.level() {
        Level::ERROR => {
            let error = said.others.remove("error");
            object.extend(error.map(|error| ("err".to_owned(), error)));
        }
        Level::WARN | Level::INFO => {
            object.insert("v".into(), 0.into());
        }
        // Nothing finer is compiled in.
        Level::DEBUG | Level::TRACE => {
            object.insert("v".into(), 4.into());
        }
    }
    object.append(&mut said.others);
    Value::Object(object)
}

impl Said {
    fn say(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
        } else {
            self.others.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.say(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.say(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.say(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.say(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.say(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.say(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_a_line() {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Lines)
            .with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(port = 6443, pod = "n/a", "it \"serves\"");
            tracing::error!(error = "gone", "it stopped");
        });
        let text = String::from_utf8(kept.0.lock().clone()).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let [serves, stopped] = lines.as_slice() else {
            panic!("{text}");
        };
        assert_eq!(serves["msg"], "it \"serves\"");
        assert_eq!(serves["v"], 0);
        assert_eq!(
            (&serves["port"], &serves["pod"]),
            (&6443.into(), &"n/a".into())
        );
        assert!(serves["ts"].as_f64().unwrap() > 1.6e12);
        assert!(
            serves["caller"]
                .as_str()
                .unwrap()
                .starts_with("logs/json.rs:")
        );
        assert_eq!(stopped["err"], "gone");
        assert!(stopped["v"].is_null());
    }
}
