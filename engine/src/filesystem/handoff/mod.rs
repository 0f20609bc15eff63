//! Moving authority to another node, the simple form (migration.md §1–4; ADRs 5 and 20). What gives away is the *exporter*, what takes the
//! *importer*.
//!
//! - Exporter: *mig-begin* → run (precopy) → fence, once nothing has the head mounted → *mig-frozen* → `Pend` → *mig-pending* →
//!   run (final commit) → `Export` → *mig-export* → `Commit` → *mig-committed*, *mig-kept*: a replica from then on, which keeps the
//!   final commit until the new owner has opened → *mig-end*
//! - Importer: *import-start* → asks until authority has decided → *import-finish* → head from the final commit → `Open` (R0)
//!
//! Before `pending` is set any trouble cancels and thaws. After it only a *won* Abort thaws, never a timeout or a read (R2); each swap
//! ends with what authority says then, and `judge` is the one place that says what follows from it.
//!
//! Here: the state, and its row. `exporter`, `importer`: the two sides; `judge`: decisions; `report`: how it is told of.

mod exporter;
mod importer;
mod judge;
mod report;

use std::collections::BTreeMap;

use super::event::{self, Ctx, Out};
use super::record::{MigrationPhase, MigrationRow, PartyRow, Record, RequestRow};
use super::status::MigrationStatus;
use crate::format::Kind;
use crate::ids::{BootTime, CommitId, Epoch, MigId, NodeName, Timestamp};
use crate::model::{Place, Problem};
use crate::run::JobRow;
use crate::words::JobKey;

/// Object and authority disagree: until they are looked at again, if the object doesn't change before.
const LOOK_AGAIN_MS: u64 = 5_000;
/// How long an importer waits between two looks at authority.
const ASK_MS: u64 = 500;
/// Commit is sent only on answers of all parties that are no older.
const ACK_FRESH_MS: u64 = 10_000;

/// What both sides know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Terms {
    mig: MigId,
    /// The epoch that ends with it.
    epoch: Epoch,
    /// The other side.
    peer: Place,
    /// When it began here.
    started: Timestamp,
}

/// The head is fenced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cut {
    /// The commit that has all of the head.
    commit: CommitId,
    /// When that was; `None`, of an old row: not told.
    at: Option<Timestamp>,
    /// Bytes that were sent before.
    precopied: u64,
    /// Authority has been read since, by this incarnation, and had not decided.
    looked: bool,
}

/// `pending` was seen set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Agreed {
    /// In this attempt.
    attempt: u64,
    /// It is to be given up, for this reason.
    give_up: Option<Problem>,
    /// Whoever has to acknowledge before authority goes. Now that is the importer alone.
    parties: BTreeMap<NodeName, Party>,
}

/// What a party has acknowledged. Only `holds` is durable: how fresh that is, is of this incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Party {
    /// The attempt of which it has said that it holds all, durably.
    holds: Option<u64>,
    /// When it last said so.
    heard: Option<BootTime>,
    /// Since when it hasn't answered.
    unheard: Option<BootTime>,
}

impl Agreed {
    /// With the importer as the only party.
    fn with(peer: &NodeName, attempt: u64, holds: Option<u64>) -> Self {
        let party = Party { holds, ..Party::default() };
        Self { attempt, give_up: None, parties: [(peer.clone(), party)].into() }
    }

    /// That node holds all of it, durably.
    fn acknowledged(&mut self, node: &NodeName, now: BootTime) {
        let party = Party { holds: Some(self.attempt), heard: Some(now), unheard: None };
        self.parties.insert(node.clone(), party);
    }

    /// That node didn't answer; since when it hasn't.
    fn unheard(&mut self, node: &NodeName, now: BootTime) -> BootTime {
        *self.parties.entry(node.clone()).or_default().unheard.get_or_insert(now)
    }

    /// Each party has said in the last moments that it holds all of this very attempt.
    fn is_acknowledged(&self, now: BootTime) -> bool {
        let holds = |p: &Party| p.holds == Some(self.attempt) && p.heard.is_some_and(|at| now.since_ms(at) <= ACK_FRESH_MS);
        !self.parties.is_empty() && self.parties.values().all(holds)
    }

    fn rows(&self) -> BTreeMap<NodeName, PartyRow> {
        self.parties.iter().map(|(node, p)| (node.clone(), PartyRow { holds: p.holds })).collect()
    }
}

