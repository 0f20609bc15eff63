//! The loop step of a Filesystem's owner, without I/O (design §4): event → decision → journal → effects and answers.
//!
//! The agent's actor and the simulator both drive this one machine, so that what is tested is what runs. The shell owns clock, journal,
//! tasks and channels; the machine owns the order of things:
//!
//! 1. [`Machine::handle`] decides about one event. What follows from it is locked up in the [`Step`].
//! 2. The shell makes [`Step::records`] durable, all or none.
//! 3. [`Machine::settle`] hands out the effects only if that went well: nothing becomes visible before it is durable. If it went
//!    badly, the state in memory is dropped, every requester is refused, and the shell is told to read the journal again
//!    ([`Effect::Reload`], [`Machine::recovered`]); what is wanted of the copy is not forgotten.
//!
//! `W` is how the shell reaches a requester: a channel in the agent, a note in the simulator.

use std::collections::{BTreeMap, VecDeque};

use crate::filesystem::{Answer, Ctx, Event, Filesystem, FilesystemStatus, Here, Note, Out, Record, Recovered, ReqId, Task};
use crate::ids::{BootTime, FsId, OpId};
use crate::model::Problem;

/// Pause before the journal is read again after a failed commit: 400 ms, doubling to 25.6 s.
const RELOAD_FIRST_MS: u64 = 200;
const RELOAD_DOUBLINGS: u32 = 7;

/// What the shell does next, in the order given.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<W> {
    /// Tell this task to stop; its `Done` still comes.
    Cancel(OpId),
    /// Start this task; it ends with [`Event::Done`].
    Start(OpId, Task),
    /// The status may have changed: show it.
    Publish,
    /// Answer this requester.
    Answer(W, Answer),
    /// An answer to nobody: a defect of ours, to be logged.
    Stray(ReqId, Answer),
    /// Tell people.
    Tell(Note),
    /// Cancel every task and wait for its end; what they say meanwhile is dropped.
    StopTasks,
    /// Tell this requester that its request failed.
    Refuse(W, Problem),
    /// After so many milliseconds, read the journal and call [`Machine::recovered`].
    Reload {
        /// The pause.
        after_ms: u64,
    },
    /// Nothing of the Filesystem is left: the actor ends.
    End,
}

/// What one event has led to. Its effects can't be had before its records were offered to the journal.
#[derive(Debug, Default)]
#[must_use = "it is not over before it is settled"]
pub struct Step {
    out: Out,
}

impl Step {
    /// To be made durable together, or not at all; often none.
    pub fn records(&self) -> &[Record] {
        &self.out.records
    }
}

/// A Filesystem's state machine and its requesters.
#[derive(Debug)]
pub struct Machine<W> {
    id: FsId,
    here: Here,
    fs: Filesystem,
    /// The journal was read, and nothing has failed since.
    live: bool,
    waiting: BTreeMap<ReqId, W>,
    last_req: u64,
    /// The last word of the Replica object: an incarnation that begins has forgotten it.
    wanted: Option<Event>,
    /// What a new incarnation handles before anything from outside.
    first: VecDeque<Event>,
    failures: u32,
}

impl<W> Machine<W> {
    /// A machine that has yet to read its journal: [`Machine::recovered`] comes next.
    pub fn new(id: FsId, here: Here) -> Self {
        let fs = Filesystem::recover(id, here.clone(), 0, Recovered::default());
        Self { id, here, fs, live: false, waiting: BTreeMap::new(), last_req: 0, wanted: None, first: VecDeque::new(), failures: 0 }
    }

    /// Whose it is.
    pub fn id(&self) -> FsId {
        self.id
    }

    /// The journal was read. `generation` must differ from that of every earlier incarnation in this process.
    pub fn recovered(&mut self, generation: u64, rows: Recovered) {
        self.fs = Filesystem::recover(self.id, self.here.clone(), generation, rows);
        self.live = true;
        self.first = self.wanted.iter().cloned().chain([Event::Start]).collect();
    }

    /// Its journal was read, and it can handle events.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// What has to be handled before the shell looks for anything from outside.
    pub fn first(&mut self) -> Option<Event> {
        self.first.pop_front()
    }

    /// The name under which a request's answer finds `waiter`.
    pub fn wait(&mut self, waiter: W) -> ReqId {
        self.last_req += 1;
        let req = ReqId(self.last_req);
        self.waiting.insert(req, waiter);
        req
    }

    /// The requester of a task that carries its name ([`Task::Receive`]).
    pub fn waiter(&mut self, req: ReqId) -> Option<&mut W> {
        self.waiting.get_mut(&req)
    }

    /// Who waits for an answer, oldest first.
    pub fn waiters(&self) -> impl ExactSizeIterator<Item = &W> {
        self.waiting.values()
    }

