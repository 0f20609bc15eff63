//! A kept commit that the owner lacks is brought to it from a copy that has it, by a wish on either side (`fetch`, `lend`): the owner is where
//! commits are branched from, restored, reset to and mounted. So an owner that was promoted without all of them gets them back. Pure.

use std::collections::BTreeMap;

use super::kept;
use super::plan::View;
use dotgraft_api::{CommitTransfer, CopyRole, Place};

/// Most transfers of one Filesystem at a time; both lists of a Replica are bounded by it.
const AT_ONCE: usize = 16;

/// Who takes what from whom, and who gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transfers {
    fetch: BTreeMap<Place, Vec<CommitTransfer>>,
    lend: BTreeMap<Place, Vec<CommitTransfer>>,
}

impl Transfers {
    /// What the copy there takes.
    pub fn fetch(&self, at: &Place) -> Vec<CommitTransfer> {
        self.fetch.get(at).cloned().unwrap_or_default()
    }
    /// What it gives.
    pub fn lend(&self, at: &Place) -> Vec<CommitTransfer> {
        self.lend.get(at).cloned().unwrap_or_default()
    }
}

/// What is to be brought to the owner, as far as it says that it owns: an owner that is about to be made takes nothing. At most as many at a
/// time as a list holds.
pub fn transfers(view: &View, owner: &Place) -> Transfers {
    let mut out = Transfers::default();
    let status = view.replicas.iter().find(|r| r.spec.pool == owner.pool).and_then(|r| r.status.as_ref());
    if !status.is_some_and(|s| s.role == CopyRole::Owner) {
        return out;
    }
    let (wanted, all) = (kept::wanted(view).into_keys().collect(), kept::copies(view));
    for (id, from) in all.to_bring(owner, &wanted).into_iter().take(AT_ONCE) {
        let transfer = |with: &Place| CommitTransfer { commit: id.to_string(), with: with.clone() };
        out.fetch.entry(owner.clone()).or_default().push(transfer(from));
        out.lend.entry(from.clone()).or_default().push(transfer(owner));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::kept::tests::{LATER, S2, drained, edit, holds, object};
    use super::super::plan::{Write, plan};
    use super::*;

    fn wishes(v: &View) -> Vec<(String, bool, String, String)> {
        let mut all = Vec::new();
        for write in plan(v).writes {
            if let Write::Update(spec, _) = write {
                let d = spec.desired;
                let name =
                    |list: Vec<CommitTransfer>, fetch| list.into_iter().map(move |t| (fetch, t.commit, t.with.node)).collect::<Vec<_>>();
                for (fetch, commit, with) in name(d.fetch, true).into_iter().chain(name(d.lend, false)) {
                    all.push((spec.node.clone(), fetch, commit, with));
                }
            }
        }
        all
    }

    #[test]
    fn what_the_owner_lacks_is_brought_from_who_holds_it_and_nothing_else() {
        let mut v = drained();
        let of = |node: &str, fetch, with: &str| (node.to_owned(), fetch, S2.to_owned(), with.to_owned());
        assert_eq!(wishes(&v), [of("n1", true, "n2"), of("n2", false, "n1")]);
        holds(&mut v, "n1", &[LATER, S2]);
        assert_eq!(wishes(&v), [], "it is there");
    }

    #[test]
    fn nothing_is_asked_for_on_a_guess() {
        let mut v = drained();
        edit(&mut v, "n1", |r| r.status.as_mut().unwrap().commit_count = 40);
        assert_eq!(wishes(&v), [], "the owner may have it");
        let mut v = drained();
        v.pools[1].ready = false;
        assert_eq!(wishes(&v), [], "who has it doesn't answer");
        let mut v = drained();
        v.commits.clear();
        assert_eq!(wishes(&v), [], "nobody wants it");
        let mut v = drained();
        edit(&mut v, "n1", |r| r.status.as_mut().unwrap().role = CopyRole::Replica);
        assert_eq!(wishes(&v), [], "it is about to be the owner");
    }

    #[test]
    fn no_more_is_brought_at_a_time_than_a_list_holds() {
        let mut v = drained();
        let id = |n: usize| format!("0198c2a5-7f00-7000-8000-00000000{n:04}");
        let ids: Vec<String> = (0..AT_ONCE + 4).map(id).collect();
        v.commits = ids.iter().map(|id| object(id, id)).collect();
        holds(&mut v, "n2", &ids.iter().map(String::as_str).collect::<Vec<_>>());
        let fetched: Vec<String> = wishes(&v).into_iter().filter(|w| w.1).map(|w| w.2).collect();
        assert_eq!(fetched, ids[..AT_ONCE], "the oldest ids first");
    }
}
