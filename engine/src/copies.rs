//! No last copy goes: which copies of a Filesystem hold which kept commits, and whether one of them may be taken away. This is the only such
//! rule; whatever takes a copy away (the collector of spare copies, a person's drop, fewer replicas, a job's or a node's end) asks it first.
//!
//! What a copy holds is what its agent has reported, never a guess from its newest commit: a push may have brought only that. Where the report
//! doesn't say, the answer is *unknown*; an unknown copy saves no other, and doesn't go itself.

use std::collections::BTreeSet;

use crate::ids::CommitId;

/// What a copy says that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Commits that are there, complete and durable; neither removed nor on their way.
    pub commits: BTreeSet<CommitId>,
    /// There are no others. `false`: the report was cut, or comes from a program that reports the newest ones only.
    pub complete: bool,
}

impl Held {
    /// Whether a commit is there; `None`: the report doesn't say.
    pub fn has(&self, id: CommitId) -> Option<bool> {
        match (self.commits.contains(&id), self.complete) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        }
    }
}

/// How far a copy can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is wanted, and its disk is there and works: what it holds is safe there.
    Stays,
    /// It is on its way out, or its node doesn't answer now: what it holds may still be there, and is no other copy's excuse.
    Doubtful,
    /// Its disk is gone for good: it holds nothing any more, whatever it said.
    Lost,
}

/// One copy of a Filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy<P> {
    /// Where it is.
    pub at: P,
    /// How far it can be relied on.
    pub standing: Standing,
    /// What it says that it holds.
    pub held: Held,
}

/// Why a copy may not go: commits that no other copy is known to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastCopy {
    /// Commits that it holds and no other copy is known to; by id.
    pub here: Vec<CommitId>,
    /// Commits that it may hold, as its report doesn't say, and no other copy is known to; by id.
    pub perhaps: Vec<CommitId>,
}

/// How well a kept commit is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Safety {
    /// No copy holds it, and none is left that might.
    Nowhere,
    /// No copy is known to hold it, but one that doesn't answer, or doesn't say, might.
    Unknown,
    /// So many copies that stay hold it, 1 or more.
    Copies(usize),
}

/// All copies of one Filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies<P> {
    all: Vec<Copy<P>>,
}

impl<P: PartialEq> Copies<P> {
    /// The copies, each place once.
    pub fn new(all: Vec<Copy<P>>) -> Self {
        Self { all }
    }

    /// Whether the copy at `at` may be taken away while the commits of `wanted` are to be kept.
    ///
    /// # Errors
    /// [`LastCopy`] when it holds, or may hold, a wanted commit that no other copy that stays is known to hold.
    pub fn may_go(&self, at: &P, wanted: &BTreeSet<CommitId>) -> Result<(), LastCopy> {
        let Some(copy) = self.all.iter().find(|c| c.at == *at) else { return Ok(()) };
        let mut last = LastCopy { here: Vec::new(), perhaps: Vec::new() };
        for id in wanted {
            if self.all.iter().any(|c| c.at != *at && is_safe_in(c, *id)) {
                continue;
            }
            match has(copy, *id) {
                Some(true) => last.here.push(*id),
                None => last.perhaps.push(*id),
                Some(false) => {}
            }
        }
        if last.here.is_empty() && last.perhaps.is_empty() { Ok(()) } else { Err(last) }
    }

    /// The same, and from then on it counts as going: of two copies that hold a commit, not both may go because of each other.
    ///
    /// # Errors
    /// As [`Copies::may_go`].
    pub fn leave(&mut self, at: &P, wanted: &BTreeSet<CommitId>) -> Result<(), LastCopy> {
        self.may_go(at, wanted)?;
        for copy in self.all.iter_mut().filter(|c| c.at == *at && c.standing == Standing::Stays) {
            copy.standing = Standing::Doubtful;
        }
        Ok(())
    }

    /// The commits of `wanted` that the copy at `at` says it lacks, oldest id first, each with the copy to bring it from: the first by place of
    /// those that stay and are known to hold it, so that the answer stays the same. Nothing is brought on a guess.
    pub fn to_bring(&self, at: &P, wanted: &BTreeSet<CommitId>) -> Vec<(CommitId, &P)>
    where
        P: Ord,
    {
        let Some(copy) = self.all.iter().find(|c| c.at == *at) else { return Vec::new() };
        let lacks = wanted.iter().filter(|id| copy.held.has(**id) == Some(false));
        lacks.filter_map(|id| Some((*id, self.holders(*id).filter(|p| *p != at).min()?))).collect()
    }

    /// Where a commit is known to be, in copies that stay.
    pub fn holders(&self, id: CommitId) -> impl Iterator<Item = &P> {
        self.all.iter().filter(move |c| is_safe_in(c, id)).map(|c| &c.at)
    }

    /// How well a commit is held.
    pub fn safety(&self, id: CommitId) -> Safety {
        match self.holders(id).count() {
            0 if self.all.iter().all(|c| has(c, id) == Some(false)) => Safety::Nowhere,
            0 => Safety::Unknown,
            n => Safety::Copies(n),
        }
    }
}

