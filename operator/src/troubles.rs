//! What any copy of a volume says stands in its way: the one way from Replicas, which tenants can't read, to the Dot or Branch and to the events
//! of pods. No list says which troubles pass: whatever an agent finds does, also what only a newer agent knows (issue 12, 2.7). Pure.

use std::sync::Arc;

use dotgraft_api::{Condition, ConditionType, Place, Replica, says};

use crate::conditions::{Wanted, same};

/// Most nodes that one condition tells of.
const NODES: usize = 3;

/// One trouble of one copy.
#[derive(Debug, Clone, Copy)]
pub struct Trouble<'a> {
    /// As the copy has it.
    pub condition: &'a Condition,
    /// The copy's node.
    pub node: &'a str,
    /// It is the owner's copy.
    pub of_owner: bool,
}

impl Trouble<'_> {
    /// What it says; of a copy that isn't the owner's with its node.
    pub fn sentence(&self) -> String {
        let said = if self.condition.message.is_empty() { &self.condition.reason } else { &self.condition.message };
        if self.of_owner { said.clone() } else { format!("on node `{}`: {said}", self.node) }
    }
}

/// Of a type that this version doesn't know, being true is a trouble. `Ready` only sums the others up.
fn is_trouble(c: &Condition) -> bool {
    let Some(status) = says(c) else { return false };
    match c.type_.parse::<ConditionType>() {
        Ok(ConditionType::Ready) => false,
        Ok(type_) => type_.is_trouble(status),
        Err(_) => status,
    }
}

/// Every trouble of every copy: the owner's first, then by node.
pub fn of<'a>(replicas: &'a [Arc<Replica>], owner: Option<&Place>) -> Vec<Trouble<'a>> {
    let told = |r: &'a Arc<Replica>| {
        let of_owner = owner.is_some_and(|o| o.pool == r.spec.pool);
        let conditions = r.status.iter().flat_map(|s| s.conditions.iter());
        conditions.filter(|c| is_trouble(c)).map(move |condition| Trouble { condition, node: &r.spec.node, of_owner })
    };
    let mut all: Vec<Trouble<'a>> = replicas.iter().flat_map(told).collect();
    all.sort_by_key(|t| (!t.of_owner, t.node));
    all
}

/// They as conditions: one of each type, with what each node says of it.
pub fn conditions(troubles: &[Trouble<'_>]) -> Vec<Wanted> {
    let mut list: Vec<Wanted> = Vec::new();
    for first in troubles {
        if list.iter().any(|w| w.type_() == first.condition.type_) {
            continue;
        }
        let alike: Vec<_> = troubles.iter().filter(|t| t.condition.type_ == first.condition.type_).collect();
        let mut text = alike.iter().take(NODES).map(|t| t.sentence()).collect::<Vec<_>>().join("; ");
        if alike.len() > NODES {
            text = format!("{text}; and on {} other nodes", alike.len() - NODES);
        }
        list.push(same(first.condition).saying(text));
    }
    list
}

/// They in one line, for who waits for the copy on that node: what the owner's copy says, and what that one does.
pub fn line(troubles: &[Trouble<'_>], node: &str) -> Option<String> {
    let concerned = troubles.iter().filter(|t| t.of_owner || t.node == node);
    let mut told: Vec<String> = concerned.map(|t| format!("{} ({})", t.sentence(), t.condition.type_)).collect();
    told.dedup();
    (!told.is_empty()).then(|| told.join("; "))
}

#[cfg(test)]
mod tests {
    use dotgraft_api::{CopyRole, Desired, ReplicaSpec, Time};
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::filesystem::spare::Marks;
    use crate::pools::tests::pool_id;
    use crate::testing::{self, FS};

    fn copy(node: &str, conditions: &[(&str, bool)]) -> Arc<Replica> {
        let spec = ReplicaSpec { fs_id: FS.into(), node: node.into(), pool: pool_id(node), desired: Desired::default() };
        let mut copy = testing::replica(spec, Marks::default(), CopyRole::Replica);
        let condition = |(type_, status): &(&str, bool)| Condition {
            type_: (*type_).into(),
            status: if *status { "True" } else { "False" }.into(),
            reason: "NoSpace".into(),
            message: format!("{type_} of {node}"),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        };
        copy.status.as_mut().unwrap().conditions = conditions.iter().map(condition).collect();
        Arc::new(copy)
    }
    fn told(copies: &[Arc<Replica>]) -> Vec<(String, String)> {
        let owner = Place { node: "n1".into(), pool: pool_id("n1") };
        conditions(&of(copies, Some(&owner))).iter().map(|w| (w.type_().to_owned(), w.message().to_owned())).collect()
    }

    #[test]
    fn whatever_any_copy_says_is_told_by_whom() {
        for type_ in ConditionType::ALL.iter().filter(|t| t.is_trouble(true)) {
            let word = type_.as_str();
            assert_eq!(told(&[copy("n1", &[(word, true)])]), [(word.to_owned(), format!("{word} of n1"))]);
            assert_eq!(told(&[copy("n2", &[(word, true)])]), [(word.to_owned(), format!("on node `n2`: {word} of n2"))]);
            assert!(told(&[copy("n1", &[(word, false)])]).is_empty(), "{word}");
        }
        assert_eq!(told(&[copy("n1", &[("Opened", false)])]).len(), 1, "a good thing that is missing");
        assert!(told(&[copy("n1", &[("Opened", true), ("Ready", false), ("Progressing", true)])]).is_empty());
        assert_eq!(told(&[copy("n1", &[("OfANewerAgent", true)])]).len(), 1);
    }

    #[test]
    fn nodes_that_say_the_same_share_a_condition_and_the_owner_comes_first() {
        let copies: Vec<_> = ["n5", "n4", "n3", "n2", "n1"].iter().map(|n| copy(n, &[("DeletionBlocked", true)])).collect();
        let all = told(&copies);
        assert_eq!(all.len(), 1);
        assert!(all[0].1.starts_with("DeletionBlocked of n1; on node `n2`: ") && all[0].1.ends_with("and on 2 other nodes"), "{all:?}");
    }

    #[test]
    fn who_waits_for_a_copy_hears_of_it_and_of_the_owners() {
        let copies = [copy("n1", &[("MoveBlocked", true)]), copy("n2", &[("ReceiveFailed", true)]), copy("n3", &[("Superseded", true)])];
        let owner = Place { node: "n1".into(), pool: pool_id("n1") };
        let all = of(&copies, Some(&owner));
        assert_eq!(line(&all, "n2").unwrap(), "MoveBlocked of n1 (MoveBlocked); on node `n2`: ReceiveFailed of n2 (ReceiveFailed)");
        assert_eq!(line(&of(&[copy("n1", &[])], Some(&owner)), "n2"), None);
    }
}