    /// The actor ends or dies: these get no answer any more.
    pub fn into_waiters(self) -> impl Iterator<Item = W> {
        self.waiting.into_values()
    }

    /// Decides about one event. While the journal has to be read an event leads to nothing, but for what is wanted of the copy.
    pub fn handle(&mut self, event: Event, ctx: &Ctx) -> Step {
        if matches!(event, Event::Desired(_) | Event::Vanished) {
            self.wanted = Some(event.clone());
        }
        let mut out = Out::default();
        if self.live {
            self.fs.handle(event, ctx, &mut out);
        }
        Step { out }
    }

    /// The journal has answered for this step's records: what is to be done now.
    pub fn settle(&mut self, step: Step, journaled: Result<(), Problem>) -> Vec<Effect<W>> {
        match journaled {
            Ok(()) => self.carried_out(step.out),
            Err(problem) => self.dropped(&problem),
        }
    }

    fn carried_out(&mut self, out: Out) -> Vec<Effect<W>> {
        self.failures = 0;
        let mut effects: Vec<Effect<W>> = out.cancels.into_iter().map(Effect::Cancel).collect();
        effects.extend(out.tasks.into_iter().map(|(op, task)| Effect::Start(op, task)));
        effects.push(Effect::Publish);
        effects.extend(out.answers.into_iter().map(|(req, answer)| match self.waiting.remove(&req) {
            Some(waiter) => Effect::Answer(waiter, answer),
            None => Effect::Stray(req, answer),
        }));
        effects.extend(out.notes.into_iter().map(Effect::Tell));
        if out.finished {
            effects.push(Effect::End);
        }
        effects
    }

    /// Nothing of the step becomes visible, and what is in memory is ahead of the journal: it goes.
    fn dropped(&mut self, problem: &Problem) -> Vec<Effect<W>> {
        self.fs = Filesystem::recover(self.id, self.here.clone(), 0, Recovered::default());
        self.live = false;
        self.first.clear();
        self.failures += 1;
        let after_ms = RELOAD_FIRST_MS << self.failures.min(RELOAD_DOUBLINGS);
        let refused = std::mem::take(&mut self.waiting).into_values().map(|waiter| Effect::Refuse(waiter, problem.clone()));
        [Effect::StopTasks].into_iter().chain(refused).chain([Effect::Reload { after_ms }]).collect()
    }

    /// When [`Event::Timer`] must be delivered at the latest, if at all, by the node's boot clock.
    pub fn next_wake(&self) -> Option<BootTime> {
        self.fs.next_wake()
    }

    /// What people see; of a machine that has yet to read its journal: nothing is here.
    pub fn status(&self) -> FilesystemStatus {
        self.fs.status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{BootId, Fresh, PoolId, Timestamp};
    use crate::model::{Place, Reason};
    use uuid::Uuid;

    fn machine() -> Machine<u8> {
        let id = |n: u128| Uuid::from_u128(0x0198_c2a5_7f00_7000_8000_0000_0000_0000 + n);
        let place = Place { node: "n1".parse().unwrap(), pool: PoolId::from_uuid(id(2)) };
        let here = Here { place, boot: BootId::from_uuid(id(3)), stream_version: 2, kernel_release: "6.18".into() };
        Machine::new(FsId::from_uuid(id(1)), here)
    }

    fn ctx() -> Ctx {
        Ctx { now: Timestamp(1), boot: BootTime(1), fresh: Fresh::new(Uuid::from_u128(7)), jitter: 0 }
    }

    #[test]
    fn a_failed_journal_refuses_whoever_waits_shows_nothing_and_forgets_no_wish() {
        let mut machine = machine();
        machine.recovered(1, Recovered::default());
        assert_eq!((machine.first(), machine.first()), (Some(Event::Start), None));
        let full = Problem::new(Reason::NoSpace, "full");
        for (failures, after_ms) in [(1, 400), (2, 800)] {
            machine.wait(failures);
            let step = machine.handle(Event::Vanished, &ctx());
            let expected = [Effect::StopTasks, Effect::Refuse(failures, full.clone()), Effect::Reload { after_ms }];
            assert_eq!(machine.settle(step, Err(full.clone())), expected);
            assert!(!machine.is_live() && machine.waiters().len() == 0);
            // What comes before the journal is read again leads to nothing.
            let step = machine.handle(Event::Start, &ctx());
            assert!(step.records().is_empty() && step.out == Out::default());
            machine.recovered(u64::from(failures) + 1, Recovered::default());
            assert_eq!((machine.first(), machine.first(), machine.first()), (Some(Event::Vanished), Some(Event::Start), None));
        }
    }
}
