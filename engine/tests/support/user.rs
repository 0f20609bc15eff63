//! What people, the operator and fate do to a Filesystem; and whole runs made of it.

use std::collections::BTreeMap;

use dotgraft_engine::filesystem::{
    CopyState, Event, FilesystemStatus, Handoff, Intent, Life, MountMode, MountWhat, Offer, Present, RequestState, Role, Task, TaskDone,
    WantedCommit, WantedJob, Why,
};
use dotgraft_engine::format::Kind;
use dotgraft_engine::ids::{CommitId, Epoch, FsId, MigId, OpId, RequestUid, Timestamp};
use dotgraft_engine::model::{Commit, Origin, Place, Problem, Reason};
use dotgraft_engine::run::{Initial, Intermediate, JobSpec, OnConflict, Outcome, Retry, RunParams};
use dotgraft_engine::schedule::Schedule;

use super::api::Phase;
use super::sim::{Asked, Sim, Two, short, uuid};
use super::watch::Ledger;
use super::work::FOREIGN;

pub fn present(role: Role) -> Present {
    Present {
        role,
        epoch: Epoch(1),
        owner: None,
        peers: std::collections::BTreeSet::new(),
        claim: None,
        origin: None,
        capacity: 100,
        history_limit: 100,
        origin_bytes: 0,
        fencing: "Proof".into(),
        reclaim_policy: "Delete".into(),
        commits: Vec::new(),
        jobs: Vec::new(),
        move_to: None,
        precopy_to: None,
        fetch: std::collections::BTreeSet::new(),
        lend: std::collections::BTreeSet::new(),
        headless: false,
    }
}

/// An owner with `n` commits and a copy that has them, without faults; the commits' wishes.
pub fn pair(n: usize, trace: &mut Vec<String>) -> (Sim<'_>, Vec<RequestUid>) {
    let mut sim = Sim::new(1, Two::WithReplica, trace);
    sim.faults = false;
    let job = sim.job();
    sim.want(0, Some(Intent::Present(Box::new(Present { jobs: vec![job], ..present(Role::Owner) }))));
    sim.want(1, Some(Intent::Present(Box::new(present(Role::Replica)))));
    sim.run_for(2_000);
    let wishes = (0..n).map(|_| made(&mut sim)).collect();
    (sim, wishes)
}

/// One more commit, on both.
pub fn made(sim: &mut Sim) -> RequestUid {
    let uid = sim.wish();
    sim.run_for(10_000);
    assert!(on_disk(sim, 0, uid) && on_disk(sim, 1, uid), "it is not on both");
    uid
}

/// Whether the commit of a wish is on a node's disk.
pub fn on_disk(sim: &Sim, n: usize, uid: RequestUid) -> bool {
    sim.ledger.ids.get(&uid).is_some_and(|id| sim.nodes[n].disk.commits.contains_key(id))
}

/// What a node shows.
pub fn status(sim: &Sim, n: usize) -> FilesystemStatus {
    sim.nodes[n].fs.as_ref().expect("an actor").status()
}

/// The wish for a commit.
pub fn wanted(uid: RequestUid) -> WantedCommit {
    WantedCommit { uid, message: "m".into(), metadata: BTreeMap::new(), id: None, remove: false, reset_to: None, hold: false }
}

