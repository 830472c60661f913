//! The queues of one priority level, and who of those who wait in them is next.
//!
//! Fair queuing for requests: a virtual clock R runs at the rate at which every queue that has something to do could be
//! served. A queue's next request starts, in that time, where its last one ended; the queue whose next request would end
//! first is next. Until a request is done its work is a guess, which is then corrected.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::demand::{Integrator, Observed};
use super::metrics::Flow;
use super::shuffle::deal;
use super::width::Width;

/// How long a request is guessed to take.
const GUESS: f64 = 0.003;

/// How a level treats what it cannot serve at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queuing {
    /// Everything is served at once.
    Exempt,
    /// What there is no seat for is turned away.
    Reject,
    Queue {
        queues: usize,
        hand: usize,
        length: usize,
    },
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    ConcurrencyLimit,
    QueueFull,
    TimeOut,
}

/// A request as queues see it.
#[derive(Clone)]
pub struct Arrival {
    pub flow: Arc<Flow>,
    pub hash: u64,
    pub width: Width,
    pub details: Details,
}

/// What dumps show of a request.
#[derive(Clone, Debug)]
pub struct Details {
    pub distinguisher: String,
    pub user: String,
    pub verb: &'static str,
    pub path: String,
}

pub struct QueueSet {
    state: Mutex<State>,
}

struct State {
    queuing: Queuing,
    limit: u64,
    queues: Vec<Queue>,
    robin: usize,
    enqueues: usize,
    /// The virtual clock, in seat-seconds.
    now_r: f64,
    last: Instant,
    /// Queues that have something to do.
    active: usize,
    seats_in_use: u64,
    seats_waiting: u64,
    executing: HashMap<u64, Executing>,
    waiting: usize,
    next_id: u64,
    totals: Totals,
    demand: Integrator,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    executing: usize,
    seats_in_use: u64,
    next_dispatch_r: f64,
}

struct Waiting {
    id: u64,
    arrival: Arrival,
    arrived: Instant,
    arrival_r: f64,
    admit: oneshot::Sender<Permit>,
}

struct Executing {
    arrival: Arrival,
    arrived: Instant,
    started: Instant,
    queue: Option<usize>,
}

/// Counts since the level came to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub dispatched: u64,
    pub rejected: u64,
    pub timed_out: u64,
    pub cancelled: u64,
}

/// The right to be served, until dropped.
pub struct Permit {
    set: Arc<QueueSet>,
    id: u64,
}

/// A place in a queue.
pub struct Ticket {
    set: Arc<QueueSet>,
    id: u64,
    queue: usize,
    admitted: oneshot::Receiver<Permit>,
}

/// What becomes of a request that arrives.
pub enum Outcome {
    Admitted(Permit),
    Queued(Ticket),
    Refused(Refusal),
}

impl Refusal {
    /// As metrics name it.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::TimeOut => "time-out",
        }
    }
}

// === impl QueueSet ===

