//! How the seats of all levels are divided when demand has shifted: in proportion to the targets, within each level's
//! bounds.

/// What a level wants, and what it may have at least and at most.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub lower: f64,
    pub upper: f64,
    pub target: f64,
}

/// Targets below this count as this.
const MIN_TARGET: f64 = 0.001;

/// Divides `sum` seats; also the proportion of the targets that was found to be fair. `None` when the bounds leave no way.
///
/// The share of each level is `clamp(p * target, lower, upper)` for one `p`, which grows with the sum of the shares: it is
/// found by going through the points where a level leaves one of its bounds or reaches the other.
#[must_use]
pub fn divide(sum: f64, wishes: &[Wish]) -> Option<(Vec<f64>, f64)> {
    let target = |wish: &Wish| wish.target.max(MIN_TARGET);
    let share =
        |p: f64, wish: &Wish| (p * target(wish)).clamp(wish.lower, wish.upper.max(wish.lower));
    let total = |p: f64| -> f64 { wishes.iter().map(|w| share(p, w)).sum() };
    let (least, most): (f64, f64) = (
        wishes.iter().map(|w| w.lower).sum(),
        wishes.iter().map(|w| w.upper.max(w.lower)).sum(),
    );
    if wishes.is_empty() || sum < least - 1e-7 || sum > most + 1e-7 {
        return None;
    }
    let mut bends: Vec<f64> = wishes
        .iter()
        .flat_map(|w| [w.lower / target(w), w.upper / target(w)])
        .collect();
    bends.sort_unstable_by(f64::total_cmp);
    // The first bend at which there is enough; before it the sum grows in a straight line.
    let index = bends.partition_point(|p| total(*p) < sum);
    let high = bends.get(index).or(bends.last()).copied()?;
    let low = if index == 0 { 0.0 } else { bends[index - 1] };
    let (at_low, at_high) = (total(low), total(high));
    let fair = if at_high > at_low {
        low + (high - low) * (sum - at_low).max(0.0) / (at_high - at_low)
    } else {
        high
    };
    Some((wishes.iter().map(|w| share(fair, w)).collect(), fair))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wish(lower: f64, target: f64, upper: f64) -> Wish {
        Wish {
            lower,
            upper,
            target,
        }
    }

    #[test]
    fn without_bounds_in_the_way_shares_are_proportional() {
        let (shares, fair) =
            divide(30.0, &[wish(0.0, 10.0, 100.0), wish(0.0, 5.0, 100.0)]).unwrap();
        assert!((shares[0] - 20.0).abs() < 1e-6 && (shares[1] - 10.0).abs() < 1e-6);
        assert!((fair - 2.0).abs() < 1e-6);
    }

    #[test]
    fn bounds_hold() {
        let (shares, _) = divide(
            30.0,
            &[
                wish(15.0, 15.0, 100.0),
                wish(0.0, 1.0, 5.0),
                wish(0.0, 20.0, 100.0),
            ],
        )
        .unwrap();
        assert!(shares[0] >= 15.0 - 1e-6 && shares[1] <= 5.0 + 1e-6);
        assert!((shares.iter().sum::<f64>() - 30.0).abs() < 1e-6);
        assert!(divide(1.0, &[wish(2.0, 2.0, 3.0)]).is_none());
        assert!(divide(4.0, &[wish(2.0, 2.0, 3.0)]).is_none());
    }

    proptest! {
        #[test]
        fn shares_add_up_within_bounds(levels in prop::collection::vec((0.0..50.0f64, 0.0..50.0f64, 0.0..50.0f64), 1..8), at in 0.0..1.0f64) {
            let wishes: Vec<Wish> = levels.iter().map(|(lower, more, most)| wish(*lower, lower + more, lower + most)).collect();
            let (least, most): (f64, f64) = (wishes.iter().map(|w| w.lower).sum(), wishes.iter().map(|w| w.upper).sum());
            let sum = least + (most - least) * at;
            let (shares, _) = divide(sum, &wishes).unwrap();
            prop_assert!((shares.iter().sum::<f64>() - sum).abs() < 1e-3);
            for (share, wish) in shares.iter().zip(&wishes) {
                prop_assert!(*share >= wish.lower - 1e-6 && *share <= wish.upper + 1e-6);
            }
        }
    }
}
