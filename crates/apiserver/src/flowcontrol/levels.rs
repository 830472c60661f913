//! The priority levels: their queues, the seats that they have been given, and how those are lent to others.

use std::collections::BTreeMap;
use std::sync::Arc;

use fluyt_api::flowcontrol::{FLOW_SCHEMAS, PRIORITY_LEVELS};
use fluyt_api::meta;
use parking_lot::Mutex;
use serde_json::Value;

use super::allocation::{Wish, divide};
use super::metrics::{Flows, LevelGauges};
use super::queueset::{QueueSet, Queuing};
use super::schema::Schema;

/// How slowly peaks of demand are forgotten: by half in five minutes of ten-second steps.
const SMOOTHING: f64 = 0.977;

/// The share of a level's seats that one request may take at most.
const MAX_SHARE: f64 = 0.15;

/// One priority level.
pub struct Level {
    pub name: String,
    pub uid: String,
    pub exempt: bool,
    pub queuing: Queuing,
    pub set: Arc<QueueSet>,
    /// The most seats that one request is estimated to take; 0 for no limit of the level's own.
    pub max_seats: u64,
    limits: Limits,
    demand: Arc<Mutex<Demand>>,
    /// Whether it is gone, and only kept until its last request is done.
    quiescing: bool,
    spec: Value,
}

/// Seats by configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Limits {
    nominal: u64,
    lower: u64,
    upper: u64,
}

/// Seats by demand.
#[derive(Clone, Copy, Debug, Default)]
struct Demand {
    current: u64,
    high_watermark: f64,
    average: f64,
    deviation: f64,
    smoothed: f64,
    target: f64,
}

/// The whole configuration at work.
pub struct Digest {
    /// By precedence.
    pub schemas: Vec<Arc<Schema>>,
    pub levels: BTreeMap<String, Arc<Level>>,
    fair_fraction: Arc<Mutex<f64>>,
}

impl Level {
    fn shares(spec: &Value) -> f64 {
        let part = if spec["type"] == "Exempt" {
            &spec["exempt"]
        } else {
            &spec["limited"]
        };
        part["nominalConcurrencyShares"].as_f64().unwrap_or(0.0)
    }

    fn queuing(spec: &Value) -> Queuing {
        if spec["type"] == "Exempt" {
            return Queuing::Exempt;
        }
        let response = &spec["limited"]["limitResponse"];
        if response["type"] != "Queue" {
            return Queuing::Reject;
        }
        let number = |field: &str, default: u64| {
            let number = response["queuing"][field].as_u64().unwrap_or(default);
            usize::try_from(number).unwrap_or(1).max(1)
        };
        Queuing::Queue {
            queues: number("queues", 64),
            hand: number("handSize", 8),
            length: number("queueLengthLimit", 50),
        }
    }

    #[cfg(test)]
    pub fn for_tests(name: &str) -> Arc<Self> {
        let spec = serde_json::json!({"type": "Exempt"});
        Arc::new(Self {
            name: name.into(),
            uid: String::new(),
            exempt: true,
            queuing: Queuing::Exempt,
            set: QueueSet::new(Queuing::Exempt, 0),
            max_seats: 0,
            limits: Limits::default(),
            demand: Arc::default(),
            quiescing: false,
            spec,
        })
    }

    pub fn is_quiescing(&self) -> bool {
        self.quiescing
    }
}

/// A count of seats that was computed in fractions.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(seats: f64) -> u64 {
    seats.round().max(0.0) as u64
}

#[allow(clippy::cast_precision_loss)]
fn fraction(seats: u64) -> f64 {
    seats as f64
}

impl Digest {
    /// Makes sense of the objects there are, and of the mandatory ones should they be missing. What lives on from the
    /// `previous` configuration keeps its queues.
    #[must_use]
    pub fn new(
        levels: &[Value],
        schemas: &[Value],
        total: u64,
        flows: &Flows,
        previous: Option<&Self>,
    ) -> Self {
        let named = |object: &Value| (meta::name(object).to_owned(), object.clone());
        let mut wanted: BTreeMap<String, Value> =
            PRIORITY_LEVELS.mandatory.iter().map(named).collect();
        wanted.extend(levels.iter().map(named));
        let mut quiescing = Vec::new();
        for (name, level) in previous.iter().flat_map(|p| &p.levels) {
            if !wanted.contains_key(name) && !level.set.is_idle() {
                quiescing.push(level.clone());
            }
        }
        let shares: f64 = wanted
            .values()
            .map(|object| Level::shares(&object["spec"]))
            .chain(quiescing.iter().map(|level| Level::shares(&level.spec)))
            .sum();
        let mut digested = BTreeMap::new();
        let gone = quiescing.iter().map(|level| {
            let object = serde_json::json!({"metadata": {"name": level.name, "uid": level.uid}, "spec": level.spec});
            (object, true)
        });
        for (object, quiescing) in wanted.into_values().map(|o| (o, false)).chain(gone) {
            let known = previous.and_then(|p| p.levels.get(meta::name(&object)));
            let level = digest_level(&object, quiescing, total, shares, known);
            digested.insert(level.name.clone(), Arc::new(level));
        }
        let mut digest = Self {
            schemas: Vec::new(),
            levels: digested,
            fair_fraction: previous
                .map(|p| p.fair_fraction.clone())
                .unwrap_or_default(),
        };
        digest.digest_schemas(schemas, flows);
        digest
    }