impl Sim<'_> {
    /// Changes what is wanted of node `n`, if it is wanted at all.
    pub fn edit(&mut self, n: usize, change: impl FnOnce(&mut Present)) {
        if let Some(Intent::Present(mut p)) = self.nodes[n].wanted.clone() {
            change(&mut p);
            self.want(n, Some(Intent::Present(p)));
        }
    }

    pub fn wish(&mut self) -> RequestUid {
        let uid = self.fresh_request();
        if self.api.phase == Phase::Headless {
            return uid; // nobody can, without a claim
        }
        self.edit(0, |p| p.commits.push(wanted(uid)));
        uid
    }

    /// A reset to some commit of the owner.
    pub fn wish_reset(&mut self) {
        let shown: Vec<CommitId> = self.ledger.made.iter().copied().filter(|id| self.nodes[0].disk.commits.contains_key(id)).collect();
        let Some(commit) = self.rng.pick(&shown).copied().filter(|_| self.api.phase != Phase::Headless) else { return };
        let uid = self.fresh_request();
        self.ledger.resets.insert(uid);
        let reset_to = Some(Origin { fs_id: self.id, commit });
        let hold = self.rng.permille(500);
        let want = WantedCommit { message: "before".into(), reset_to, hold, ..wanted(uid) };
        self.edit(0, |p| p.commits.push(want));
    }

    fn unwish(&mut self) {
        let Some(Intent::Present(p)) = self.nodes[0].wanted.clone() else { return };
        let uids: Vec<_> = p.commits.iter().map(|c| c.uid).collect();
        let Some(uid) = self.rng.pick(&uids).copied() else { return };
        if self.ledger.resets.contains(&uid) && self.rng.permille(500) {
            return self.edit(0, |p| p.commits.retain(|c| c.uid != uid)); // taken back
        }
        self.ledger.removals.insert(uid);
        let id = self.ledger.ids.get(&uid).copied().filter(|_| uid.uuid().as_u128() % 2 == 0);
        self.edit(0, |p| p.commits.iter_mut().filter(|c| c.uid == uid).for_each(|c| (c.remove, c.id) = (true, id)));
    }

    fn removed_on(&self, n: usize) -> Vec<(RequestUid, Option<CommitId>)> {
        let Some(fs) = &self.nodes[n].fs else { return Vec::new() };
        let status = fs.status();
        status.requests.iter().filter(|r| r.state == Some(RequestState::Removed)).map(|r| (r.uid, r.id)).collect()
    }

    /// The operator: what the owner has removed, the copy removes; what that has too, the object's finalizer goes of.
    fn forget_removed(&mut self) {
        let mut gone = self.removed_on(0);
        if self.nodes.len() > 1
            && let Some(Intent::Present(copy)) = self.nodes[1].wanted.clone()
        {
            let there: Vec<_> = self.removed_on(1).into_iter().map(|(uid, _)| uid).collect();
            let asked: Vec<_> = gone.extract_if(.., |(uid, _)| !there.contains(uid)).collect();
            for (uid, id) in asked.into_iter().filter(|(uid, _)| !copy.commits.iter().any(|c| c.uid == *uid)) {
                let want = WantedCommit { id, remove: true, ..wanted(uid) };
                self.edit(1, |p| p.commits.push(want));
            }
        }
        for n in 0..self.nodes.len() {
            self.edit(n, |p| p.commits.retain(|c| !(c.remove && gone.iter().any(|(uid, _)| *uid == c.uid))));
        }
    }

    pub fn job(&mut self) -> WantedJob {
        let initial = *self.rng.pick(&[Initial::MostRecent, Initial::All]).unwrap();
        let intermediate = *self.rng.pick(&[Intermediate::All, Intermediate::LatestOnly]).unwrap();
        let mut job = self.job_to(self.nodes[1].place.clone());
        (job.spec.params.initial, job.spec.params.intermediate) = (initial, intermediate);
        job
    }

    /// A push of every commit to that place.
    pub fn job_to(&self, peer: Place) -> WantedJob {
        let params = RunParams {
            peer,
            initial: Initial::All,
            intermediate: Intermediate::All,
            retry: Retry::default(),
            on_conflict: OnConflict::Fail,
            also: None,
        };
        // And by the clock, which jumps here: what fires must stop where authority does.
        let schedule = Schedule::interval(900).ok();
        WantedJob {
            spec: JobSpec { uid: self.job, generation: 1, suspend: false, trigger: None, on_commit: true, schedule, params },
            bandwidth: None,
        }
    }

    /// Deletes the claim and keeps its commits: phase first, then the Replicas. Jobs and resets go with the claim.
    pub fn behead(&mut self) {
        if self.api.phase != Phase::Active {
            return;
        }
        self.say("HEADLESS".into());
        self.api.phase = Phase::Headless;
        for n in 0..self.nodes.len() {
            let made = self.ledger.made.clone();
            let ids = self.ledger.ids.clone();
            let begun = move |uid| ids.get(&uid).is_some_and(|id| made.contains(id));
            self.edit(n, |p| {
                p.headless = true;
                p.jobs.clear();
                p.commits.retain(|w| w.reset_to.is_none() || w.remove || begun(w.uid));
            });
        }
    }

    /// Deletes the Filesystem: phase first, then each Replica, at its own time.
    pub fn delete(&mut self) {
        self.say("DELETE".into());
        self.api.phase = Phase::Deleting;
        for n in 0..self.nodes.len() {
            self.nodes[n].may_delete = true;
            let epoch = self.api.epoch;
            self.want(n, Some(Intent::Absent { epoch }));
        }
    }

    pub fn ask(&mut self, n: usize, asked: Asked, event: impl FnOnce(dotgraft_engine::filesystem::ReqId) -> Event) {
        if self.nodes[n].is_live() {
            let req = self.req(n, asked);
            self.handle(n, event(req));
        }
    }

    fn mount(&mut self, n: usize) {
        let commits: Vec<CommitId> = self.nodes[n].disk.commits.keys().copied().collect();
        let what = match self.rng.pick(&commits) {
            Some(id) if self.rng.permille(400) => MountWhat::Commit(*id),
            _ => MountWhat::Head,
        };
        let target = format!("/pods/{}", self.rng.below(4));
        if !self.nodes[n].disk.mounts.contains_key(&target) {
            self.ask(n, Asked::Mount(what), |req| Event::Mount(req, what, target, MountMode::WRITE));
        }
    }

    fn unmount(&mut self, n: usize) {
        let target = format!("/pods/{}", self.rng.below(4));
        self.ask(n, Asked::Plain, |req| Event::Unmount(req, target));
    }

    /// A pod writes what it has mounted, unless it is fenced.
    fn pod_writes(&mut self) {
        let disk = &mut self.nodes[0].disk;
        let mounted = disk.is_mounted(MountWhat::Head);
        if let Some(head) = disk.head.as_mut().filter(|h| mounted && !h.fenced) {
            head.content += 1;
        }
    }

    /// A completion of an operation of an earlier life: it must change nothing.
    fn stale_done(&mut self, n: usize) {
        let results = [
            Ok(TaskDone::Looked(None)),
            Ok(TaskDone::Ok),
            Ok(TaskDone::Opened { epoch: Epoch(99), attempt: 9, new: true, sent: self.boot_time(n), version: None }),
            Err(Problem::new(Reason::NotOwner, "stale")),
        ];
        let result = self.rng.pick(&results).unwrap().clone();
        let op = self.rng.pick(&self.nodes[n].stale.clone()).copied().unwrap_or(OpId { generation: 0, seq: 1 });
        self.handle(n, Event::Done(op, Box::new(result)));
    }

    /// The operator's mistake, or a restored backup: `Absent` while the Filesystem is not being deleted.
    fn stale_absent(&mut self) {
        if let Some(Intent::Present(p)) = self.nodes[0].wanted.clone()
            && self.api.phase != Phase::Deleting
        {
            self.say("STALE ABSENT".into());
            self.want(0, Some(Intent::Absent { epoch: Epoch(1) }));
            self.run_for(3_000);
            if self.api.phase != Phase::Deleting {
                self.want(0, Some(Intent::Present(p)));
            }
        }
    }

    /// The object goes, and comes back from a backup.
    fn vanish(&mut self) {
        let wanted = self.nodes[0].wanted.clone();
        if let Some(Intent::Present(_)) = &wanted {
            self.say("VANISH".into());
            self.want(0, None);
            self.run_for(3_000);
            self.want(0, wanted);
        }
    }

    fn bump_epoch(&mut self) {
        self.api.epoch = Epoch(self.api.epoch.0 + 1);
        let epoch = self.api.epoch;
        for n in 0..self.nodes.len() {
            self.edit(n, |p| p.epoch = epoch);
        }
    }

    /// The job goes, and the copy with it.
    fn drop_replica(&mut self) {
        self.say("DROP REPLICA".into());
        self.edit(0, |p| p.jobs.clear());
        self.nodes[1].may_delete = true;
        let epoch = self.api.epoch;
        self.want(1, Some(Intent::Absent { epoch }));
    }

    /// The job is suspended or gone for a while, and comes back changed.
    fn flap_job(&mut self) {
        let Some(Intent::Present(p)) = self.nodes[0].wanted.clone() else { return };
        let jobs = p.jobs;
        self.say("FLAP JOB".into());
        // A job that is gone pins nothing: a removal that waits, or one that is done but for what is kept as a base, would part the histories for
        // good, as asked (ADR 11).
        let let_go = self.nodes[0].journal.load().commits.iter().any(Commit::is_let_go);
        let gone = self.rng.permille(500) && !let_go && !p.commits.iter().any(|c| c.remove);
        self.edit(0, |p| if gone { p.jobs.clear() } else { p.jobs.iter_mut().for_each(|j| j.spec.suspend = true) });
        self.run_for(2_000);
        let generation = 2 + i64::from(gone);
        self.edit(0, |p| p.jobs = jobs.into_iter().map(|j| WantedJob { spec: JobSpec { generation, ..j.spec }, ..j }).collect());
    }

    /// A state directory is lost: journal gone, disk there. Not in the middle of a reset: that leaves commits and no head (ADR 7). Nor that of a
    /// copy which keeps what was let go and the owner has no more: it would see that as a commit again, and the histories part (ADR 11).
    pub fn lose_journal(&mut self, n: usize) {
        let rows = self.nodes[n].journal.load();
        let alone = |id: &CommitId| n != 0 && !self.nodes[0].disk.commits.contains_key(id);
        if rows.base.is_some_and(|b| b.reset_to.is_some()) || rows.commits.iter().any(|c| c.is_let_go() && alone(&c.id)) {
            return;
        }
        self.say(format!("n{n} LOSES ITS JOURNAL"));
        self.crash(n, true);
        self.nodes[n].journal.0.clear();
        let disk = &self.nodes[n].disk;
        self.ledger.ids.retain(|_, id| disk.commits.contains_key(id)); // an intent that only the journal knew is lost
        self.ledger.safe[n] = None;
    }

    /// A node that was broken into, or an owner that lies, has its say at each copy that is no owner's: it must change nothing.
    pub fn forge(&mut self) {
        for n in 0..self.nodes.len() {
            let replica = self.nodes[n].journal.load().base.is_some_and(|b| b.role == Role::Replica && b.life == Life::Active);
            if self.old_operator || !self.nodes[n].is_live() || !replica {
                continue;
            }
            let (far, owner) = (Epoch(self.api.epoch.0 + 100), self.nodes[self.api.owner].place.clone());
            let stranger = Place { node: "stranger".parse().unwrap(), ..owner.clone() };
            for (from, epoch) in [(&stranger, self.api.epoch), (&stranger, far), (&owner, far)] {
                let forged = self.forged_offer(from, epoch);
                self.ask(n, Asked::Forged, |req| Event::Offer(req, Box::new(forged)));
            }
            let known = self.nodes[n].disk.commits.keys().next().copied();
            for (from, epoch) in [(&stranger, self.api.epoch), (&owner, far)] {
                let (mig, fresh) = (MigId::from_uuid(self.fresh()), CommitId::from_uuid(self.fresh()));
                let final_commit = known.unwrap_or(fresh);
                let handoff = Handoff { mig, attempt: 1, epoch, from: from.clone(), final_commit, jobs: vec![], requests: vec![] };
                self.ask(n, Asked::Forged, |req| Event::Export(req, Box::new(handoff)));
            }
            self.ask(n, Asked::Forged, |req| Event::Versions(req, stranger.node.clone()));
        }
    }

    pub fn forged_offer(&mut self, from: &Place, epoch: Epoch) -> Offer {
        let target = Commit {
            version: Kind::Commit.newest(),
            id: CommitId::from_uuid(self.fresh()),
            fs_id: self.id,
            parent: None,
            time: Timestamp(self.now),
            epoch,
            seq: 0,
            message: "forged".into(),
            metadata: BTreeMap::new(),
            kept: None,
            transient: false,
            reset_to: None,
        };
        Offer {
            target,
            base: None,
            job: self.job,
            run_id: uuid(0),
            epoch,
            expected: None,
            stream_version: 2,
            kernel_release: "6.18".into(),
            resume: None,
            from: from.node.clone(),
        }
    }

    /// One throw of the dice.
    pub fn act(&mut self) {
        if self.now % 4 == 0 {
            self.forge();
        }
        let n = usize::try_from(self.rng.below(self.nodes.len() as u64)).unwrap();
        match self.rng.below(26) {
            0..=5 => {
                let many = matches!(&self.nodes[0].wanted, Some(Intent::Present(p)) if p.commits.len() > 7);
                if !many && self.rng.permille(800) {
                    self.wish();
                } else if !many {
                    self.wish_reset();
                }
            }
            6 | 7 => self.unwish(),
            8 | 9 => self.forget_removed(),
            10 | 11 => self.mount(n),
            12 | 13 => self.unmount(n),
            14 | 15 => self.pod_writes(),
            16 => {
                let force = self.rng.permille(500);
                self.ask(0, Asked::Fence, |req| Event::Fence(req, force));
            }
            17 => self.ask(0, Asked::Plain, Event::Thaw),
            18 => {
                let from = self.nodes[0].place.node.clone();
                self.ask(n, Asked::Versions(None), |req| Event::Versions(req, from));
            }
            19 => {
                let capacity = 100 + self.rng.below(5);
                self.edit(n, |p| p.capacity = capacity);
            }
            20 => self.stale_done(n),
            _ => self.fate(n),
        }
    }

    fn fate(&mut self, n: usize) {
        match self.rng.below(14) {
            0 | 1 if self.nodes[n].up => self.crash(n, false),
            2 if self.nodes[n].up => self.crash(n, true),
            3 => self.stale_absent(),
            4 => self.vanish(),
            5 => self.bump_epoch(),
            6 if self.has_served(n) => drop(self.nodes[n].disk.mounts.insert(FOREIGN.into(), MountWhat::Head)),
            7 => drop(self.nodes[n].disk.mounts.remove(FOREIGN)),
            8 => {
                let id = self.rng.pick(&self.nodes[0].disk.commits.keys().copied().collect::<Vec<_>>()).copied();
                let branch = FsId::from_uuid(uuid(2));
                if let Some(id) = id {
                    self.branch = true;
                    self.ask(0, Asked::Plain, |req| Event::PinOrigin(req, branch, id));
                }
            }
            9 => {
                self.branch = false;
                // It says so, and that is heard, or not.
                if self.rng.permille(500) {
                    self.handle(0, Event::UnpinOrigin(FsId::from_uuid(uuid(2))));
                }
            }
            10 => self.partition = !self.partition,
            11 => self.no_space = !self.no_space,
            12 if self.nodes.len() > 1 => {
                let node = self.nodes[1].place.node.clone();
                self.handle(0, Event::PeerBack(node));
            }
            _ => {}
        }
    }

    /// Faults stop; what waits for a person gets one.
    pub fn calm_down(&mut self) {
        self.say("CALM".into());
        (self.faults, self.partition, self.no_space) = (false, false, false);
        self.run_for(10_000);
        for n in 0..self.nodes.len() {
            self.nodes[n].disk.mounts.remove(FOREIGN);
            for target in self.nodes[n].disk.mounts.keys().cloned().collect::<Vec<_>>() {
                self.ask(n, Asked::Plain, |req| Event::Unmount(req, target));
            }
        }
        self.branch = false; // without a word
        for _ in 0..4 {
            self.run_for(60_000);
            let frozen = self.nodes[0].fs.as_ref().is_some_and(|fs| {
                let status = fs.status();
                status.frozen.is_some() || status.conditions.first().is_some_and(|c| c.reason == Why::State(CopyState::Fenced))
            });
            if frozen {
                self.ask(0, Asked::Plain, Event::Thaw);
            }
        }
        self.run_for(120_000);
    }
}

