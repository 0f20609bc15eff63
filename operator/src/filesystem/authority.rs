//! Authority as the operator may change it. The rules stand in [`dotgraft_engine::authority`]; here the objects become what those ask for,
//! and a refusal becomes what people read.

use std::sync::Arc;

use dotgraft_api as api;
use dotgraft_api::authority::{Malformed, read};
use dotgraft_api::{ConditionType, is_true};
use dotgraft_engine::authority::take::{self, CompleteTo, Copy, CopyRole, ImportStart, Newest, Taken};
use dotgraft_engine::authority::{Read, Refusal, verdict};
use dotgraft_engine::ids::{Epoch, NodeName, Timestamp};
use dotgraft_engine::model::Place;

use super::moving::wanted_node;
use super::plan::View;
use crate::conditions::Block;
use crate::pools;

/// Why authority stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stays {
    /// The rules say so.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// An object doesn't make sense.
    #[error("{0}")]
    Malformed(#[from] Malformed),
}

/// Authority from a lost owner, or back from one that never opened: what `steal` of the engine says.
///
/// # Errors
///
/// [`Stays`]: a refusal, or an object that can't be understood.
pub fn steal(view: &View) -> Result<api::Authority, Stays> {
    let (read, copies) = asked(view)?;
    let lost = read.authority.as_ref().is_some_and(|a| is_proven_lost(view, &(&a.owner).into()));
    Ok(next(&take::steal(&read, &copies, lost, wanted(view).as_ref())?))
}

/// Authority back to the copy on that node, which handed it over to an owner that has not opened yet (R4).
///
/// # Errors
///
/// [`Stays`]: a refusal, or an object that can't be understood.
pub fn give_back(view: &View, node: &str) -> Result<api::Authority, Stays> {
    let (read, copies) = asked(view)?;
    let node = node.parse().map_err(|e| malformed("wanted node", &e))?;
    Ok(next(&take::give_back(&read, &copies, &node)?))
}

/// Authority by a person's word: for the best copy, or the one on `node`.
///
/// # Errors
///
/// [`Stays`]: a refusal, or an object that can't be understood.
pub fn promote(view: &View, node: Option<&str>, accept_loss: bool) -> Result<api::Authority, Stays> {
    let (read, copies) = asked(view)?;
    let node = node.map(|n| n.parse().map_err(|e| malformed("promote.node", &e))).transpose()?;
    Ok(next(&take::promote(&read, &copies, node.as_ref(), accept_loss, wanted(view).as_ref())?))
}

/// Authority after a person has accepted that epoch.
///
/// # Errors
///
/// [`Stays`]: a refusal, or an object that can't be understood.
pub fn accept(view: &View, accepted: u64) -> Result<api::Authority, Stays> {
    let (read, copies) = asked(view)?;
    Ok((&take::accept(&read, Epoch(accepted), &copies)?).into())
}

/// Why a copy may not be told to go, whoever asks for it; `None`: it may.
pub fn needs(authority: &api::Authority, replica: &api::Replica) -> Option<Block> {
    let refusal = || -> Result<(), Stays> {
        let place = Place::try_from(&place_of(replica))?;
        let handed_over = replica.status.as_ref().and_then(|s| s.handed_over).map(Epoch);
        Ok(verdict::may_be_dropped(&authority.try_into()?, &place, handed_over)?)
    };
    let why = refusal().err()?;
    Some(Block::new(ConditionType::CopyNeeded, format!("the copy on node `{}` stays: {why}", replica.spec.node)))
}

/// As people read it, where it is worth a condition; what is nothing special is none.
pub fn block(stays: &Stays) -> Option<Block> {
    let reason = match stays {
        Stays::Refused(Refusal::WaitsFor(_)) => ConditionType::WaitsForCopy,
        Stays::Refused(Refusal::EqualClaims(..)) => ConditionType::EqualOwners,
        Stays::Refused(Refusal::NoAuthority) | Stays::Malformed(_) => ConditionType::AuthorityUnknown,
        Stays::Refused(_) => return None,
    };
    let more = match stays {
        Stays::Refused(Refusal::WaitsFor(at)) => {
            format!("; bring that node back, or give up what only it has: `kubectl dot promote --accept-loss` (not from {})", at.node)
        }
        Stays::Refused(Refusal::NoAuthority) => {
            "; no copy says that it was the owner: `kubectl dot adopt` on the node that is to own it".to_owned()
        }
        _ => String::new(),
    };
    Some(Block::new(reason, format!("{stays}{more}")))
}

fn next(taken: &Taken) -> api::Authority {
    (&taken.authority).into()
}

fn malformed(what: &'static str, why: &dyn std::fmt::Display) -> Malformed {
    Malformed { what, why: why.to_string() }
}

fn wanted(view: &View) -> Option<NodeName> {
    wanted_node(&view.fs, view.claim.as_ref()).and_then(|n| n.parse().ok())
}

/// What the rules ask for. A copy whose own words make no sense is none.
fn asked(view: &View) -> Result<(Read, Vec<Copy>), Malformed> {
    Ok((read(&view.fs)?, view.replicas.iter().filter_map(|r| copy(view, r)).collect()))
}

fn place_of(replica: &api::Replica) -> api::Place {
    api::Place { node: replica.spec.node.clone(), pool: replica.spec.pool.clone() }
}

/// Proof that an owner is lost: the out-of-service taint, no Node object, or another disk in its place.
pub fn is_proven_lost(view: &View, owner: &api::Place) -> bool {
    let node = view.pools.iter().find(|p| p.node == owner.node);
    pools::is_gone(&view.pools, owner) || node.is_some_and(|p| p.out_of_service)
}

fn copy(view: &View, replica: &Arc<api::Replica>) -> Option<Copy> {
    let place = place_of(replica);
    let status = replica.status.clone().unwrap_or_default();
    let superseded = is_true(&status.conditions, ConditionType::Superseded).is_some();
    let newest = status.recent_commits.first().filter(|_| status.commit_count > 0);
    let start = status.import_start.as_ref();
    Some(Copy {
        role: match status.role {
            api::CopyRole::Owner if superseded => CopyRole::Superseded,
            api::CopyRole::Owner => CopyRole::Owner,
            api::CopyRole::Replica | api::CopyRole::Receiving => CopyRole::Replica,
            api::CopyRole::Absent | api::CopyRole::Creating | api::CopyRole::Deleting => CopyRole::None,
        },
        epoch: Epoch(status.epoch),
        complete_to: complete_to(status.complete_to.as_ref()),
        newest: newest.and_then(|c| {
            let time = Timestamp(c.time.0.as_millisecond());
            Some(Newest { id: c.id.parse().ok()?, epoch: Epoch(c.epoch), time })
        }),
        import_start: start
            .and_then(|s| Some(ImportStart { mig: s.mig.parse().ok()?, attempt: s.attempt, final_commit: s.final_commit.parse().ok()? })),
        handed_over: status.handed_over.map(Epoch),
        wanted: replica.spec.desired.state == api::DesiredState::Present && !view.dropped.contains(&place.pool),
        ready: view.pools.iter().any(|p| p.place().as_ref() == Some(&place) && p.ready && !p.out_of_service),
        lost: is_proven_lost(view, &place),
        place: Place::try_from(&place).ok()?,
    })
}

/// What its agent says that it is complete to. A commit without a number was taken by a version before 0.2: then the newest commit decides.
pub fn complete_to(said: Option<&api::CompleteTo>) -> Option<CompleteTo> {
    let to = said.filter(|to| to.seq > 0)?;
    Some(CompleteTo { epoch: Epoch(to.epoch), seq: to.seq })
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
