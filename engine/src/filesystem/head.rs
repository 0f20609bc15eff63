//! The writable head: whether it is on disk, whether this node has it open (R0), and whether it is fenced or half of it is. What is asked of it
//! is carried out in [`super::fence`], [`super::reset`] and [`super::life`].

use crate::ids::{BootTime, Epoch};
use crate::model::{Commit, Problem};
use crate::words::ReqId;

use super::event::{Answer, Here, Out};
use super::record::Base;

/// How old an unused opening may be before the first mount must renew it (R0).
const OPENING_FRESH_MS: u64 = 5_000;

/// How the right to write stands on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// Not opened in this boot.
    Closed,
    /// Opened; `used` once something was mounted under it.
    Open {
        /// For this epoch.
        epoch: Epoch,
        /// When the swap that won it was sent: authority can't have been older (R0). `None`: in an earlier life of the agent.
        sent: Option<BootTime>,
        /// Whether a mount has been made under it.
        used: bool,
    },
}

/// The CAS of R0 was won.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Won {
    /// For this epoch.
    pub(super) epoch: Epoch,
    /// With authority's attempt as it was then.
    pub(super) attempt: u64,
    /// When it was sent.
    pub(super) sent: BootTime,
    /// Version of the object after it.
    pub(super) version: Option<u64>,
}

/// Who waits for a fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum For {
    /// A request; the flag forces it while something has the head mounted.
    Request(ReqId, bool),
    /// A handoff: never while something has the head mounted.
    Handoff,
    /// A reset, which keeps what the head holds as this commit: never while something has it mounted.
    Reset(Box<Commit>),
    /// Authority is elsewhere: at once, whoever has the head mounted.
    Loss,
}

impl For {
    /// The head is frozen even while something has it mounted.
    const fn is_forced(&self) -> bool {
        matches!(self, Self::Request(_, true) | Self::Loss)
    }

    const fn request(&self) -> Option<ReqId> {
        match self {
            Self::Request(req, _) => Some(*req),
            Self::Handoff | Self::Reset(_) | Self::Loss => None,
        }
    }

    /// Where it begins.
    const fn first_step(&self) -> Step {
        if self.is_forced() { Step::Freeze } else { Step::Look }
    }
}

/// What is next of the fence that is wanted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// To look whether something has the head mounted.
    Look,
    /// To freeze it.
    Freeze,
    /// It is frozen: to take the final commit.
    Commit,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Head {
    on_disk: bool,
    opening: Opening,
    /// An opening that was won and is on its way to disk.
    won: Option<Won>,
    /// The disk has a fence that the journal does not know: `Fence` has to end what was begun, as what its commit holds is not proven.
    half: bool,
    /// A fence or thaw that nobody was told has worked: the head is to be writable again.
    undo: bool,
    /// Who waits for a fence, the first in hand, and whether the final commit that runs is theirs. From the moment it is not empty no new
    /// mount of the head is admitted.
    fences: Vec<(For, bool)>,
    /// Of the first of them.
    step: Step,
    thaw_for: Option<ReqId>,
}

impl Head {
    /// A restart of the agent in the same boot keeps the opening (R0), and whether it was used. One that was not is too old by now: when it
    /// was sent isn't known any more.
    pub(super) fn recovered(base: Option<&Base>, here: &Here) -> Self {
        let kept = base.and_then(|b| b.opened.filter(|o| o.boot == here.boot && o.epoch == b.epoch));
        let opening = kept.map_or(Opening::Closed, |o| Opening::Open { epoch: o.epoch, sent: None, used: o.used });
        Self { on_disk: false, opening, won: None, half: false, undo: false, fences: Vec::new(), step: Step::Look, thaw_for: None }
    }

    // ---- views ----

    pub(super) const fn is_there(&self) -> bool {
        self.on_disk
    }

    pub(super) fn is_open(&self) -> bool {
        self.opening != Opening::Closed
    }

    /// A mount may turn writable now: the opening was used, or is young enough to be (R0).
    pub(super) const fn is_fresh(&self, now: BootTime) -> bool {
        match self.opening {
            Opening::Open { used: true, .. } => true,
            Opening::Open { sent: Some(sent), used: false, .. } => now.since_ms(sent) <= OPENING_FRESH_MS,
            Opening::Closed | Opening::Open { sent: None, used: false, .. } => false,
        }
    }

    /// Something was mounted under the opening.
    pub(super) const fn is_used(&self) -> bool {
        matches!(self.opening, Opening::Open { used: true, .. })
    }

    pub(super) const fn won(&self) -> Option<Won> {
        self.won
    }

    /// The disk may have a fence that the journal does not know.
    pub(super) const fn is_half_fenced(&self) -> bool {
        self.half
    }

    /// The head is to be made writable again.
    pub(super) const fn is_to_be_thawed(&self) -> bool {
        self.undo
    }

    pub(super) const fn is_fence_wanted(&self) -> bool {
        !self.fences.is_empty()
    }

    /// A handoff has asked for one.
    pub(super) fn is_fence_of_handoff_wanted(&self) -> bool {
        self.fences.iter().any(|(whose, _)| *whose == For::Handoff)
    }

    // ---- on disk, and open ----

    pub(super) const fn made(&mut self) {
        self.on_disk = true;
    }