/// A node alone: an owner, of a Branch or not, or a replica that nobody sends to.
pub fn alone(seed: u64, trace: &mut Vec<String>) -> u64 {
    alone_until(seed, None, trace).0
}

/// The same; at that turn its claim is deleted, and its commits are kept. Steps, and heads that went.
pub fn alone_until(seed: u64, headless_at: Option<u64>, trace: &mut Vec<String>) -> (u64, u64) {
    let mut sim = Sim::new(seed, Two::Alone, trace);
    let mut p = present(Role::Owner);
    if sim.rng.permille(300) {
        p.origin = Some(Origin { fs_id: FsId::from_uuid(uuid(3)), commit: CommitId::from_uuid(uuid(4)) });
    }
    sim.want(0, Some(Intent::Present(Box::new(p))));
    let delete_at = sim.rng.below(160); // in three of eight runs never
    let lose_at = if sim.rng.permille(150) { sim.rng.below(100) } else { 1_000 };
    for turn in 0..100 {
        let pause = i64::try_from(sim.rng.below(400)).unwrap();
        sim.run_for(pause);
        if turn == delete_at {
            sim.delete();
        }
        if Some(turn) == headless_at {
            sim.behead();
        }
        if turn == lose_at && sim.nodes[0].up && sim.nodes[0].disk.meta.is_some() && sim.api.phase == Phase::Active {
            sim.lose_journal(0);
        }
        sim.act();
    }
    if sim.rng.permille(80) && sim.api.phase != Phase::Deleting {
        return (orphan(&mut sim), sim.ledger.beheaded);
    }
    sim.calm_down();
    sim.watch_end();
    (sim.steps, sim.ledger.beheaded)
}

