//! The header `date`, written once a second.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use http::HeaderValue;

const SECOND: Duration = Duration::from_secs(1);

struct Written {
    second: SystemTime,
    value: HeaderValue,
}

thread_local! {
    static LAST: RefCell<Option<Written>> = const { RefCell::new(None) };
}

/// The time as HTTP writes it.
pub fn now() -> HeaderValue {
    at(SystemTime::now())
}

fn at(time: SystemTime) -> HeaderValue {
    LAST.with_borrow_mut(|last| {
        match last {
            // A clock that was set back is not within the second either.
            Some(written)
                if time
                    .duration_since(written.second)
                    .is_ok_and(|d| d < SECOND) =>
            {
                written.value.clone()
            }
            _ => {
                let since = time
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default();
                let second = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
                let text = httpdate::fmt_http_date(second);
                let value =
                    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
                last.insert(Written { second, value }).value.clone()
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_follows_the_clock_both_ways() {
        let time = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let first = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (millis, expected) in [
            (784_111_777_000, first),
            (784_111_777_999, first),
            (784_111_778_000, "Sun, 06 Nov 1994 08:49:38 GMT"),
            (784_111_777_500, first),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        ] {
            assert_eq!(at(time(millis)), expected);
        }
    }
}