    fn digest_schemas(&mut self, objects: &[Value], flows: &Flows) {
        let mut wanted: BTreeMap<String, &Value> = BTreeMap::new();
        for object in FLOW_SCHEMAS.mandatory.iter().chain(objects) {
            wanted.insert(meta::name(object).to_owned(), object);
        }
        for (name, object) in wanted {
            let level = object["spec"]["priorityLevelConfiguration"]["name"].as_str();
            let level = level.and_then(|l| self.levels.get(l));
            // A schema whose level is not there is as if it were not there either.
            let Some(level) = level.filter(|l| !l.quiescing) else {
                continue;
            };
            let flow = flows.of(&name, &level.name);
            self.schemas
                .push(Arc::new(Schema::new(object, level.clone(), flow)));
        }
        self.schemas
            .sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
    }

    /// Whether a level is there for schemas to refer to.
    #[must_use]
    pub fn has_level(&self, name: &str) -> bool {
        self.levels.get(name).is_some_and(|l| !l.quiescing)
    }

    /// Whether a level that is gone is done as well.
    #[must_use]
    pub fn has_leftovers(&self) -> bool {
        self.levels.values().any(|l| l.quiescing && l.set.is_idle())
    }

    /// Divides the seats anew, by what was in demand since the last time.
    pub fn adjust(&self) {
        let mut wishes = Vec::new();
        let total: u64 = self.levels.values().map(|l| l.limits.nominal).sum();
        let (mut left, mut lower_sum, mut needed_sum) = (fraction(total), 0.0, 0.0);
        for level in self.levels.values() {
            let observed = level.set.observe();
            let mut demand = level.demand.lock();
            demand.high_watermark = observed.peak.round();
            if observed.seconds > 0.0 {
                (demand.average, demand.deviation) = (observed.average, observed.deviation);
                let envelope = observed.average + observed.deviation;
                let faded = SMOOTHING * demand.smoothed + (1.0 - SMOOTHING) * envelope;
                demand.smoothed = envelope.max(faded);
            }
            let lower = fraction(level.limits.lower);
            if level.exempt {
                let current = lower.max(demand.high_watermark);
                left -= current;
                demand.current = whole(current);
                continue;
            }
            let nominal = fraction(level.limits.nominal);
            let needed = lower.max(nominal.min(demand.high_watermark));
            demand.target = needed.max(demand.smoothed);
            wishes.push((
                level,
                Wish {
                    lower: needed,
                    upper: fraction(level.limits.upper),
                    target: demand.target,
                },
            ));
            lower_sum += lower;
            needed_sum += needed;
        }
        let mut fair = 0.0;
        let shares: Vec<f64> = if left <= lower_sum {
            wishes
                .iter()
                .map(|(level, _)| fraction(level.limits.lower))
                .collect()
        } else if left <= needed_sum {
            let part = (left - lower_sum) / (needed_sum - lower_sum);
            let share = |(level, wish): &(&Arc<Level>, Wish)| {
                let lower = fraction(level.limits.lower);
                lower + (wish.lower - lower) * part
            };
            wishes.iter().map(share).collect()
        } else {
            let bare: Vec<Wish> = wishes.iter().map(|(_, wish)| *wish).collect();
            match divide(fraction(total), &bare) {
                Some((shares, fraction)) => {
                    fair = fraction;
                    shares
                }
                None => return,
            }
        };
        *self.fair_fraction.lock() = fair;
        for ((level, _), share) in wishes.iter().zip(shares) {
            let current = whole(share);
            level.demand.lock().current = current;
            level.set.configure(level.queuing, current);
        }
    }

    #[must_use]
    pub fn gauges(&self) -> (Vec<LevelGauges>, f64) {
        let gauges = self.levels.values().map(|level| {
            let demand = *level.demand.lock();
            LevelGauges {
                name: level.name.clone(),
                nominal: level.limits.nominal,
                lower: level.limits.lower,
                upper: level.limits.upper,
                current: demand.current,
                high_watermark: demand.high_watermark,
                average: demand.average,
                deviation: demand.deviation,
                smoothed: demand.smoothed,
                target: demand.target,
            }
        });
        (gauges.collect(), *self.fair_fraction.lock())
    }
}