impl QueueSet {
    #[must_use]
    pub fn new(queuing: Queuing, limit: u64) -> Arc<Self> {
        let now = Instant::now();
        let mut state = State {
            queuing,
            limit,
            queues: Vec::new(),
            robin: 0,
            enqueues: 0,
            now_r: 0.0,
            last: now,
            active: 0,
            seats_in_use: 0,
            seats_waiting: 0,
            executing: HashMap::new(),
            waiting: 0,
            next_id: 0,
            totals: Totals::default(),
            demand: Integrator::new(now),
        };
        state.resize();
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    /// Another configuration holds from now on.
    pub fn configure(self: &Arc<Self>, queuing: Queuing, limit: u64) {
        let admitted = {
            let mut state = self.state.lock();
            state.advance();
            state.queuing = queuing;
            state.limit = limit;
            state.resize();
            state.dispatch(self)
        };
        deliver(admitted);
    }

    /// Demand since the last call.
    pub(super) fn observe(&self) -> Observed {
        self.state.lock().demand.reset(Instant::now())
    }

    /// Admits a request, gives it a place in a queue, or turns it away.
    pub fn arrive(self: &Arc<Self>, arrival: Arrival) -> Outcome {
        let mut state = self.state.lock();
        state.advance();
        let (hand_size, deck, length) = match state.queuing {
            Queuing::Exempt => return Outcome::Admitted(state.execute(self, arrival, None)),
            Queuing::Reject if state.accommodates(arrival.width.seats()) => {
                return Outcome::Admitted(state.execute(self, arrival, None));
            }
            Queuing::Reject => {
                state.totals.rejected += 1;
                return Outcome::Refused(Refusal::ConcurrencyLimit);
            }
            Queuing::Queue {
                queues,
                hand,
                length,
            } => (hand, queues, length),
        };
        let queue = state.choose(arrival.hash, deck, hand_size);
        // Nobody waits and there is room: no need to stand in line for it.
        let has_seats = state.seats_in_use < state.limit;
        if state.waiting == 0 && has_seats && state.accommodates(arrival.width.seats()) {
            let (now_r, work) = (state.now_r, work(&arrival.width));
            let line = &mut state.queues[queue];
            line.next_dispatch_r = if line.is_idle() {
                now_r + work
            } else {
                line.next_dispatch_r.max(now_r) + work
            };
            return Outcome::Admitted(state.execute(self, arrival, Some(queue)));
        }
        let present = state.queues[queue].waiting.len();
        if state.seats_in_use >= state.limit && present >= length {
            state.totals.rejected += 1;
            return Outcome::Refused(Refusal::QueueFull);
        }
        let ticket = state.enqueue(self, arrival, queue);
        let admitted = state.dispatch(self);
        drop(state);
        deliver(admitted);
        Outcome::Queued(ticket)
    }

    #[must_use]
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.waiting == 0 && state.executing.is_empty()
    }

    fn finish(self: &Arc<Self>, id: u64) {
        let admitted = {
            let mut state = self.state.lock();
            state.advance();
            let Some(done) = state.executing.remove(&id) else {
                return;
            };
            let took = done.started.elapsed();
            done.arrival.flow.executed(took, done.arrival.width.seats());
            state.correct(&done, took);
            let width = done.arrival.width;
            if width.lingering.is_zero() {
                state.release(done.queue, width.seats());
                state.dispatch(self)
            } else {
                self.linger(done.queue, width);
                Vec::new()
            }
        };
        deliver(admitted);
    }

    /// Gives the seats back later: what a write causes goes on after its answer.
    fn linger(self: &Arc<Self>, queue: Option<usize>, width: Width) {
        // Without a runtime everything is going away, seats as well.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let set = self.clone();
        runtime.spawn(async move {
            tokio::time::sleep(width.lingering).await;
            let admitted = {
                let mut state = set.state.lock();
                state.advance();
                state.release(queue, width.seats());
                state.dispatch(&set)
            };
            deliver(admitted);
        });
    }
}

/// The work of a request, in seat-seconds, as far as it can be guessed.
#[allow(clippy::cast_precision_loss)]
fn work(width: &Width) -> f64 {
    width.initial as f64 * GUESS + width.last as f64 * width.lingering.as_secs_f64()
}

/// Tells those who have been admitted, without holding a lock: one who has gone gives the seats back at once.
fn deliver(admitted: Vec<(oneshot::Sender<Permit>, Permit)>) {
    for (admit, permit) in admitted {
        let _ = admit.send(permit);
    }
}

// === impl State ===

impl State {
    /// Moves the virtual clock to the present.
    #[allow(clippy::cast_precision_loss)]
    fn advance(&mut self) {
        let now = Instant::now();
        let seconds = now.duration_since(self.last).as_secs_f64();
        self.last = now;
        if self.active > 0 {
            let wanted = (self.seats_in_use + self.seats_waiting).min(self.limit);
            self.now_r += seconds * wanted as f64 / self.active as f64;
        }
    }

    /// As many queues as configured; those too many go when they are empty.
    fn resize(&mut self) {
        let wanted = match self.queuing {
            Queuing::Queue { queues, .. } => queues,
            Queuing::Exempt | Queuing::Reject => 0,
        };
        while self.queues.len() < wanted {
            self.queues.push(Queue::default());
        }
        while self.queues.len() > wanted && self.queues.last().is_some_and(Queue::is_idle) {
            self.queues.pop();
        }
    }

    fn demand_changed(&mut self) {
        #[allow(clippy::cast_precision_loss)]
        let demand = (self.seats_in_use + self.seats_waiting) as f64;
        self.demand.set(demand, self.last);
    }