/// The object goes for good, and nobody said that the data may.
fn orphan(sim: &mut Sim) -> u64 {
    let before: Vec<CommitId> = sim.ledger.made.iter().copied().filter(|id| sim.nodes[0].disk.commits.contains_key(id)).collect();
    // A reset in hand makes the new one all the same, and one that has lost its claim goes on losing its head.
    let base = sim.nodes[0].journal.load().base;
    let resets = base.as_ref().is_some_and(|b| b.reset_to.is_some());
    let head = sim.nodes[0].disk.head.is_some() || resets;
    sim.want(0, None);
    sim.calm_down();
    sim.watch_end();
    let ends = base.is_some_and(|b| b.headless) || sim.api.phase == Phase::Headless;
    assert!(ends || sim.nodes[0].disk.head.is_some() == head, "an orphan keeps its head");
    if let Some(fs) = &sim.nodes[0].fs {
        let status = fs.status();
        assert!(!status.managed && status.base.is_some());
        let kept: Vec<CommitId> = sim.nodes[0].disk.commits.keys().copied().collect();
        // Only what objects asked to be removed before may be gone.
        let asked = |id: &CommitId| sim.ledger.ids.iter().any(|(uid, i)| i == id && sim.ledger.removals.contains(uid));
        assert!(before.iter().all(|id| kept.contains(id) || asked(id)), "an orphan keeps its commits");
    } else {
        assert!(sim.nodes[0].disk.is_empty(), "an orphan without an actor");
    }
    sim.steps
}