fn digest_level(
    object: &Value,
    quiescing: bool,
    total: u64,
    shares: f64,
    known: Option<&Arc<Level>>,
) -> Level {
    let spec = &object["spec"];
    let part = if spec["type"] == "Exempt" {
        &spec["exempt"]
    } else {
        &spec["limited"]
    };
    let own = if shares > 0.0 {
        fraction(total) * Level::shares(spec) / shares
    } else {
        0.0
    };
    let nominal = whole(own.ceil());
    let percent = |field: &str| {
        let percent = part[field].as_f64()?;
        Some(whole(fraction(nominal) * percent / 100.0))
    };
    let limits = Limits {
        nominal,
        lower: nominal - percent("lendablePercent").unwrap_or(0).min(nominal),
        upper: nominal + percent("borrowingLimitPercent").unwrap_or(total),
    };
    let queuing = Level::queuing(spec);
    let exempt = queuing == Queuing::Exempt;
    let demand = known.map(|l| l.demand.clone()).unwrap_or_default();
    if known.is_none() {
        // Until its demand is known, half of what it might lend.
        demand.lock().current = nominal - (nominal - limits.lower) / 2;
    }
    let current = demand.lock().current;
    let set = match known {
        Some(known) => {
            known.set.configure(queuing, current);
            known.set.clone()
        }
        None => QueueSet::new(queuing, current),
    };
    let max_seats = match queuing {
        Queuing::Queue { hand, .. } => {
            let by_hand = nominal / (hand as u64).max(1);
            let by_share = whole((fraction(nominal) * MAX_SHARE).ceil());
            by_hand.min(by_share).max(1)
        }
        Queuing::Exempt | Queuing::Reject => 0,
    };
    Level {
        name: meta::name(object).to_owned(),
        uid: meta::uid(object).to_owned(),
        exempt,
        queuing,
        set,
        max_seats,
        limits,
        demand,
        quiescing,
        spec: spec.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flowcontrol::queueset::{Arrival, Details, Outcome};
    use crate::flowcontrol::width::Width;
    use serde_json::json;

    fn digest(levels: &[Value], previous: Option<&Digest>) -> Digest {
        Digest::new(
            levels,
            &FLOW_SCHEMAS.suggested,
            600,
            &Flows::default(),
            previous,
        )
    }

    fn occupy(level: &Level, count: usize) -> Vec<Outcome> {
        let arrival = || Arrival {
            flow: Arc::default(),
            hash: 7,
            width: Width::ONE,
            details: Details {
                distinguisher: String::new(),
                user: String::new(),
                verb: "get",
                path: String::new(),
            },
        };
        (0..count).map(|_| level.set.arrive(arrival())).collect()
    }

    #[test]
    fn seats_are_divided_by_shares() {
        let digest = digest(&PRIORITY_LEVELS.suggested, None);
        let nominal = |name: &str| digest.levels[name].limits.nominal;
        // 245 shares of 600 seats.
        assert_eq!(nominal("workload-low"), 245);
        assert_eq!(nominal("system"), 74);
        assert_eq!(nominal("catch-all"), 13);
        assert_eq!(nominal("exempt"), 0);
        let low = &digest.levels["workload-low"];
        assert_eq!(low.limits.lower, 24);
        assert_eq!(low.max_seats, 37);
        assert_eq!(digest.schemas.first().unwrap().name, "exempt");
        assert_eq!(digest.schemas.last().unwrap().name, "catch-all");
    }

    #[tokio::test]
    async fn idle_levels_lend_to_busy_ones() {
        let digest = digest(&PRIORITY_LEVELS.suggested, None);
        let busy = &digest.levels["system"];
        let _running = occupy(busy, 200);
        digest.adjust();
        let (gauges, _) = digest.gauges();
        let current = |name: &str| gauges.iter().find(|g| g.name == name).unwrap().current;
        assert!(current("system") > busy.limits.nominal, "{gauges:?}");
        assert!(current("workload-low") >= digest.levels["workload-low"].limits.lower);
        assert!(busy.set.dump().executing > 74);
    }

    #[tokio::test]
    async fn a_level_that_is_gone_finishes_what_it_has() {
        let own = json!({"metadata": {"name": "own"}, "spec": {"type": "Limited", "limited":
            {"nominalConcurrencyShares": 10, "limitResponse": {"type": "Reject"}}}});
        let first = digest(&[own], None);
        let running = occupy(&first.levels["own"], 1);
        let second = digest(&[], Some(&first));
        assert!(
            second.levels["own"].quiescing && !second.has_level("own") && !second.has_leftovers()
        );
        drop(running);
        assert!(second.has_leftovers());
        assert!(!digest(&[], Some(&second)).levels.contains_key("own"));
    }
}