    fn accommodates(&self, seats: u64) -> bool {
        match self.queuing {
            Queuing::Exempt => true,
            // One that is too wide for the level is served when it is alone.
            _ if seats > self.limit => self.executing.is_empty(),
            _ => self.seats_in_use + seats <= self.limit,
        }
    }

    /// The queue of the flow's hand with the least work waiting.
    fn choose(&mut self, hash: u64, deck: usize, hand: usize) -> usize {
        let mut buffer = [0; 15];
        let hand = deal(hash, deck, hand, &mut buffer);
        let offset = self.enqueues % hand.len().max(1);
        self.enqueues = self.enqueues.wrapping_add(1);
        if self.waiting == 0 {
            return hand.get(offset).copied().unwrap_or_default();
        }
        (0..hand.len())
            .map(|i| hand[(offset + i) % hand.len()])
            .min_by(|a, b| {
                let waiting = |queue: &usize| self.queues[*queue].work();
                waiting(a).total_cmp(&waiting(b))
            })
            .unwrap_or_default()
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Changes a queue, and keeps count of those that have something to do.
    fn change<R>(&mut self, queue: usize, change: impl FnOnce(&mut Queue) -> R) -> R {
        let line = &mut self.queues[queue];
        let was_idle = line.is_idle();
        let result = change(line);
        match (was_idle, line.is_idle()) {
            (true, false) => self.active += 1,
            (false, true) => self.active -= 1,
            _ => {}
        }
        result
    }

    fn enqueue(&mut self, set: &Arc<QueueSet>, arrival: Arrival, queue: usize) -> Ticket {
        let (id, arrived, now_r) = (self.id(), self.last, self.now_r);
        let (admit, admitted) = oneshot::channel();
        let seats = arrival.width.seats();
        self.change(queue, |line| {
            if line.is_idle() {
                line.next_dispatch_r = now_r;
            }
            arrival.flow.queued(seats, line.waiting.len() + 1);
            line.waiting.push_back(Waiting {
                id,
                arrival,
                arrived,
                arrival_r: now_r,
                admit,
            });
            line.bound();
        });
        self.waiting += 1;
        self.seats_waiting += seats;
        self.demand_changed();
        Ticket {
            set: set.clone(),
            id,
            queue,
            admitted,
        }
    }

    /// Serves a request that need not wait.
    fn execute(&mut self, set: &Arc<QueueSet>, arrival: Arrival, queue: Option<usize>) -> Permit {
        let (id, arrived) = (self.id(), self.last);
        self.start(set, id, arrival, arrived, queue)
    }

    /// Takes a request's seats.
    fn start(
        &mut self,
        set: &Arc<QueueSet>,
        id: u64,
        arrival: Arrival,
        arrived: Instant,
        queue: Option<usize>,
    ) -> Permit {
        let seats = arrival.width.seats();
        if let Some(queue) = queue {
            self.change(queue, |line| {
                line.executing += 1;
                line.seats_in_use += seats;
            });
        }
        self.seats_in_use += seats;
        self.totals.dispatched += 1;
        let waited = self.last.duration_since(arrived);
        arrival.flow.started(seats, waited);
        let executing = Executing {
            arrival,
            arrived,
            started: self.last,
            queue,
        };
        self.executing.insert(id, executing);
        self.demand_changed();
        Permit {
            set: set.clone(),
            id,
        }
    }

    /// Admits as many as there is room for, fairly.
    fn dispatch(&mut self, set: &Arc<QueueSet>) -> Vec<(oneshot::Sender<Permit>, Permit)> {
        let mut admitted = Vec::new();
        let is_exempt = self.queuing == Queuing::Exempt;
        while self.waiting > 0 && (is_exempt || self.seats_in_use < self.limit) {
            let Some(queue) = self.next_queue() else {
                break;
            };
            let Some(first) = self.queues[queue].waiting.front() else {
                break;
            };
            if !self.accommodates(first.arrival.width.seats()) {
                first.arrival.flow.not_accommodated();
                break;
            }
            let Some(next) = self.change(queue, |line| line.waiting.pop_front()) else {
                break;
            };
            self.robin = queue;
            self.left(&next.arrival);
            let line = &mut self.queues[queue];
            line.next_dispatch_r += work(&next.arrival.width);
            line.bound();
            let permit = self.start(set, next.id, next.arrival, next.arrived, Some(queue));
            admitted.push((next.admit, permit));
        }
        admitted
    }

    /// The queue whose first request would end first; beginning after the last one served, so that equals take turns.
    fn next_queue(&self) -> Option<usize> {
        let count = self.queues.len();
        let mut best: Option<(f64, usize)> = None;
        for i in 1..=count {
            let index = (self.robin + i) % count;
            let queue = &self.queues[index];
            let Some(first) = queue.waiting.front() else {
                continue;
            };
            let end = queue.next_dispatch_r + work(&first.arrival.width);
            if best.is_none_or(|(least, _)| end < least) {
                best = Some((end, index));
            }
        }
        best.map(|(_, index)| index)
    }

    /// One is in its queue no more.
    fn left(&mut self, arrival: &Arrival) {
        let seats = arrival.width.seats();
        self.waiting -= 1;
        self.seats_waiting -= seats;
        arrival.flow.unqueued(seats);
    }

    /// The queue pays for what a request has taken, not for what was guessed.
    #[allow(clippy::cast_precision_loss)]
    fn correct(&mut self, done: &Executing, took: Duration) {
        let Some(queue) = done.queue else { return };
        let seats = done.arrival.width.initial as f64;
        self.change(queue, |line| {
            line.executing -= 1;
            line.next_dispatch_r -= seats * (GUESS - took.as_secs_f64());
            line.bound();
        });
    }

    /// Gives seats back. Their queue may be gone: seats that lingered do not keep it.
    fn release(&mut self, queue: Option<usize>, seats: u64) {
        self.seats_in_use -= seats;
        if let Some(line) = queue.and_then(|queue| self.queues.get_mut(queue)) {
            line.seats_in_use = line.seats_in_use.saturating_sub(seats);
        }
        self.demand_changed();
        self.resize();
    }
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.executing == 0
    }

