//! The admission policies and the rules of `engine::authority` give one verdict: for each of a generated table of (old, new, whose token).
//! Each transition is made as the rules make it, then each of its fields is changed; the API server and the function must agree on each.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use dotgraft_api::{Filesystem, FilesystemPhase, FilesystemStatus};
use dotgraft_engine::authority::{self, Attempt, Authority, ForkPoint, Opened, Pending, Phase, Read, Seen, may_agent_write};
use dotgraft_engine::ids::{BootId, Epoch, NodeName};
use dotgraft_engine::model::Place;
use kube::api::{Api, PostParams};
use serde_json::json;

use super::{BOOT, COMMIT, MIG, POOL_1, POOL_2, World, refused};
use crate::harness::{Case, Test};

const OTHER: &str = "00000000-0000-4000-8000-0000000000dd";
/// Rows that the table must have at least: fewer, and its generator is broken.
const AT_LEAST: usize = 600;

fn place(n: u8) -> Result<Place> {
    let pool = if n == 1 { POOL_1 } else { POOL_2 };
    Ok(Place { node: format!("n{n}").parse()?, pool: pool.parse()? })
}

/// What may stand in the API: idle, opened, and with a handoff pending.
fn olds() -> Result<Vec<Read>> {
    let idle = Authority { epoch: Epoch(4), attempt: 2, ..Authority::first(place(1)?) };
    let opened = Authority { opened: Some(Opened { epoch: Epoch(4), boot: BOOT.parse()? }), ..idle.clone() };
    let stale = Authority { opened: Some(Opened { epoch: Epoch(3), boot: BOOT.parse()? }), ..idle.clone() };
    let pending = Some(Pending { mig: MIG.parse()?, attempt: 2, to: place(2)?, final_commit: COMMIT.parse()? });
    let pending = Authority { pending, ..opened.clone() };
    let reads = [
        (Phase::New, idle),
        (Phase::Active, opened.clone()),
        (Phase::Active, stale),
        (Phase::Active, pending.clone()),
        (Phase::Deleting, opened),
        (Phase::Deleting, pending.clone()),
        (Phase::Released, pending),
    ];
    Ok(reads.into_iter().map(|(phase, a)| Read { phase, authority: Some(a), version: None }).collect())
}

/// Everything that either agent could make of it by the rules, and what only the operator makes.
fn transitions(old: &Read) -> Result<Vec<Authority>> {
    let Some(now) = &old.authority else { return Ok(Vec::new()) };
    let mut all =
        vec![now.clone(), Authority { owner: place(2)?, epoch: Epoch(now.epoch.0 + 1), opened: None, pending: None, ..now.clone() }];
    // Also where the phase forbids it: made as if it didn't.
    let open = Read { phase: Phase::Active, ..old.clone() };
    let of = Attempt { mig: MIG.parse()?, attempt: now.attempt, epoch: now.epoch };
    for me in [place(1)?, place(2)?] {
        all.extend(authority::open(&open, &me, OTHER.parse()?, Seen::default()));
        all.extend(authority::pend(&open, &me, (MIG.parse()?, now.epoch), &place(2)?, COMMIT.parse()?));
        all.extend(authority::commit(&open, &me, of));
        all.extend(authority::abort(&open, &me, of));
        all.extend(authority::disown(&open, &me, None));
    }
    Ok(all)
}

type Change = Box<dyn Fn(&mut Read) + Send + Sync>;