/// An owner with a job, and a replica.
pub fn together(seed: u64, trace: &mut Vec<String>) -> (u64, u64) {
    let (steps, ledger) = together_until(seed, None, trace);
    (steps, ledger.resumes)
}

/// The same; at that turn its claim is deleted, and its commits are kept.
pub fn together_until(seed: u64, headless_at: Option<u64>, trace: &mut Vec<String>) -> (u64, Ledger) {
    let mut sim = Sim::new(seed, Two::WithReplica, trace);
    let job = sim.job();
    let owner = Present { jobs: vec![job], ..present(Role::Owner) };
    sim.want(0, Some(Intent::Present(Box::new(owner))));
    sim.want(1, Some(Intent::Present(Box::new(present(Role::Replica)))));
    let delete_at = sim.rng.below(320); // in five of eight runs never
    let drop_at = if sim.rng.permille(150) { sim.rng.below(120) } else { 1_000 };
    let lose_at = if sim.rng.permille(150) { sim.rng.below(120) } else { 1_000 };
    let flap_at = if sim.rng.permille(300) { sim.rng.below(120) } else { 1_000 };
    for turn in 0..120 {
        let pause = i64::try_from(sim.rng.below(600)).unwrap();
        sim.run_for(pause);
        if turn == delete_at {
            sim.delete();
        }
        if Some(turn) == headless_at {
            sim.behead();
        }
        if turn == drop_at {
            sim.drop_replica();
        }
        if turn == lose_at && sim.nodes[1].up && sim.nodes[1].disk.meta.is_some() {
            sim.lose_journal(1);
        }
        if turn == flap_at {
            sim.flap_job();
        }
        sim.act();
    }
    sim.wish();
    sim.calm_down();
    sim.watch_end();
    if matches!(sim.api.phase, Phase::New | Phase::Active) && sim.nodes[1].fs.is_some() {
        sim.watch_replicated();
    }
    (sim.steps, std::mem::take(&mut sim.ledger))
}