    fn work(&self) -> f64 {
        self.waiting.iter().map(|w| work(&w.arrival.width)).sum()
    }

    /// In virtual time nothing starts before it has arrived: a queue does not save up what it did not use.
    fn bound(&mut self) {
        if let Some(first) = self.waiting.front() {
            self.next_dispatch_r = self.next_dispatch_r.max(first.arrival_r);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.set.clone().finish(self.id);
    }
}

// === impl Ticket ===

impl Ticket {
    /// Waits for its turn.
    ///
    /// # Errors
    /// When that does not come in time.
    pub async fn wait(mut self, until: tokio::time::Instant) -> Result<Permit, Refusal> {
        match tokio::time::timeout_at(until, &mut self.admitted).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => {
                self.leave(true);
                // Its turn may have come at the same moment; then the permit goes with the receiver.
                self.admitted.try_recv().map_err(|_| Refusal::TimeOut)
            }
        }
    }

    fn leave(&self, timed_out: bool) {
        let mut state = self.set.state.lock();
        state.advance();
        if self.queue >= state.queues.len() {
            return;
        }
        let gone = state.change(self.queue, |queue| {
            let at = queue.waiting.iter().position(|w| w.id == self.id)?;
            let gone = queue.waiting.remove(at);
            queue.bound();
            gone
        });
        let Some(gone) = gone else { return };
        state.left(&gone.arrival);
        state.demand_changed();
        state.totals.rejected += 1;
        if timed_out {
            state.totals.timed_out += 1;
        } else {
            state.totals.cancelled += 1;
        }
        gone.arrival
            .flow
            .gave_up(state.last.duration_since(gone.arrived));
    }
}

impl Drop for Ticket {
    /// A client that has gone does not wait any more.
    fn drop(&mut self) {
        self.leave(false);
    }
}

// === dumps ===

/// A level's queues at one moment.
pub struct Dump {
    pub queues: Vec<QueueDump>,
    pub waiting: usize,
    pub executing: usize,
    pub totals: Totals,
    pub requests: Vec<RequestDump>,
}

pub struct QueueDump {
    pub waiting: usize,
    pub executing: usize,
    pub seats_in_use: u64,
    pub next_dispatch_r: f64,
    pub initial_seats: u64,
    pub max_seats: u64,
    pub work: f64,
}

