//! What runs for a Filesystem, and what sleeps before it is tried again. At most one task runs per [`Slot`]; what ends is taken out once, by its
//! operation, so a late end of an earlier incarnation changes nothing.

use std::collections::BTreeMap;

use super::event::{Ctx, Out, Task};
use crate::ids::{BootTime, OpId};
use crate::words::{JobKey, ReqId};

/// Things that run one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    /// Create, recover, open, delete.
    Life,
    /// What touches the head: commit, final commit, thaw.
    Head,
    /// Making the head unwritable: behind nothing else.
    Freeze,
    /// Whether something has the head mounted; a planned fence that found it so sleeps here.
    Look,
    /// Removing a commit; one that can't go (mounted somewhere) holds up no commit and no fence.
    Removal,
    /// Asking those that start from a commit here.
    Pins,
    /// Taking a stream.
    Receive,
    /// Removing partials.
    Discard,
    /// Reading the qgroup.
    Usage,
    /// A job's listing, estimate or send.
    Job(JobKey, JobLane),
    /// Reading and changing authority, and the last word to an importer.
    Move,
    /// Only a sleep: until a head that was mounted is tried again.
    MoveFence,
    /// Only a sleep: until a handoff that was given up is begun anew.
    MoveBegin,
    /// A mount request.
    Mount(ReqId),
    /// One kept commit for a copy that lacks it.
    Lend,
}

/// A job's two lanes: estimates run beside a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum JobLane {
    /// List and send.
    Main,
    /// Estimates.
    Estimate,
}

/// A task in flight.
#[derive(Debug, Clone)]
struct Running {
    slot: Slot,
    task: Task,
    cancelled: bool,
    run_seq: u64,
}

/// A task that was in flight.
#[derive(Debug)]
pub(super) struct Taken {
    /// Where it ran.
    pub(super) slot: Slot,
    /// What was asked for.
    pub(super) task: Task,
    /// The run's own sequence number, for jobs.
    pub(super) run_seq: u64,
}

/// When a slot may try again.
#[derive(Debug, Clone, Copy)]
struct Backoff {
    failures: u32,
    not_before: BootTime,
}

/// Backoff between tries of one slot: 200 ms doubling to 30 s, each with up to a quarter of jitter.
const BACKOFF_FIRST_MS: u64 = 200;
const BACKOFF_LAST_MS: u64 = 30_000;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Tasks {
    generation: u64,
    seq: u64,
    running: BTreeMap<OpId, Running>,
    backoff: BTreeMap<Slot, Backoff>,
}

impl Tasks {
    /// Of an incarnation: nothing runs.
    pub(super) const fn new(generation: u64) -> Self {
        Self { generation, seq: 0, running: BTreeMap::new(), backoff: BTreeMap::new() }
    }

    // ---- views ----

    pub(super) fn is_running(&self, slot: Slot) -> bool {
        self.running.values().any(|r| r.slot == slot)
    }

    /// Nothing runs at all.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Free, and not sleeping after a failure.
    pub(super) fn is_ready(&self, slot: Slot, now: BootTime) -> bool {
        !self.is_running(slot) && self.backoff.get(&slot).is_none_or(|b| b.not_before <= now)
    }

    /// Something like this runs.
    pub(super) fn runs(&self, is_it: impl Fn(Slot, &Task) -> bool) -> bool {
        self.running.values().any(|r| is_it(r.slot, &r.task))
    }

    /// The slot in which that operation runs.
    pub(super) fn slot_of(&self, op: OpId) -> Option<Slot> {
        self.running.get(&op).map(|r| r.slot)
    }

    /// The run that it works for, and its number there.
    pub(super) fn run_of(&self, op: OpId) -> Option<(JobKey, u64)> {
        match self.running.get(&op) {
            Some(Running { slot: Slot::Job(key, _), run_seq, .. }) => Some((*key, *run_seq)),
            _ => None,
        }
    }

    /// When the next sleep ends that nothing runs in. One that was over at `now` counts no more: what wanted to go on has gone on then.
    pub(super) fn next_wake(&self, now: BootTime) -> Option<BootTime> {
        let sleeps = self.backoff.iter().filter(|(slot, b)| b.not_before > now && !self.is_running(**slot));
        sleeps.map(|(_, b)| b.not_before).min()
    }

