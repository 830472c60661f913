//! Waiting for conditions, never for time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// Waits until `condition` gives something; `what` says what did not come.
///
/// # Errors
/// When it has not come in `limit`, with what was wrong the last time.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        let seen = condition();
        if let Ok(Some(value)) = seen {
            return Ok(value);
        }
        if begin.elapsed() > limit {
            match seen {
                Err(error) => {
                    return Err(error).with_context(|| format!("not within {limit:?}: {what}"));
                }
                Ok(_) => bail!("not within {limit:?}: {what}"),
            }
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Runs `f` and says how long it took.
///
/// # Errors
/// Those of `f`.
pub fn timed<T>(
    what: &str,
    f: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Duration)> {
    let begin = Instant::now();
    let value = f().with_context(|| what.to_owned())?;
    let took = begin.elapsed();
    println!("{what}: {:.2} s", took.as_secs_f64());
    Ok((value, took))
}
