//! The writable head: whether it is on disk, whether this node has it open (R0), and whether it is fenced or half of it is. What is asked of it
//! is carried out in [`super::fence`], [`super::reset`] and [`super::life`].

use crate::ids::{BootTime, Epoch};
use crate::model::Problem;
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
        /// When the swap that won it was sent: authority can't have been older (R0).
        sent: BootTime,
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
}

/// Who waits for a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// A request; the flag forces it while something has the head mounted.
    Request(ReqId, bool),
    /// A handoff: never while something has the head mounted.
    Handoff,
    /// Authority is elsewhere: at once, whoever has the head mounted.
    Loss,
}

impl For {
    /// Whether the head is fenced even while something has it mounted.
    pub(super) const fn is_forced(self) -> bool {
        match self {
            Self::Request(_, force) => force,
            Self::Handoff => false,
            Self::Loss => true,
        }
    }

    const fn request(self) -> Option<ReqId> {
        match self {
            Self::Request(req, _) => Some(req),
            Self::Handoff | Self::Loss => None,
        }
    }
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
    /// Who waits for a fence, and whether the one that runs is theirs.
    fences: Vec<(For, bool)>,
    thaw_for: Option<ReqId>,
}

impl Head {
    /// A restart of the agent in the same boot keeps the opening (R0); `used`, as mounts may be there.
    pub(super) fn recovered(base: Option<&Base>, here: &Here) -> Self {
        let kept = base.is_some_and(|b| b.opened.is_some_and(|o| o.boot == here.boot && o.epoch == b.epoch));
        let opening = if kept { Opening::Open { sent: BootTime(0), used: true } } else { Opening::Closed };
        Self { on_disk: false, opening, won: None, half: false, undo: false, fences: Vec::new(), thaw_for: None }
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
            Opening::Closed => false,
            Opening::Open { used: true, .. } => true,
            Opening::Open { sent, used: false } => now.since_ms(sent) <= OPENING_FRESH_MS,
        }
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

    /// It is recorded.
    pub(super) const fn open(&mut self, won: Won) {
        let used = matches!(self.opening, Opening::Open { used: true, .. });
        self.opening = Opening::Open { sent: won.sent, used };
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

    /// Someone wants it fenced.
    pub(super) fn want_fence(&mut self, whose: For) {
        self.fences.push((whose, false));
    }

    /// The next one is started; whose.
    pub(super) fn start_fence(&mut self) -> Option<For> {
        let (whose, started) = self.fences.first_mut()?;
        *started = true;
        Some(*whose)
    }

    /// A handoff that has asked for one, and it was not begun, needs it no more.
    pub(super) fn unwant_fence_of_handoff(&mut self) {
        self.fences.retain(|(whose, _)| *whose != For::Handoff);
    }

    /// The one that was started has ended. Who had asked hears of it; `true`: a handoff had.
    pub(super) fn answer_started(&mut self, answer: &Answer, out: &mut Out) -> bool {
        let started: Vec<For> = self.fences.extract_if(.., |(_, started)| *started).map(|(whose, _)| whose).collect();
        out.answers.extend(started.iter().filter_map(|f| f.request()).map(|req| (req, answer.clone())));
        started.contains(&For::Handoff)
    }

    /// Nobody gets one any more, or all have it.
    pub(super) fn answer_all(&mut self, answer: &Answer, out: &mut Out) {
        let all = std::mem::take(&mut self.fences);
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
