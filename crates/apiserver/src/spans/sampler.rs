//! Which traces are collected.

/// Of so many traces a configuration says how many.
pub const MILLION: u32 = 1_000_000;

/// Decides about traces that begin here. All who look at a trace with the same ratio decide the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Numbers below are collected; a trace's number is the first 63 bits of the second half of its name.
    bound: u64,
}

impl Sampler {
    /// One that collects so many traces of a million.
    #[must_use]
    pub fn per_million(rate: u32) -> Self {
        let share = (u128::from(rate.min(MILLION)) << 63) / u128::from(MILLION);
        Self {
            bound: u64::try_from(share).unwrap_or(u64::MAX),
        }
    }

    #[must_use]
    pub fn samples(self, trace_id: [u8; 16]) -> bool {
        let mut half = [0; 8];
        half.copy_from_slice(&trace_id[8..]);
        u64::from_be_bytes(half) >> 1 < self.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace whose number is that share of all numbers.
    fn trace(numerator: u64, denominator: u64) -> [u8; 16] {
        let number = u64::MAX / denominator * numerator;
        let mut id = [0xff; 16];
        id[8..].copy_from_slice(&number.to_be_bytes());
        id
    }

    #[test]
    fn a_share_of_the_traces_is_sampled() {
        let quarter = Sampler::per_million(250_000);
        assert!(quarter.samples(trace(0, 1)));
        assert!(quarter.samples(trace(24, 100)));
        assert!(!quarter.samples(trace(26, 100)));
        assert!(!quarter.samples(trace(1, 1)));
        let random: Vec<[u8; 16]> = (0..10_000).map(|_| rand::random()).collect();
        let sampled = random.iter().filter(|id| quarter.samples(**id)).count();
        assert!((2_000..3_000).contains(&sampled), "{sampled}");
    }

    #[test]
    fn none_and_all() {
        for id in [trace(0, 1), trace(1, 2), trace(1, 1)] {
            assert!(!Sampler::per_million(0).samples(id));
            assert!(Sampler::per_million(MILLION).samples(id));
        }
    }
}
