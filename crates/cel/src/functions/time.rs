//! Timestamps and durations.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Zoned};

use super::Outcome;
use crate::eval::EvalError;
use crate::value::Value;

pub(super) fn call(name: &str, member: bool, args: &[Value]) -> Outcome {
    if !member {
        return None;
    }
    Some(match args {
        [Value::Duration(d)] => Ok(Value::Int(match name {
            "getHours" => d.as_secs() / 3600,
            "getMinutes" => d.as_secs() / 60,
            "getSeconds" => d.as_secs(),
            "getMilliseconds" => i64::try_from(d.as_millis()).unwrap_or(i64::MAX),
            _ => return None,
        })),
        [Value::Timestamp(t), rest @ ..] => {
            let zone = match rest.first() {
                Some(Value::String(name)) => match zone(name) {
                    Some(zone) => zone,
                    None => {
                        return Some(Err(EvalError::other(format!("unknown time zone {name}"))));
                    }
                },
                _ => TimeZone::UTC,
            };
            part(name, &t.to_zoned(zone))?
        }
        _ => return None,
    })
}

fn part(name: &str, time: &Zoned) -> Outcome {
    Some(Ok(Value::Int(match name {
        "getFullYear" => time.year().into(),
        "getMonth" => i64::from(time.month()) - 1,
        "getDayOfYear" => i64::from(time.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(time.day()) - 1,
        "getDate" => time.day().into(),
        "getDayOfWeek" => time.weekday().to_sunday_zero_offset().into(),
        "getHours" => time.hour().into(),
        "getMinutes" => time.minute().into(),
        "getSeconds" => time.second().into(),
        "getMilliseconds" => time.millisecond().into(),
        _ => return None,
    })))
}

/// A name of the time zone database, or an offset such as `-08:00`.
fn zone(name: &str) -> Option<TimeZone> {
    if let Some((hours, minutes)) = name.split_once(':') {
        let hours: i32 = hours.parse().ok()?;
        let minutes: i32 = minutes.parse().ok()?;
        let sign = if name.starts_with('-') { -1 } else { 1 };
        let offset = jiff::tz::Offset::from_seconds(hours * 3600 + sign * minutes * 60).ok()?;
        return Some(TimeZone::fixed(offset));
    }
    TimeZone::get(name).ok()
}

pub(super) fn arithmetic(name: &str, a: &Value, b: &Value) -> Outcome {
    let overflow = || EvalError::other("timestamp overflow");
    let shift = |t: jiff::Timestamp, d: SignedDuration| {
        t.checked_add(d)
            .map(Value::Timestamp)
            .map_err(|_| overflow())
    };
    Some(match (name, a, b) {
        ("_+_", Value::Timestamp(t), Value::Duration(d))
        | ("_+_", Value::Duration(d), Value::Timestamp(t)) => shift(*t, *d),
        ("_-_", Value::Timestamp(t), Value::Duration(d)) => shift(*t, -*d),
        ("_-_", Value::Timestamp(a), Value::Timestamp(b)) => {
            Ok(Value::Duration(a.duration_since(*b)))
        }
        ("_+_", Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(overflow)
        }
        ("_-_", Value::Duration(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(overflow)
        }
        _ => return None,
    })
}
