//! The actor of a node: the agent's own machine ([`dotgraft_engine::step`]) with a simulated journal, tasks and requesters; and its lives.

use dotgraft_engine::filesystem::{Answer, Ctx, Desired, Event, Here, Intent};
use dotgraft_engine::ids::{BootId, Fresh};
use dotgraft_engine::model::{Problem, Reason};
use dotgraft_engine::step::{Effect, Machine};

use super::sim::{Asked, Doing, Sim, What, short};

impl Sim<'_> {
    fn ctx(&mut self, n: usize) -> Ctx {
        Ctx { now: self.wall(n), boot: self.boot_time(n), fresh: Fresh::new(self.fresh()), jitter: self.rng.word() }
    }

    /// One turn of the actor, or as many as follow from it.
    pub fn handle(&mut self, n: usize, event: Event) {
        if self.nodes[n].paused > self.now {
            let (life, until) = (self.nodes[n].life, self.nodes[n].paused);
            return self.later_at(until, What::Deliver(n, life, Box::new(event)));
        }
        self.turn_of(n, event);
        while let Some(event) = self.nodes[n].fs.as_mut().and_then(Machine::first) {
            self.turn_of(n, event);
        }
    }

    fn turn_of(&mut self, n: usize, event: Event) {
        if !self.nodes[n].is_live() {
            return;
        }
        if let Event::Done(op, _) = &event {
            self.nodes[n].tasks.remove(op);
        }
        self.nodes[n].handled += 1;
        let ctx = self.ctx(n);
        if !matches!(event, Event::Timer) {
            let text = short(&event);
            self.say(format!("n{n} <- {text}"));
        }
        let Some(machine) = self.nodes[n].fs.as_mut() else { return };
        let step = machine.handle(event, &ctx);
        let names: Vec<&str> = step.records().iter().map(dotgraft_engine::filesystem::Record::name).collect();
        for name in &names {
            self.say(format!("n{n}    record {name}"));
        }
        let mut journaled = Ok(());
        if !names.is_empty() {
            if self.fault(6) {
                return self.crash(n, false);
            }
            if self.fault(8) {
                self.say(format!("n{n} JOURNAL FAILS"));
                journaled = Err(Problem::new(Reason::NoSpace, "simulated"));
            } else {
                self.nodes[n].journal.commit(step.records());
                if self.fault(6) {
                    return self.crash(n, false);
                }
            }
        }
        let effects = self.nodes[n].fs.as_mut().map(|m| m.settle(step, journaled)).unwrap_or_default();
        self.sleep(n);
        for effect in effects {
            self.effect_of(n, effect);
        }
        self.watch(n);
    }

    /// The actor looks at its clock once, and sleeps so long.
    fn sleep(&mut self, n: usize) {
        let now = self.boot_time(n);
        let wake = self.nodes[n].fs.as_ref().and_then(Machine::next_wake);
        let ms = wake.map(|at| i64::try_from(at.since_ms(now).max(1)).unwrap_or(i64::MAX / 4));
        self.nodes[n].wake = ms.map(|ms| self.now + ms);
    }

    fn effect_of(&mut self, n: usize, effect: Effect<Asked>) {
        match effect {
            Effect::Cancel(op) => {
                self.say(format!("n{n}    cancel {op}"));
                self.cancel_task(n, op);
            }
            Effect::Start(op, task) => {
                self.say(format!("n{n} -> {op} {}", short(&task)));
                self.watch_start(n, &task);
                self.nodes[n].tasks.insert(op, Doing::new(task.clone(), self.now));
                self.start_task(n, op, task);
            }
            Effect::Publish | Effect::Tell(_) => {}
            Effect::Answer(asked, answer) => {
                self.say(format!("n{n}    answer {} {}", short(&asked), short(&answer)));
                self.answer(n, asked, answer);
            }
            Effect::Stray(req, answer) => panic!("{req:?} was answered twice, or never asked: {answer:?}"),
            Effect::StopTasks => self.stop_tasks(n),
            Effect::Refuse(asked, problem) => self.refuse(&asked, &problem),
            Effect::Reload { after_ms } => {
                let life = self.nodes[n].life;
                self.later(after_ms, What::Reload(n, life));
            }
            Effect::End => {
                self.say(format!("n{n} actor ends"));
                self.watch_finished(n);
                self.end_actor(n);
                self.nodes[n].finished = true;
                if self.nodes[n].order.as_ref().is_some_and(Option::is_some) {
                    self.start_actor(n);
                }
            }
        }
    }

    fn answer(&mut self, n: usize, asked: Asked, answer: Answer) {
        match (asked, answer) {
            (Asked::Plain, Answer::Plain(_) | Answer::StartsFrom(_))
            | (Asked::Versions(None), Answer::Versions(_))
            | (Asked::Forged, Answer::Plain(Err(_)) | Answer::Versions(Err(_)) | Answer::Receive(Err(_))) => {}
            (Asked::Mount(what), Answer::Plain(result)) => self.watch_mounted(n, what, result.is_ok()),
            (Asked::Export(back, life, op), Answer::Plain(result)) => {
                self.watch_exported(n, result.is_ok());
                let result = if self.partition || self.fault(60) { Err(self.unreachable()) } else { result };
                self.later(30, What::Exported(back, life, op, result));
            }
            (Asked::Fence, Answer::Fenced(result)) => self.watch_fenced(n, result.ok().map(|(id, _)| id)),
            (Asked::Versions(Some((back, life, op))), Answer::Versions(result)) => {
                self.later(30, What::Listed(back, life, op, Box::new(result)));
            }
            (Asked::Offer(s), Answer::Receive(result)) => self.offer_answered(s, result),
            (Asked::Checkpoint(s, last), Answer::Checkpointed) => self.checkpointed(s, last),
            (asked, answer) => panic!("{asked:?} was answered with {answer:?}"),
        }
    }

    /// Requesters see the connection end, or an error: that is their answer.
    fn refuse(&mut self, asked: &Asked, problem: &Problem) {
        match asked {
            Asked::Export(back, life, op) => self.later(200, What::Exported(*back, *life, *op, Err(problem.clone()))),
            Asked::Versions(Some((back, life, op))) => {
                self.later(200, What::Listed(*back, *life, *op, Box::new(Err(problem.clone()))));
            }
            _ => {}
        }
    }

    // ---- lives ----

    /// Each task that is cut has or has not happened; what was meant for this life is lost.
    fn stop_tasks(&mut self, n: usize) {
        let tasks = std::mem::take(&mut self.nodes[n].tasks);
        for (op, doing) in tasks {
            self.nodes[n].stale.push(op);
            if !doing.ended {
                self.cut_task(n, op, &doing);
            }
        }
        self.cut_sessions_of(n);
        self.nodes[n].life += 1;
    }

    fn end_actor(&mut self, n: usize) {
        self.stop_tasks(n);
        let gone = self.unreachable();
        let waiters: Vec<Asked> = self.nodes[n].fs.take().into_iter().flat_map(Machine::into_waiters).collect();
        for asked in &waiters {
            self.refuse(asked, &gone);
        }
    }

    pub fn crash(&mut self, n: usize, reboot: bool) {
        self.say(format!("n{n} CRASH reboot={reboot}"));
        self.end_actor(n);
        self.nodes[n].up = false;
        self.nodes[n].paused = 0;
        if reboot {
            self.nodes[n].boot = BootId::from_uuid(self.fresh());
            self.nodes[n].booted = self.now;
            self.nodes[n].disk.mounts.clear();
        }
        self.later(3_000, What::Restart(n));
    }

    /// The journal is read again, after a commit to it has failed.
    pub fn reload(&mut self, n: usize) {
        self.next_generation += 1;
        let (generation, rows) = (self.next_generation, self.nodes[n].journal.load());
        let Some(machine) = self.nodes[n].fs.as_mut() else { return };
        machine.recovered(generation, rows);
        self.say(format!("n{n} recover, generation {generation}"));
        self.first_turns(n);
        self.deliver_order(n); // what came meanwhile
    }

    fn first_turns(&mut self, n: usize) {
        while let Some(event) = self.nodes[n].fs.as_mut().and_then(Machine::first) {
            self.turn_of(n, event);
        }
    }

    pub fn restart(&mut self, n: usize) {
        if !self.nodes[n].up {
            self.say(format!("n{n} UP"));
            self.nodes[n].up = true;
            self.start_actor(n);
        }
    }

    /// Starts the actor if there is anything to start it for, and tells it what is wanted.
    fn start_actor(&mut self, n: usize) {
        let node = &self.nodes[n];
        let anything = !node.journal.0.is_empty() || !node.disk.is_empty() || node.order.as_ref().is_some_and(Option::is_some);
        if node.fs.is_some() || !node.up {
            return;
        }
        if !anything {
            self.nodes[n].finished = true;
            return;
        }
        self.next_generation += 1;
        let here = Here { place: node.place.clone(), boot: node.boot, stream_version: 2, kernel_release: "6.18".into() };
        let mut machine = Machine::new(self.id, here);
        machine.recovered(self.next_generation, node.journal.load());
        self.say(format!("n{n} recover, generation {}", self.next_generation));
        self.nodes[n].fs = Some(machine);
        self.nodes[n].finished = false;
        // The supervisor's word may come before or after the look at the disk.
        let order_first = self.rng.permille(500);
        if order_first {
            self.deliver_order_to(n);
        }
        self.first_turns(n);
        if !order_first {
            self.deliver_order(n);
        }
    }

    /// The supervisor hears of the Replica object.
    pub fn order(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(intent) = node.wanted.clone() else {
            if node.order.is_some() {
                node.order = Some(None);
                self.deliver_order(n);
            }
            return;
        };
        let generation = node.generation;
        node.order = Some(Some(Desired { generation, intent }));
        if node.fs.is_some() {
            self.deliver_order(n);
        } else if node.finished || node.life == 0 {
            self.start_actor(n);
        }
    }

    fn order_event(&self, n: usize) -> Option<Event> {
        self.nodes[n].order.clone().map(|order| order.map_or(Event::Vanished, Event::Desired))
    }

    fn deliver_order(&mut self, n: usize) {
        if let Some(event) = self.order_event(n) {
            self.handle(n, event);
        }
    }

    /// Before anything else that the machine has to do first.
    fn deliver_order_to(&mut self, n: usize) {
        if let Some(event) = self.order_event(n) {
            self.turn_of(n, event);
        }
    }

    /// What a copy is to be, as the Replica object says now.
    pub fn wants_present(&self, n: usize) -> bool {
        matches!(self.nodes[n].wanted, Some(Intent::Present(_)))
    }
}