    pub(super) const fn dropped(&mut self) {
        self.on_disk = false;
    }

    /// The disk was looked at.
    pub(super) const fn seen(&mut self, on_disk: bool) {
        self.on_disk = on_disk;
    }

    /// The swap was won; it counts once it is on disk and in the journal.
    pub(super) const fn win(&mut self, won: Won) {
        self.won = Some(won);
    }

    /// What was won is no longer on its way.
    pub(super) const fn take_won(&mut self) -> Option<Won> {
        self.won.take()
    }

    /// It is recorded. What was mounted under an opening of an earlier epoch has proven nothing of this one.
    pub(super) fn open(&mut self, won: Won) {
        let used = matches!(self.opening, Opening::Open { used: true, epoch, .. } if epoch == won.epoch);
        self.opening = Opening::Open { epoch: won.epoch, sent: Some(won.sent), used };
    }

    /// Something is mounted under the opening.
    pub(super) const fn used(&mut self) {
        if let Opening::Open { used, .. } = &mut self.opening {
            *used = true;
        }
    }

    /// Nothing is written here until authority is opened anew.
    pub(super) const fn close(&mut self) {
        self.opening = Opening::Closed;
        self.won = None;
    }

    // ---- fences ----

    /// Someone wants it fenced. A loss comes before all others, once; where the head is frozen already, it has what it wants.
    pub(super) fn want_fence(&mut self, whose: For) {
        let of_loss = whose == For::Loss;
        if of_loss && (self.is_frozen_for_fence() || self.fences.iter().any(|(f, _)| *f == For::Loss)) {
            return;
        }
        let at = if of_loss { 0 } else { self.fences.len() };
        if at == 0 {
            self.step = whose.first_step();
        }
        self.fences.insert(at, (whose, false));
    }

    /// What is next, and for whom.
    pub(super) fn fence(&self) -> Option<(&For, Step)> {
        self.fences.first().map(|(whose, _)| (whose, self.step))
    }

    /// A fence has frozen it, and not ended.
    pub(super) fn is_frozen_for_fence(&self) -> bool {
        self.is_fence_wanted() && self.step == Step::Commit
    }

    /// Nothing has it mounted.
    pub(super) fn looked(&mut self) {
        if self.fence().is_some_and(|(_, step)| step == Step::Look) {
            self.step = Step::Freeze;
        }
    }

    /// It is frozen, and the journal doesn't know. `false`: nobody wants that any more.
    pub(super) fn froze(&mut self) -> bool {
        (self.half, self.undo) = (true, false);
        self.step = Step::Commit;
        self.is_fence_wanted()
    }

    /// The final commit of the first is being taken.
    pub(super) fn start_final(&mut self) {
        if let Some((_, started)) = self.fences.first_mut() {
            *started = true;
        }
    }

    /// The first can't have it now.
    pub(super) fn drop_first(&mut self) -> Option<For> {
        let first = (!self.fences.is_empty()).then(|| self.fences.remove(0).0);
        self.begin_next();
        first
    }

    /// Whoever comes first now begins anew.
    fn begin_next(&mut self) {
        self.step = self.fences.first().map_or(Step::Look, |(whose, _)| whose.first_step());
    }

    /// A handoff that has asked for one, and it was not begun, needs it no more.
    pub(super) fn unwant_fence_of_handoff(&mut self) {
        if self.is_fence_of_handoff_wanted() {
            self.fences.retain(|(whose, _)| *whose != For::Handoff);
            self.begin_next();
        }
    }

    /// The one whose final commit was taken.
    pub(super) fn take_started(&mut self) -> Option<For> {
        let at = self.fences.iter().position(|(_, started)| *started)?;
        let (whose, _) = self.fences.remove(at);
        self.begin_next();
        Some(whose)
    }

    /// Nobody gets one any more, or all have it.
    pub(super) fn answer_all(&mut self, answer: &Answer, out: &mut Out) {
        let all = std::mem::take(&mut self.fences);
        self.step = Step::Look;
        out.answers.extend(all.into_iter().filter_map(|(f, _)| f.request()).map(|req| (req, answer.clone())));
    }

    /// The head is fenced, and journal and disk say so; or it is gone, and so is its fence.
    pub(super) const fn settle(&mut self) {
        (self.half, self.undo) = (false, false);
    }

    /// A fence or thaw may have got half-way. With `undo` the volume is served as it was.
    pub(super) const fn half_fenced(&mut self, undo: bool) {
        (self.half, self.undo) = (true, undo);
    }

    /// Whether it is to be made writable again.
    pub(super) const fn undo_fence(&mut self, undo: bool) {
        self.undo = undo;
    }

    /// Someone waits for a thaw.
    pub(super) const fn thaw_for(&mut self, req: ReqId) {
        self.thaw_for = Some(req);
    }

    /// It has ended.
    pub(super) fn answer_thaw(&mut self, result: Result<(), Problem>, out: &mut Out) {
        if let Some(req) = self.thaw_for.take() {
            out.answers.push((req, Answer::Plain(result)));
        }
    }

    /// All of it is gone from this node's pool.
    pub(super) const fn clear(&mut self) {
        self.close();
        self.on_disk = false;
    }
}