impl Sim<'_> {
    /// The replica holds the owner's newest commit, and the job says so.
    fn watch_replicated(&mut self) {
        let (ours, theirs) = (self.newest_on_disk(0), self.newest_on_disk(1));
        let fs = self.nodes[0].fs.as_ref().expect("an owner");
        let status = fs.status();
        let job = status.jobs.iter().find(|j| j.uid == self.job).expect("the job is shown");
        assert!(ours.is_some() && ours == theirs, "owner at {ours:?}, replica at {theirs:?}; {}", short(&job.report));
        let outcome = job.row.last.as_ref().map(|l| &l.outcome);
        let replicated = ours.map(|(id, _)| id);
        assert!(
            matches!(outcome, Some(Outcome::Completed { replicated: r, .. }) if Some(*r) == replicated),
            "the last run ended as {outcome:?}, {replicated:?} is there"
        );
        assert!(!job.row.owed && job.row.cursor == replicated);
        for (id, (_, content)) in self.nodes[1].disk.commits.iter().filter(|(id, _)| self.nodes[0].disk.commits.contains_key(id)) {
            assert_eq!(*content, self.nodes[0].disk.commits[id].1, "{id} differs");
        }
    }
}

/// So that `Task` is named here: what a test may ask of a trace.
pub fn is_send(task: &Task) -> bool {
    matches!(task, Task::Send { .. })
}
