//! How far behind a job's receiver is of what the job owes it: what the metric of replication lag is made of.

use super::{Initial, Job};
use crate::behind::behind;
use crate::ids::Timestamp;
use crate::model::Commit;

impl Job {
    /// When the oldest commit was taken that the receiver should have and lacks; `None`: it lacks none.
    ///
    /// A job that replicates each commit owes the receiver all that came after its cursor, any other job only while a run is due; a job that is
    /// suspended, or stopped as its object is gone, owes nothing. An empty receiver that is to begin with the newest commit lacks that one only. `history`: the Filesystem's commits, oldest
    /// first; transient ones don't count.
    pub fn behind_since<'a>(&self, history: impl DoubleEndedIterator<Item = &'a Commit>) -> Option<Timestamp> {
        let spec = self.spec().filter(|s| !s.suspend && !self.is_stopped() && (s.on_commit || self.row().owed))?;
        let cursor = self.row().cursor;
        let begins = if cursor.is_none() && spec.params.initial == Initial::MostRecent { 1 } else { usize::MAX };
        let owed = history.rev().filter(|c| !c.transient || Some(c.id) == cursor).take(begins);
        behind(owed, |c| Some(c.id) == cursor, |c| c.time, None).since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{CommitId, JobUid, Now};
    use crate::model::Place;
    use crate::run::{CancelReason, Intermediate, JobRow, JobSpec, OnConflict, Retry, RunParams};

    fn uid() -> JobUid {
        "0198c2a5-7f00-7000-8000-0000000000bb".parse().unwrap()
    }
    fn id(n: i64) -> CommitId {
        format!("0198c2a5-7f00-7000-8000-{n:012}").parse().unwrap()
    }
    fn commit(n: i64, transient: bool) -> Commit {
        let json = serde_json::json!({"version": 1, "id": id(n), "fsId": "0198c2a5-7f00-7000-8000-000000000001", "parent": null,
            "time": n * 100, "epoch": 1, "transient": transient});
        serde_json::from_value(json).unwrap()
    }

    struct Given {
        on_commit: bool,
        owed: bool,
        suspend: bool,
        cursor: Option<i64>,
        initial: Initial,
    }

    const EACH: Given = Given { on_commit: true, owed: false, suspend: false, cursor: Some(2), initial: Initial::MostRecent };

    const HISTORY: [(i64, bool); 6] = [(1, false), (2, false), (3, true), (4, false), (5, false), (6, true)];

    fn behind(given: &Given) -> Option<i64> {
        told(&job(given))
    }

    fn told(job: &Job) -> Option<i64> {
        let history = HISTORY.map(|(n, transient)| commit(n, transient));
        job.behind_since(history.iter()).map(|t| t.0 / 100)
    }

    fn job(given: &Given) -> Job {
        let place = Place { node: "n2".parse().unwrap(), pool: "0198c2a5-7f00-4000-8000-0000000000aa".parse().unwrap() };
        let row = JobRow { owed: given.owed, cursor: given.cursor.map(id), peer: Some(place.clone()), ..JobRow::new(uid()) };
        let (retry, on_conflict) = (Retry::default(), OnConflict::Fail);
        let params = RunParams { peer: place, initial: given.initial, intermediate: Intermediate::All, retry, on_conflict, also: None };
        // It has run for this trigger: nothing is owed but what the row says.
        let row = JobRow { observed_trigger: Some("t".into()), done_once: true, ..row };
        let trigger = Some("t".to_owned());
        let mut job = Job::restore(row);
        let spec =
            JobSpec { uid: uid(), generation: 1, suspend: given.suspend, trigger, on_commit: given.on_commit, schedule: None, params };
        let seed = crate::run::RunSeed { run_id: uuid::Uuid::nil(), jitter_seed: 0 };
        job.on_spec(spec, given.cursor.map(id), Now::default(), seed, &mut Vec::new());
        job
    }

    #[test]
    fn a_job_of_each_commit_lacks_all_after_its_cursor() {
        assert_eq!(behind(&EACH), Some(4), "the transient one doesn't count");
        assert_eq!(behind(&Given { cursor: Some(3), ..EACH }), Some(4));
        assert_eq!(behind(&Given { cursor: Some(5), ..EACH }), None);
        assert_eq!(behind(&Given { suspend: true, ..EACH }), None);
    }

    #[test]
    fn any_other_job_lacks_something_only_while_a_run_is_due() {
        let once = Given { on_commit: false, ..EACH };
        assert_eq!(behind(&once), None);
        assert_eq!(behind(&Given { owed: true, ..once }), Some(4));
    }

    /// Its row is kept for a day, as the object may come back from a backup, and with it a run that was cut short.
    #[test]
    fn a_job_that_is_gone_lacks_nothing_until_it_is_back() {
        let seed = crate::run::RunSeed { run_id: uuid::Uuid::nil(), jitter_seed: 0 };
        for given in [EACH, Given { on_commit: false, owed: true, ..EACH }] {
            let mut job = job(&given);
            let spec = job.spec().unwrap().clone();
            job.on_stop(CancelReason::Deleted, Now::default(), seed, &mut Vec::new());
            assert_eq!(told(&job), None);
            job.on_spec(spec, Some(id(5)), Now::default(), seed, &mut Vec::new());
            assert_eq!(told(&job), Some(4));
        }
    }

    #[test]
    fn an_empty_receiver_lacks_what_it_is_to_begin_with() {
        let empty = Given { cursor: None, ..EACH };
        assert_eq!(behind(&empty), Some(5));
        assert_eq!(behind(&Given { initial: Initial::All, ..empty }), Some(1));
    }
}