/// How the run of the frozen head stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Stall {
    /// Bytes that it had sent when it last brought any.
    brought: u64,
    /// Since it first failed without a byte after that.
    since: Option<BootTime>,
}

/// How far an exporter is. What is not in [`MigrationRow`] is of this incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// `MigBegin`: nothing is decided. The fence that was asked for may be there; or else who has the head mounted, for people.
    Begun { fenced: Option<CommitId>, waits: Option<String> },
    /// The head is fenced; `pending` may be set or not.
    Frozen(Cut),
    /// `pending` was seen set; only a won Abort thaws (R2).
    Pending(Cut, Agreed, Stall),
    /// `EExport`: not thawed without the result of a compare-and-swap.
    Exported(Cut, Agreed),
    /// Not handed over: to be thawed. The attempt, if there was one, and why.
    Aborted(Cut, Option<u64>, Option<Problem>),
}

/// This copy gives.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exporting {
    terms: Terms,
    /// This incarnation has begun it. After a restart it is gone on with if all parties hold it, else ended.
    live: bool,
    phase: Phase,
}

/// This copy takes: `EImportStart`, ambiguous, read-only.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Importing {
    terms: Terms,
    attempt: u64,
    commit: CommitId,
    /// Cursors that came along.
    jobs: Vec<JobRow>,
    /// Intended commits that came along.
    requests: Vec<RequestRow>,
}

/// This copy has given, and keeps the final commit until the new owner has opened (R4).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    terms: Terms,
    attempt: u64,
    commit: CommitId,
    /// When the head was fenced.
    at: Option<Timestamp>,
    /// Cursors that left.
    jobs: Vec<JobRow>,
    /// Intended commits that left.
    requests: Vec<RequestRow>,
}

/// A handoff in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
enum InHand {
    Exporting(Exporting),
    Importing(Importing),
    Kept(Kept),
}

impl Kept {
    /// The epoch that its Commit made.
    const fn made(&self) -> Epoch {
        Epoch(self.terms.epoch.0.saturating_add(1))
    }

    fn row(&self) -> MigrationRow {
        let row = row_of(MigrationPhase::Committed, &self.terms, self.attempt);
        MigrationRow { final_commit: Some(self.commit), frozen: self.at, jobs: self.jobs.clone(), requests: self.requests.clone(), ..row }
    }
}

impl Exporting {
    const fn cut(&self) -> Option<&Cut> {
        match &self.phase {
            Phase::Begun { .. } => None,
            Phase::Frozen(cut) | Phase::Pending(cut, ..) | Phase::Exported(cut, _) | Phase::Aborted(cut, ..) => Some(cut),
        }
    }

    const fn attempt(&self) -> Option<u64> {
        match &self.phase {
            Phase::Begun { .. } | Phase::Frozen(_) => None,
            Phase::Pending(_, agreed, _) | Phase::Exported(_, agreed) => Some(agreed.attempt),
            Phase::Aborted(_, attempt, _) => *attempt,
        }
    }

    const fn give_up(&self) -> Option<&Problem> {
        match &self.phase {
            Phase::Pending(_, agreed, _) | Phase::Exported(_, agreed) => agreed.give_up.as_ref(),
            Phase::Aborted(_, _, why) => why.as_ref(),
            Phase::Begun { .. } | Phase::Frozen(_) => None,
        }
    }

    const fn agreed(&mut self) -> Option<&mut Agreed> {
        match &mut self.phase {
            Phase::Pending(_, agreed, _) | Phase::Exported(_, agreed) => Some(agreed),
            Phase::Begun { .. } | Phase::Frozen(_) | Phase::Aborted(..) => None,
        }
    }

    const fn key(&self) -> JobKey {
        JobKey::Handoff(self.terms.mig)
    }

    fn row(&self) -> MigrationRow {
        let phase = match &self.phase {
            Phase::Begun { .. } => MigrationPhase::Begun,
            Phase::Frozen(_) => MigrationPhase::Frozen,
            Phase::Pending(..) => MigrationPhase::Pending,
            Phase::Exported(..) => MigrationPhase::Exported,
            Phase::Aborted(..) => MigrationPhase::Aborted,
        };
        let cut = self.cut();
        let row = row_of(phase, &self.terms, self.attempt().unwrap_or(0));
        let parties = match &self.phase {
            Phase::Pending(_, agreed, _) | Phase::Exported(_, agreed) => agreed.rows(),
            Phase::Begun { .. } | Phase::Frozen(_) | Phase::Aborted(..) => BTreeMap::new(),
        };
        MigrationRow { final_commit: cut.map(|c| c.commit), frozen: cut.and_then(|c| c.at), parties, ..row }
    }
}

