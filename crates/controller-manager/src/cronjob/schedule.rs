//! Cron schedules: five fields, names, ranges, steps, and `@daily` and the like.

use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule that has no time within this is never due (such as February 30th).
const HORIZON_YEARS: i16 = 5;

/// When something is to happen. Each field is a set of values, as bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days_of_month: u64,
    months: u64,
    days_of_week: u64,
    /// If both days are restricted, either is enough.
    any_day_of_month: bool,
    any_day_of_week: bool,
    /// `@every`: a fixed distance instead of all this.
    every: Option<SignedDuration>,
}

impl Schedule {
    /// Parse a schedule; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => match text.strip_prefix("@every ") {
                Some(duration) => return Self::every(duration),
                None => text,
            },
        };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [minutes, hours, days_of_month, months, days_of_week] = fields[..] else {
            return Err(format!(
                "expected exactly 5 fields, found {}: {text:?}",
                fields.len()
            ));
        };
        let week = field(days_of_week, 0, 7, &DAYS)?;
        let starred = |text: &str| text.split(',').any(|part| part.starts_with(['*', '?']));
        Ok(Self {
            minutes: field(minutes, 0, 59, &[])?,
            hours: field(hours, 0, 23, &[])?,
            days_of_month: field(days_of_month, 1, 31, &[])?,
            months: field(months, 1, 12, &MONTHS)?,
            // 7 is Sunday as well.
            days_of_week: (week | (week >> 7)) & 0x7f,
            any_day_of_month: starred(days_of_month),
            any_day_of_week: starred(days_of_week),
            every: None,
        })
    }

    fn every(duration: &str) -> Result<Self, String> {
        let duration = crate::args::parse_duration(duration)?;
        let seconds =
            i64::try_from(duration.as_secs().max(1)).map_err(|error| error.to_string())?;
        Ok(Self {
            every: Some(SignedDuration::from_secs(seconds)),
            ..Self::parse("@hourly")?
        })
    }

    /// The first time after `after`, in the time zone. Times that a clock change skips don't happen.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Some(distance) = self.every {
            return after.checked_add(distance).ok();
        }
        // The next full minute.
        let second = after.as_second().div_euclid(60) * 60 + 60;
        let mut time = Timestamp::from_second(second).ok()?.to_zoned(zone.clone());
        let horizon = time.year().checked_add(HORIZON_YEARS)?;
        loop {
            if time.year() > horizon {
                return None;
            }
            time = if !has(self.months, time.month()) {
                let month = time
                    .date()
                    .first_of_month()
                    .checked_add(jiff::Span::new().months(1))
                    .ok()?;
                month.to_zoned(zone.clone()).ok()?
            } else if !self.is_day(&time) {
                time.date().tomorrow().ok()?.to_zoned(zone.clone()).ok()?
            } else if !has(self.hours, time.hour()) {
                // By the clock on the wall some hours don't come, some come twice; by elapsed time all come once.
                let into_hour = i64::from(time.minute()) * 60;
                later(&time, 3600 - into_hour)?
            } else if !has(self.minutes, time.minute()) {
                later(&time, 60)?
            } else {
                return Some(time.timestamp());
            };
        }
    }

    fn is_day(&self, time: &Zoned) -> bool {
        let by_month = has(self.days_of_month, time.day());
        let by_week = has(self.days_of_week, time.weekday().to_sunday_zero_offset());
        if self.any_day_of_month || self.any_day_of_week {
            by_month && by_week
        } else {
            by_month || by_week
        }
    }
}

fn has(set: u64, value: i8) -> bool {
    set >> value & 1 == 1
}

fn later(time: &Zoned, seconds: i64) -> Option<Zoned> {
    let moved = time
        .timestamp()
        .checked_add(SignedDuration::from_secs(seconds))
        .ok()?;
    Some(moved.to_zoned(time.time_zone().clone()))
}

/// One field: a list of `*`, `n`, `n-m`, each perhaps with `/step`.
fn field(text: &str, min: u32, max: u32, names: &[&str]) -> Result<u64, String> {
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step, &[], 0)?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (min, max),
            Some((first, last)) => (number(first, names, min)?, number(last, names, min)?),
            None => {
                let first = number(range, names, min)?;
                // `5/10` means from 5 to the end.
                (first, if step.is_some() { max } else { first })
            }
        };
        let step = step.unwrap_or(1);
        if step == 0 {
            return Err(format!(
                "step of range should be a positive number: {part:?}"
            ));
        }
        if first < min || last > max || first > last {
            return Err(format!("{part:?} is not within {min}-{max}"));
        }
        for value in (first..=last).step_by(step as usize) {
            set |= 1 << value;
        }
    }
    Ok(set)
}