fn has<P>(copy: &Copy<P>, id: CommitId) -> Option<bool> {
    if copy.standing == Standing::Lost { Some(false) } else { copy.held.has(id) }
}

fn is_safe_in<P>(copy: &Copy<P>, id: CommitId) -> bool {
    copy.standing == Standing::Stays && copy.held.has(id) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> CommitId {
        CommitId::from_uuid(uuid::Uuid::from_u128(n))
    }
    fn ids(list: &[u128]) -> BTreeSet<CommitId> {
        list.iter().map(|n| id(*n)).collect()
    }
    fn copy(at: u8, commits: &[u128]) -> Copy<u8> {
        Copy { at, standing: Standing::Stays, held: Held { commits: ids(commits), complete: true } }
    }

    #[test]
    fn the_newest_commit_alone_is_no_excuse_for_an_older_one() {
        let all = Copies::new(vec![copy(1, &[3]), copy(2, &[1, 2, 3])]);
        assert_eq!(all.may_go(&2, &ids(&[1, 3])), Err(LastCopy { here: vec![id(1)], perhaps: vec![] }));
        assert_eq!(all.may_go(&2, &ids(&[3])), Ok(()), "nobody wants 1 and 2");
        assert_eq!(all.may_go(&1, &ids(&[1, 2, 3])), Ok(()));
        assert_eq!(all.may_go(&9, &ids(&[1])), Ok(()), "nothing is there");
    }

    #[test]
    fn two_copies_do_not_go_because_of_each_other() {
        let mut all = Copies::new(vec![copy(1, &[1]), copy(2, &[1])]);
        assert_eq!(all.leave(&1, &ids(&[1])), Ok(()));
        assert!(all.leave(&2, &ids(&[1])).is_err());
    }

    #[test]
    fn a_lost_copy_that_leaves_holds_nothing_as_before() {
        let mut all = Copies::new(vec![Copy { standing: Standing::Lost, ..copy(1, &[1]) }]);
        assert_eq!(all.leave(&1, &ids(&[1])), Ok(()));
        assert_eq!(all.safety(id(1)), Safety::Nowhere);
    }

    #[test]
    fn what_is_not_said_saves_nothing_and_stays() {
        let mut cut = copy(1, &[3]);
        cut.held.complete = false;
        let all = Copies::new(vec![cut, copy(2, &[1])]);
        assert!(all.may_go(&2, &ids(&[1])).is_err(), "1 may lack it");
        assert_eq!(all.may_go(&1, &ids(&[2])), Err(LastCopy { here: vec![], perhaps: vec![id(2)] }), "1 may have it");
        assert_eq!(all.may_go(&1, &ids(&[1])), Ok(()), "2 has it");
    }

    #[test]
    fn a_copy_that_is_away_saves_no_other_and_a_lost_one_holds_nothing() {
        let mut away = copy(1, &[1]);
        away.standing = Standing::Doubtful;
        assert!(Copies::new(vec![away.clone(), copy(2, &[1])]).may_go(&2, &ids(&[1])).is_err());
        assert!(Copies::new(vec![away.clone(), copy(2, &[])]).may_go(&1, &ids(&[1])).is_err(), "it may come back with it");
        away.standing = Standing::Lost;
        assert_eq!(Copies::new(vec![away, copy(2, &[])]).may_go(&1, &ids(&[1])), Ok(()));
    }

    #[test]
    fn what_a_copy_lacks_is_brought_from_who_is_known_to_hold_it_and_stays() {
        let mut away = copy(4, &[5]);
        away.standing = Standing::Doubtful;
        let all = Copies::new(vec![copy(1, &[1]), copy(3, &[1, 2]), copy(2, &[2, 3]), away]);
        assert_eq!(all.to_bring(&1, &ids(&[1, 2, 3, 4, 5])), [(id(2), &2), (id(3), &2)]);
        assert_eq!(all.to_bring(&9, &ids(&[1])), [], "no copy is there");
        let mut cut = copy(1, &[1]);
        cut.held.complete = false;
        assert_eq!(Copies::new(vec![cut, copy(2, &[2])]).to_bring(&1, &ids(&[2])), [], "it may have it");
    }

    #[test]
    fn how_well_a_commit_is_held_is_told() {
        let mut away = copy(1, &[1, 2]);
        away.standing = Standing::Doubtful;
        let mut lost = copy(4, &[4]);
        lost.standing = Standing::Lost;
        let all = Copies::new(vec![away, copy(2, &[1, 3]), copy(3, &[3]), lost]);
        assert_eq!([1, 2, 3, 4].map(|n| all.safety(id(n))), [Safety::Copies(1), Safety::Unknown, Safety::Copies(2), Safety::Nowhere]);
        assert_eq!(all.holders(id(3)).copied().collect::<Vec<_>>(), [2, 3]);
    }
}