impl Importing {
    fn row(&self) -> MigrationRow {
        let row = row_of(MigrationPhase::ImportStart, &self.terms, self.attempt);
        MigrationRow { final_commit: Some(self.commit), jobs: self.jobs.clone(), requests: self.requests.clone(), ..row }
    }
}

fn row_of(phase: MigrationPhase, terms: &Terms, attempt: u64) -> MigrationRow {
    MigrationRow {
        version: Kind::Migration.newest(),
        phase,
        mig: terms.mig,
        attempt,
        epoch: terms.epoch,
        peer: terms.peer.clone(),
        final_commit: None,
        started: terms.started,
        frozen: None,
        jobs: Vec::new(),
        requests: Vec::new(),
        parties: BTreeMap::new(),
    }
}

/// What a row says. Each phase but the first has a final commit ([`super::record::Recovered::parse`] sees to it).
fn in_hand(row: MigrationRow) -> Option<InHand> {
    let terms = Terms { mig: row.mig, epoch: row.epoch, peer: row.peer, started: row.started };
    let cut = row.final_commit.map(|commit| Cut { commit, at: row.frozen, precopied: 0, looked: false });
    // A row of 0.1 has no parties: its phase says what the importer has acknowledged.
    let holds = row.parties.get(&terms.peer.node).map_or((row.phase == MigrationPhase::Exported).then_some(row.attempt), |p| p.holds);
    let agreed = Agreed::with(&terms.peer.node, row.attempt, holds);
    let phase = match row.phase {
        MigrationPhase::Begun => Phase::Begun { fenced: None, waits: None },
        MigrationPhase::Frozen => Phase::Frozen(cut?),
        MigrationPhase::Pending => Phase::Pending(cut?, agreed, Stall::default()),
        MigrationPhase::Exported => Phase::Exported(cut?, agreed),
        MigrationPhase::Aborted => Phase::Aborted(cut?, Some(row.attempt).filter(|a| *a > 0), None),
        MigrationPhase::ImportStart => {
            let (attempt, commit) = (row.attempt, row.final_commit?);
            return Some(InHand::Importing(Importing { terms, attempt, commit, jobs: row.jobs, requests: row.requests }));
        }
        MigrationPhase::Committed => {
            let (attempt, commit, at) = (row.attempt, row.final_commit?, row.frozen);
            return Some(InHand::Kept(Kept { terms, attempt, commit, at, jobs: row.jobs, requests: row.requests }));
        }
    };
    Some(InHand::Exporting(Exporting { terms, live: false, phase }))
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Handoff {
    in_hand: Option<InHand>,
    /// The last one that ended.
    last: Option<MigrationStatus>,
    /// The API said that somebody else owns it: to be looked at.
    doubt: bool,
    /// A handoff is pending that this copy has no record of: it is aborted before anything is opened (R8).
    stray: bool,
}

impl Handoff {
    pub(super) fn recovered(row: Option<MigrationRow>) -> Self {
        Self { in_hand: row.and_then(in_hand), ..Self::default() }
    }

    // ---- views ----

    pub(super) const fn is_in_hand(&self) -> bool {
        self.in_hand.is_some()
    }

    /// Who owns it next is not decided. What was handed over is, although its row is still kept.
    pub(super) const fn is_undecided(&self) -> bool {
        matches!(self.in_hand, Some(InHand::Exporting(_) | InHand::Importing(_)))
    }

    /// The epoch that this copy's own Commit made, while it keeps the final commit because the new owner has not been seen to open.
    pub(super) const fn handed_over(&self) -> Option<Epoch> {
        match &self.in_hand {
            Some(InHand::Kept(kept)) => Some(kept.made()),
            _ => None,
        }
    }

    /// Authority says, or may say, something else than this copy knows: it is asked first.
    pub(super) const fn is_in_doubt(&self) -> bool {
        self.doubt
    }

    /// Something is pending that this copy has no record of.
    pub(super) const fn is_stray(&self) -> bool {
        self.stray
    }

    /// The head is fenced for it: nobody else thaws it (R2).
    pub(super) fn is_fenced(&self) -> bool {
        self.exporting().is_some_and(|e| e.cut().is_some())
    }

    /// It needs that commit.
    pub(super) fn pins(&self, id: CommitId) -> bool {
        match &self.in_hand {
            Some(InHand::Exporting(e)) => e.cut().is_some_and(|c| c.commit == id),
            Some(InHand::Importing(i)) => i.commit == id,
            Some(InHand::Kept(kept)) => kept.commit == id,
            None => false,
        }
    }

    /// All is here, and authority has not decided: whose handoff, in which attempt, with which commit.
    pub(super) fn import_start(&self) -> Option<(MigId, u64, CommitId)> {
        self.importing().map(|i| (i.terms.mig, i.attempt, i.commit))
    }

    const fn exporting(&self) -> Option<&Exporting> {
        match &self.in_hand {
            Some(InHand::Exporting(e)) => Some(e),
            _ => None,
        }
    }

    const fn exporting_mut(&mut self) -> Option<&mut Exporting> {
        match &mut self.in_hand {
            Some(InHand::Exporting(e)) => Some(e),
            _ => None,
        }
    }

    const fn importing(&self) -> Option<&Importing> {
        match &self.in_hand {
            Some(InHand::Importing(i)) => Some(i),
            _ => None,
        }
    }

    // ---- steps ----

    /// Authority says, or may say, something else than this copy knows.
    pub(super) const fn doubt(&mut self) {
        self.doubt = true;
    }

    /// Authority was read, and had not decided.
    const fn looked(&mut self) {
        if let Some(Exporting { phase: Phase::Frozen(cut) | Phase::Pending(cut, ..) | Phase::Exported(cut, _), .. }) = self.exporting_mut()
        {
            cut.looked = true;
        }
    }

    /// Something is pending that this copy has no record of, or not any more.
    pub(super) const fn stray(&mut self, stray: bool) {
        self.stray = stray;
    }

    /// Handed over: the final commit stays.
    fn keep(&mut self, kept: Kept, out: &mut Out) {
        out.records.push(Record::Migration("mig-kept", Box::new(kept.row())));
        self.in_hand = Some(InHand::Kept(kept));
    }

    const fn settle_doubt(&mut self) {
        self.doubt = false;
    }

    /// All of the copy is gone.
    pub(super) fn clear(&mut self) {
        self.in_hand = None;
    }

    fn begin(&mut self, terms: Terms, out: &mut Out) {
        let phase = Phase::Begun { fenced: None, waits: None };
        self.export_as("mig-begin", Exporting { terms, live: true, phase }, out);
    }

    /// The exporter's next phase, durably.
    fn enter(&mut self, record: &'static str, phase: Phase, out: &mut Out) {
        if let Some(e) = self.exporting().cloned() {
            self.export_as(record, Exporting { phase, ..e }, out);
        }
    }

    fn export_as(&mut self, record: &'static str, e: Exporting, out: &mut Out) {
        out.records.push(Record::Migration(record, Box::new(e.row())));
        self.in_hand = Some(InHand::Exporting(e));
    }

    fn import(&mut self, handoff: event::Handoff, ctx: &Ctx, out: &mut Out) {
        let terms = Terms { mig: handoff.mig, epoch: handoff.epoch, peer: handoff.from, started: ctx.now };
        let (jobs, requests) = (handoff.jobs, handoff.requests);
        let i = Importing { terms, attempt: handoff.attempt, commit: handoff.final_commit, jobs, requests };
        out.records.push(Record::Migration("import-start", Box::new(i.row())));
        self.in_hand = Some(InHand::Importing(i));
    }

    /// It is over; the record says how.
    fn end(&mut self, record: &'static str, out: &mut Out) {
        if self.in_hand.take().is_some() {
            out.records.push(Record::MigrationGone(record));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PoolId;
    use uuid::Uuid;

    fn row(phase: MigrationPhase, attempt: u64) -> MigrationRow {
        let peer = Place { node: "n2".parse().unwrap(), pool: PoolId::from_uuid(Uuid::from_u128(2)) };
        let terms = Terms { mig: MigId::from_uuid(Uuid::from_u128(3)), epoch: Epoch(4), peer, started: Timestamp(5) };
        row_of(phase, &terms, attempt)
    }

    fn parties(holds: Option<u64>) -> BTreeMap<NodeName, PartyRow> {
        [("n2".parse().unwrap(), PartyRow { holds })].into()
    }

    #[test]
    fn what_the_importer_has_acknowledged_is_in_the_row_and_is_no_answer_of_today() {
        let commit = Some(CommitId::from_uuid(Uuid::from_u128(6)));
        let held = MigrationRow { final_commit: commit, parties: parties(Some(2)), ..row(MigrationPhase::Exported, 2) };
        let Some(InHand::Exporting(Exporting { phase: Phase::Exported(_, mut agreed), .. })) = in_hand(held) else { unreachable!() };
        let (peer, now) = ("n2".parse().unwrap(), BootTime(60_000));
        assert!(!agreed.is_acknowledged(now), "it must answer again after a restart");
        agreed.acknowledged(&peer, now);
        assert!(agreed.is_acknowledged(now.plus_ms(ACK_FRESH_MS)) && !agreed.is_acknowledged(now.plus_ms(ACK_FRESH_MS + 1)));
        agreed.parties.insert("n3".parse().unwrap(), Party::default());
        assert!(!agreed.is_acknowledged(now), "each party has to");
        agreed.parties.clear();
        assert!(!agreed.is_acknowledged(now), "nobody has acknowledged anything");
        agreed.acknowledged(&peer, now);
        let next = Agreed { attempt: 3, ..agreed };
        assert!(!next.is_acknowledged(now), "of another attempt");
    }

    #[test]
    fn the_final_commit_is_pinned_as_long_as_the_handoff_is_in_hand_or_kept() {
        let [commit, other] = [6, 7].map(|n| CommitId::from_uuid(Uuid::from_u128(n)));
        for phase in [MigrationPhase::Frozen, MigrationPhase::Exported, MigrationPhase::ImportStart, MigrationPhase::Committed] {
            let handoff = Handoff::recovered(Some(MigrationRow { final_commit: Some(commit), ..row(phase, 1) }));
            assert!(handoff.pins(commit) && !handoff.pins(other), "{phase:?}");
        }
        assert!(!Handoff::recovered(None).pins(commit));
    }

    #[test]
    fn a_row_past_the_begin_without_its_final_commit_is_refused_not_guessed() {
        use super::super::record::Recovered;
        use crate::format::FormatError;
        let rows = |phase| vec![("migration".to_owned(), serde_json::to_vec(&row(phase, 1)).unwrap())];
        assert!(Recovered::parse(&rows(MigrationPhase::Begun)).is_ok());
        assert!(matches!(Recovered::parse(&rows(MigrationPhase::Frozen)), Err(FormatError::Damaged { .. })));
    }

    #[test]
    fn each_row_of_version_1_is_a_state_and_that_state_is_the_row() {
        use MigrationPhase as P;
        let back = |row: MigrationRow| match in_hand(row) {
            Some(InHand::Exporting(e)) => Some(e.row()),
            Some(InHand::Importing(i)) => Some(i.row()),
            Some(InHand::Kept(kept)) => Some(kept.row()),
            None => None,
        };
        let commit = Some(CommitId::from_uuid(Uuid::from_u128(6)));
        assert_eq!(back(row(P::Begun, 0)), Some(row(P::Begun, 0)));
        for (phase, attempt) in [(P::Frozen, 0), (P::Pending, 2), (P::Exported, 2), (P::Aborted, 0), (P::Aborted, 2)] {
            let row = MigrationRow { final_commit: commit, frozen: Some(Timestamp(7)), ..row(phase, attempt) };
            let said = match phase {
                P::Pending => parties(None),
                P::Exported => parties(Some(2)),
                _ => BTreeMap::new(),
            };
            assert_eq!(back(row.clone()), Some(MigrationRow { parties: said, ..row }), "what it says in the form of today");
        }
        let start = MigrationRow { final_commit: commit, ..row(P::ImportStart, 2) };
        assert_eq!(back(start.clone()), Some(start));
        let kept = MigrationRow { final_commit: commit, frozen: Some(Timestamp(7)), ..row(P::Committed, 2) };
        assert_eq!(back(kept.clone()), Some(kept));
    }
}