    // ---- changes ----

    pub(super) fn start(&mut self, slot: Slot, task: Task, out: &mut Out) {
        self.start_for_run(slot, task, 0, out);
    }

    pub(super) fn start_for_run(&mut self, slot: Slot, task: Task, run_seq: u64, out: &mut Out) {
        self.seq += 1;
        let op = OpId { generation: self.generation, seq: self.seq };
        self.running.insert(op, Running { slot, task: task.clone(), cancelled: false, run_seq });
        out.tasks.push((op, task));
    }

    /// It has ended. `None`: it is none of ours, or not any more.
    pub(super) fn take(&mut self, op: OpId) -> Option<Taken> {
        self.running.remove(&op).map(|r| Taken { slot: r.slot, task: r.task, run_seq: r.run_seq })
    }

    pub(super) fn cancel(&mut self, slot: Slot, out: &mut Out) {
        // What this very event has asked for is not started at all.
        out.tasks.retain(|(op, _)| self.running.get(op).is_none_or(|r| r.slot != slot) || self.running.remove(op).is_none());
        for (op, running) in &mut self.running {
            if running.slot == slot && !running.cancelled {
                running.cancelled = true;
                out.cancels.push(*op);
            }
        }
    }

    /// Cancels all but what belongs to the copy's life; an unmount is only waited for. `false`: something of it runs still.
    pub(super) fn cancel_all(&mut self, out: &mut Out) -> bool {
        let others = self.running.values().filter(|r| r.slot != Slot::Life);
        let (slots, awaited): (Vec<Slot>, Vec<bool>) = others.map(|r| (r.slot, matches!(r.task, Task::Unmount(_)))).unzip();
        for (slot, awaited) in slots.iter().zip(awaited) {
            if !awaited {
                self.cancel(*slot, out);
            }
        }
        slots.is_empty()
    }

    /// It has failed, or was told "no": tried again later, and rarer each time.
    pub(super) fn back_off(&mut self, slot: Slot, ctx: &Ctx) {
        let failures = self.backoff.get(&slot).map_or(0, |b| b.failures).saturating_add(1);
        let wait = (BACKOFF_FIRST_MS << (failures - 1).min(16)).min(BACKOFF_LAST_MS);
        let jitter = ctx.jitter % (wait / 4 + 1);
        self.backoff.insert(slot, Backoff { failures, not_before: ctx.boot.plus_ms(wait + jitter) });
    }

    /// Nothing failed, and yet it is not tried again for so long.
    pub(super) fn sleep(&mut self, slot: Slot, ms: u64, ctx: &Ctx) {
        self.backoff.insert(slot, Backoff { failures: 0, not_before: ctx.boot.plus_ms(ms) });
    }

    /// It went well, or who asked tries again, not we: its failures are forgotten.
    pub(super) fn rest(&mut self, slot: Slot) {
        self.backoff.remove(&slot);
    }

    /// A change of what is wanted ends a sleep.
    pub(super) fn wake(&mut self, slot: Slot) {
        if let Some(b) = self.backoff.get_mut(&slot) {
            b.not_before = BootTime(0);
        }
    }
}

/// What a part has at hand while it works: the moment, what goes out, and what runs.
pub(super) struct Desk<'a> {
    pub(super) ctx: &'a Ctx,
    pub(super) out: &'a mut Out,
    pub(super) tasks: &'a mut Tasks,
}

impl Desk<'_> {
    pub(super) fn is_ready(&self, slot: Slot) -> bool {
        self.tasks.is_ready(slot, self.ctx.boot)
    }

    pub(super) fn start(&mut self, slot: Slot, task: Task) {
        self.tasks.start(slot, task, self.out);
    }
}

/// A part's desk, beside the part itself.
macro_rules! desk {
    ($fs:expr, $ctx:expr, $out:expr) => {
        $crate::filesystem::tasks::Desk { ctx: $ctx, out: $out, tasks: &mut $fs.tasks }
    };
}
pub(super) use desk;