/// Changes of one field each.
fn mutations() -> Result<Vec<Change>> {
    fn on(change: impl Fn(&mut Authority) + Send + Sync + 'static) -> Change {
        Box::new(move |r| {
            if let Some(a) = r.authority.as_mut() {
                change(a);
            }
        })
    }
    fn pending(change: impl Fn(&mut Pending) + Send + Sync + 'static) -> Change {
        on(move |a| {
            if let Some(p) = a.pending.as_mut() {
                change(p);
            }
        })
    }
    let mut all: Vec<Change> = vec![Box::new(|_| {})];
    for phase in [Phase::New, Phase::Active, Phase::Released, Phase::Deleting] {
        all.push(Box::new(move |r| r.phase = phase));
    }
    for n in 1..=3 {
        let at = place(n)?;
        all.push(on(move |a| a.owner = at.clone()));
    }
    let (pool, boot, other): (_, BootId, _) = (OTHER.parse()?, OTHER.parse()?, OTHER.parse()?);
    all.push(on(move |a| a.owner.pool = pool));
    for by in [1, 2] {
        all.push(on(move |a| a.epoch.0 += by));
        all.push(on(move |a| a.attempt += by));
    }
    all.push(on(|a| a.epoch.0 -= 1));
    all.push(on(|a| a.attempt -= 1));
    all.push(on(|a| a.opened = None));
    for epoch in [3, 4, 5] {
        all.push(on(move |a| a.opened = Some(Opened { epoch: Epoch(epoch), boot })));
    }
    let fresh = Pending { mig: MIG.parse()?, attempt: 2, to: place(2)?, final_commit: COMMIT.parse()? };
    all.push(on(|a| a.pending = None));
    all.push(on(move |a| a.pending = Some(fresh.clone())));
    all.push(pending(move |p| p.mig = other));
    all.push(pending(|p| p.attempt += 1));
    for n in [1, 3] {
        let at = place(n)?;
        all.push(pending(move |p| p.to = at.clone()));
    }
    let commit = OTHER.parse()?;
    all.push(pending(move |p| p.final_commit = commit));
    let fork = ForkPoint { from: place(1)?, from_epoch: Epoch(4), commit: None };
    all.push(on(move |a| a.fork_points.push(fork.clone())));
    Ok(all)
}

fn status(read: &Read) -> FilesystemStatus {
    let phase = match read.phase {
        Phase::New => FilesystemPhase::New,
        Phase::Active => FilesystemPhase::Active,
        Phase::Released => FilesystemPhase::Released,
        Phase::Headless => FilesystemPhase::Headless,
        Phase::Deleting => FilesystemPhase::Deleting,
    };
    FilesystemStatus { phase, authority: read.authority.as_ref().map(Into::into) }
}

pub fn case() -> Case {
    let title = "authority: the policies say of every write of an agent what engine::authority says";
    Case::new("rights/authority-verdicts", title, agree).api()
}

async fn agree(t: Arc<Test>) -> Result<()> {
    let mutations = mutations()?;
    let nodes: [NodeName; 2] = ["n1".parse()?, "n2".parse()?];
    let agents = [t.rig.kube_as("n1").await?.client(), t.rig.kube_as("n2").await?.client()];
    let (mut rows, mut taken, mut differ) = (0, 0, Vec::new());
    for old in olds()? {
        // A Filesystem for each: what an API server has taken can't be taken back.
        let fs_id = World::filesystem(&t).await?;
        let stands = json!({ "status": status(&old) });
        t.kube().patch("Filesystem", "", &fs_id, "status", &stands).await?;
        let object = Api::<Filesystem>::all(t.kube().client()).get(&fs_id).await?;
        let as_read = dotgraft_api::authority::read(&object)?;
        let mut seen = HashSet::new();
        for made in transitions(&old)? {
            for change in &mutations {
                let mut new = Read { authority: Some(made.clone()), ..as_read.clone() };
                change(&mut new);
                if !seen.insert(new.clone()) {
                    continue;
                }
                let object = Filesystem { status: Some(status(&new)), ..object.clone() };
                for (node, client) in nodes.iter().zip(&agents) {
                    let may = may_agent_write(&as_read, &new, node);
                    let params = PostParams { dry_run: true, ..PostParams::default() };
                    let answer = Api::<Filesystem>::all(client.clone()).replace_status(&fs_id, &params, &object).await;
                    let does = match answer {
                        Ok(_) => true,
                        // The CRD's own rules may be quicker than the policy: a refusal either way.
                        Err(kube::Error::Api(s)) if s.code == 422 || refused(&(s.code, s.message.clone())) => false,
                        Err(other) => return Err(other).context(format!("{node}: {new:?}")),
                    };
                    (rows, taken) = (rows + 1, taken + usize::from(may));
                    if may != does {
                        differ.push(format!("{node} of {as_read:?} to {new:?}: the rules say {may}, the API server {does}"));
                    }
                }
            }
        }
    }
    if rows < AT_LEAST || taken < 20 {
        bail!("only {rows} rows, {taken} of them allowed: the table is broken");
    }
    if !differ.is_empty() {
        bail!("{} of {rows} rows differ, the first: {}", differ.len(), differ.iter().take(5).cloned().collect::<Vec<_>>().join("; "));
    }
    println!("        {rows} rows, {taken} of them allowed");
    Ok(())
}