fn number(text: &str, names: &[&str], first: u32) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    if let Some(index) = names.iter().position(|name| *name == lower) {
        return Ok(first + u32::try_from(index).unwrap_or(0));
    }
    text.parse()
        .map_err(|_| format!("failed to parse number: {text:?}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn next(schedule: &str, after: &str) -> String {
        let schedule = Schedule::parse(schedule).unwrap();
        let time = schedule.next(after.parse().unwrap(), &TimeZone::UTC);
        time.map_or_else(
            || "never".to_owned(),
            |time| time.strftime("%Y-%m-%dT%H:%M").to_string(),
        )
    }

    #[test]
    fn times() {
        let cases = [
            ("* * * * *", "2026-11-22T12:00:30Z", "2026-11-22T12:01"),
            ("* * * * *", "2026-11-22T12:00:00Z", "2026-11-22T12:01"),
            ("*/15 * * * *", "2026-11-22T12:46:00Z", "2026-11-22T13:00"),
            ("5/20 * * * *", "2026-11-22T12:06:00Z", "2026-11-22T12:25"),
            ("0 9-17/4 * * *", "2026-11-22T13:30:00Z", "2026-11-22T17:00"),
            ("30 6 1 * *", "2026-11-22T00:00:00Z", "2026-12-01T06:30"),
            ("0 0 * * mon", "2026-11-22T00:00:00Z", "2026-11-23T00:00"),
            ("0 0 * * 7", "2026-11-22T00:00:00Z", "2026-11-29T00:00"),
            ("0 0 13 * fri", "2026-11-22T00:00:00Z", "2026-11-27T00:00"),
            ("0 0 29 feb *", "2026-11-22T00:00:00Z", "2028-02-29T00:00"),
            ("0 0 30 2 *", "2026-11-22T00:00:00Z", "never"),
            ("@hourly", "2026-12-31T23:59:00Z", "2027-01-01T00:00"),
            ("@every 1h30m", "2026-11-22T00:10:00Z", "2026-11-22T01:40"),
        ];
        for (schedule, after, expected) in cases {
            assert_eq!(next(schedule, after), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn malformed_schedules() {
        for text in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "x * * * *",
            "*/0 * * * *",
            "5-3 * * * *",
            "@never",
            "@every x",
        ] {
            assert!(Schedule::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn clock_changes() {
        // Central European time without a database: UTC+1, in summer UTC+2.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let times = |schedule: &str, after: &str, count: usize| {
            let schedule = Schedule::parse(schedule).unwrap();
            let mut time: Timestamp = after.parse().unwrap();
            let mut times = Vec::new();
            for _ in 0..count {
                time = schedule.next(time, &zone).unwrap();
                times.push(time.strftime("%d %H:%M").to_string());
            }
            times
        };
        // 02:30 does not exist on March 29th 2026.
        assert_eq!(
            times("30 2 * * *", "2026-03-28T00:00:00Z", 3),
            ["28 01:30", "30 00:30", "31 00:30"]
        );
        // Every hour is every hour, also when one comes twice.
        assert_eq!(
            times("0 * * * *", "2026-10-24T23:30:00Z", 3),
            ["25 00:00", "25 01:00", "25 02:00"]
        );
    }

    proptest! {
        /// The next time matches, and no minute between matches.
        #[test]
        fn nothing_is_skipped(minute in 0..60u32, hour in 0..24u32, step in 1..30u32, start in 0..2_000_000_000i64) {
            let schedule = Schedule::parse(&format!("{minute}-59/{step} {hour} * * *")).unwrap();
            let after = Timestamp::from_second(start).unwrap();
            let found = schedule.next(after, &TimeZone::UTC).unwrap();
            prop_assert!(found > after && found.as_second() % 60 == 0);
            let mut time = start.div_euclid(60) * 60 + 60;
            loop {
                let zoned = Timestamp::from_second(time).unwrap().to_zoned(TimeZone::UTC);
                let (m, h) = (zoned.minute() as u32, zoned.hour() as u32);
                if h == hour && m >= minute && (m - minute) % step == 0 {
                    break;
                }
                time += 60;
            }
            prop_assert_eq!(found.as_second(), time);
        }
    }
}