pub struct RequestDump {
    pub flow_schema: String,
    /// -1 for requests that need no queue.
    pub queue: i64,
    /// The place in the queue; -1 when it is being served.
    pub index: i64,
    pub width: Width,
    /// How long ago.
    pub arrived: Duration,
    pub started: Option<Duration>,
    pub details: Details,
}

impl QueueSet {
    #[must_use]
    pub fn dump(&self) -> Dump {
        let state = self.state.lock();
        let position = |index: usize| i64::try_from(index).unwrap_or(i64::MAX);
        let mut requests = Vec::new();
        for (number, queue) in state.queues.iter().enumerate() {
            for (index, waiting) in queue.waiting.iter().enumerate() {
                requests.push(RequestDump {
                    flow_schema: waiting.arrival.flow.schema.clone(),
                    queue: position(number),
                    index: position(index),
                    width: waiting.arrival.width,
                    arrived: waiting.arrived.elapsed(),
                    started: None,
                    details: waiting.arrival.details.clone(),
                });
            }
        }
        for executing in state.executing.values() {
            requests.push(RequestDump {
                flow_schema: executing.arrival.flow.schema.clone(),
                queue: executing.queue.map_or(-1, position),
                index: -1,
                width: executing.arrival.width,
                arrived: executing.arrived.elapsed(),
                started: Some(executing.started.elapsed()),
                details: executing.arrival.details.clone(),
            });
        }
        let widths = |queue: &Queue, of: fn(&Width) -> u64| -> u64 {
            queue.waiting.iter().map(|w| of(&w.arrival.width)).sum()
        };
        Dump {
            queues: state
                .queues
                .iter()
                .map(|queue| QueueDump {
                    waiting: queue.waiting.len(),
                    executing: queue.executing,
                    seats_in_use: queue.seats_in_use,
                    next_dispatch_r: queue.next_dispatch_r,
                    initial_seats: widths(queue, |w| w.initial),
                    max_seats: widths(queue, Width::seats),
                    work: queue.work(),
                })
                .collect(),
            waiting: state.waiting,
            executing: state.executing.len(),
            totals: state.totals,
            requests,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flowcontrol::shuffle::flow_hash;

    const QUEUING: Queuing = Queuing::Queue {
        queues: 8,
        hand: 3,
        length: 4,
    };

    fn arrival(flow: &str, seats: u64) -> Arrival {
        Arrival {
            flow: Arc::default(),
            hash: flow_hash("s", flow),
            width: Width {
                initial: seats,
                ..Width::ONE
            },
            details: Details {
                distinguisher: flow.into(),
                user: flow.into(),
                verb: "get",
                path: "/".into(),
            },
        }
    }

    fn admitted(outcome: Outcome) -> Permit {
        match outcome {
            Outcome::Admitted(permit) => permit,
            Outcome::Queued(_) => panic!("queued"),
            Outcome::Refused(why) => panic!("{why:?}"),
        }
    }

    fn queued(outcome: Outcome) -> Ticket {
        match outcome {
            Outcome::Queued(ticket) => ticket,
            Outcome::Admitted(_) => panic!("admitted"),
            Outcome::Refused(why) => panic!("{why:?}"),
        }
    }

    fn soon() -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn seats_are_handed_on() {
        let set = QueueSet::new(QUEUING, 2);
        let (a, b) = (
            admitted(set.arrive(arrival("a", 1))),
            admitted(set.arrive(arrival("b", 1))),
        );
        let waiting = queued(set.arrive(arrival("c", 1)));
        assert_eq!((set.dump().executing, set.dump().waiting), (2, 1));
        drop(a);
        let c = waiting
            .wait(soon())
            .await
            .unwrap_or_else(|e| panic!("{e:?}"));
        drop((b, c));
        assert!(set.is_idle());
        assert_eq!(set.state.lock().seats_in_use, 0);
        assert_eq!(set.state.lock().active, 0);
    }

    #[tokio::test]
    async fn a_full_queue_and_a_level_without_queues_turn_away() {
        let set = QueueSet::new(QUEUING, 1);
        let running = admitted(set.arrive(arrival("a", 1)));
        let mut tickets = Vec::new();
        let full = loop {
            match set.arrive(arrival("a", 1)) {
                Outcome::Queued(ticket) => tickets.push(ticket),
                Outcome::Refused(why) => break why,
                Outcome::Admitted(_) => panic!("admitted"),
            }
        };
        // The flow has three queues of four places.
        assert_eq!((full, tickets.len()), (Refusal::QueueFull, 12));
        drop(tickets);
        assert_eq!(set.dump().waiting, 0);
        drop(running);
        let reject = QueueSet::new(Queuing::Reject, 1);
        let running = admitted(reject.arrive(arrival("a", 1)));
        assert!(matches!(
            reject.arrive(arrival("a", 1)),
            Outcome::Refused(Refusal::ConcurrencyLimit)
        ));
        drop(running);
        admitted(reject.arrive(arrival("a", 1)));
        let exempt = QueueSet::new(Queuing::Exempt, 0);
        let all: Vec<_> = (0..100)
            .map(|_| admitted(exempt.arrive(arrival("a", 1))))
            .collect();
        assert_eq!(exempt.dump().executing, all.len());
    }

    #[tokio::test]
    async fn who_waits_too_long_is_turned_away() {
        let set = QueueSet::new(QUEUING, 1);
        let _running = admitted(set.arrive(arrival("a", 1)));
        let ticket = queued(set.arrive(arrival("b", 1)));
        let at = tokio::time::Instant::now() + Duration::from_millis(20);
        assert_eq!(ticket.wait(at).await.err(), Some(Refusal::TimeOut));
        let dump = set.dump();
        assert_eq!(
            (dump.waiting, dump.totals.timed_out, dump.totals.rejected),
            (0, 1, 1)
        );
    }

    #[tokio::test]
    async fn wide_requests_take_many_seats_and_too_wide_ones_are_served_alone() {
        let set = QueueSet::new(QUEUING, 4);
        let wide = admitted(set.arrive(arrival("a", 3)));
        let small = admitted(set.arrive(arrival("b", 1)));
        let next = queued(set.arrive(arrival("c", 2)));
        drop(small);
        assert_eq!(set.dump().waiting, 1, "one seat is not enough for two");
        drop(wide);
        let next = next.wait(soon()).await.unwrap_or_else(|e| panic!("{e:?}"));
        let huge = queued(set.arrive(arrival("d", 9)));
        drop(next);
        assert!(huge.wait(soon()).await.is_ok());
    }

    /// A flow that floods the level does not keep a modest one waiting behind all it has sent.
    #[tokio::test]
    async fn flows_are_served_in_turn() {
        let queuing = Queuing::Queue {
            queues: 64,
            hand: 1,
            length: 100,
        };
        let set = QueueSet::new(queuing, 1);
        let running = admitted(set.arrive(arrival("flood", 1)));
        let mut flood: Vec<_> = (0..50)
            .map(|_| queued(set.arrive(arrival("flood", 1))))
            .collect();
        let modest = queued(set.arrive(arrival("modest", 1)));
        let turn = tokio::spawn(modest.wait(soon()));
        drop(running);
        let mut served = 0;
        while !turn.is_finished() {
            let next = flood.remove(0);
            match next
                .wait(tokio::time::Instant::now() + Duration::from_millis(50))
                .await
            {
                Ok(permit) => {
                    served += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    drop(permit);
                }
                Err(_) => break,
            }
        }
        assert!(served <= 3, "{served} of the flood went before");
        assert!(turn.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn lingering_seats_come_back() {
        let set = QueueSet::new(QUEUING, 1);
        let mut lingering = arrival("a", 1);
        lingering.width.last = 1;
        lingering.width.lingering = Duration::from_millis(30);
        drop(admitted(set.arrive(lingering)));
        let next = queued(set.arrive(arrival("b", 1)));
        assert!(next.wait(soon()).await.is_ok());
        assert!(set.is_idle());
    }

    #[tokio::test]
    async fn a_raised_limit_takes_effect_at_once() {
        let set = QueueSet::new(QUEUING, 1);
        let _running = admitted(set.arrive(arrival("a", 1)));
        let next = queued(set.arrive(arrival("b", 1)));
        set.configure(QUEUING, 2);
        assert!(next.wait(soon()).await.is_ok());
    }
}
