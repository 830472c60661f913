//! Demand for seats over time: its peak, its average and how far it strays, weighted by how long it was what.

use std::time::Instant;

pub(super) struct Integrator {
    since: Instant,
    last: Instant,
    value: f64,
    integral: f64,
    square: f64,
    peak: f64,
}

/// What was integrated since the last time that was asked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Observed {
    pub seconds: f64,
    pub average: f64,
    pub deviation: f64,
    pub peak: f64,
}

impl Integrator {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            last: now,
            value: 0.0,
            integral: 0.0,
            square: 0.0,
            peak: 0.0,
        }
    }

    fn advance(&mut self, now: Instant) {
        let seconds = now.duration_since(self.last).as_secs_f64();
        self.last = now;
        self.integral += seconds * self.value;
        self.square += seconds * self.value * self.value;
    }

    pub(super) fn set(&mut self, value: f64, now: Instant) {
        self.advance(now);
        self.value = value;
        self.peak = self.peak.max(value);
    }

    /// What was observed; the next observation begins now.
    pub(super) fn reset(&mut self, now: Instant) -> Observed {
        self.advance(now);
        let seconds = now.duration_since(self.since).as_secs_f64();
        let observed = if seconds > 0.0 {
            let average = self.integral / seconds;
            let variance = (self.square / seconds - average * average).max(0.0);
            Observed {
                seconds,
                average,
                deviation: variance.sqrt(),
                peak: self.peak,
            }
        } else {
            Observed {
                peak: self.peak,
                ..Observed::default()
            }
        };
        self.since = now;
        (self.integral, self.square, self.peak) = (0.0, 0.0, self.value);
        observed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_lasts_longer_weighs_more() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut integrator = Integrator::new(start);
        integrator.set(4.0, at(6));
        integrator.set(0.0, at(8));
        let observed = integrator.reset(at(8));
        assert!((observed.average - 1.0).abs() < 1e-9);
        assert!((observed.deviation - 3.0_f64.sqrt()).abs() < 1e-9);
        assert!((observed.peak - 4.0).abs() < 1e-9);
        let idle = integrator.reset(at(10));
        assert!(idle.average == 0.0 && idle.peak == 0.0);
    }
}
