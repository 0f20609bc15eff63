//! What the release before has left on a node, at rest and in the middle of things, is opened by this program, and everything is found.
//!
//! `tests/release_0_1/<moment>/<node>`: `journal.rows` are the rows of that node's journal (`scope key body`), `pool.txt` is what its pool
//! held below `fs/`. How they were made is in `tests/release_0_1/README.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dotgraft_agent::actor::convert;
use dotgraft_agent::driver::Driver;
use dotgraft_agent::journal::{Entry, Journal, Scope};
use dotgraft_engine::filesystem::{
    Ctx, Event, Filesystem, FilesystemStatus, Found, Here, Life, Out, Recovered, RoleStatus, Task, TaskDone, Trouble,
};
use dotgraft_engine::ids::{BootTime, Fresh, FsId, PoolId, Timestamp};
use dotgraft_engine::model::Place as Where;
use uuid::Uuid;

use crate::support::*;

/// The recorded pool's UUID becomes that of the pool that the test made.
struct Fixture {
    rows: BTreeMap<FsId, Vec<(String, String)>>,
    pool: String,
}

impl Fixture {
    fn read(moment: &str, node: &str, pool: PoolId) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/release_0_1").join(moment).join(node);
        let rows = fs::read_to_string(dir.join("journal.rows")).unwrap();
        let recorded = rows.lines().next().unwrap().strip_prefix("pool ").unwrap().to_owned();
        let mine = |text: String| text.replace(&recorded, &pool.to_string());
        let mut all: BTreeMap<FsId, Vec<(String, String)>> = BTreeMap::new();
        for line in mine(rows).lines().skip(1) {
            let [scope, key, body] = line.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
            all.entry(scope.parse().unwrap()).or_default().push((key.to_owned(), body.to_owned()));
        }
        Self { rows: all, pool: mine(fs::read_to_string(dir.join("pool.txt")).unwrap()) }
    }

    /// Directories, files and subvolumes as they were, but for what the heads and commits held.
    fn lay_out(&self, below: &Path) {
        for line in self.pool.lines() {
            let (what, rest) = line.split_once(' ').unwrap();
            let (path, more) = rest.split_once(' ').unwrap_or((rest, ""));
            let path = below.join(path);
            let name = path.to_str().unwrap();
            match what {
                "directory" => fs::create_dir_all(&path).unwrap(),
                "file" => fs::write(&path, more).unwrap(),
                "subvolume" => {
                    run("btrfs", &["subvolume", "create", name]);
                    if more == "ro" {
                        run("btrfs", &["property", "set", "-ts", name, "ro", "true"]);
                    }
                }
                other => panic!("{other}"),
            }
        }
        run("sync", &[]);
    }

    fn has(&self, fs: FsId, key: &str) -> bool {
        self.rows.get(&fs).is_some_and(|rows| rows.iter().any(|(k, _)| k == key))
    }

    fn count(&self, fs: FsId, kind: &str) -> usize {
        self.rows.get(&fs).map_or(0, |rows| rows.iter().filter(|(key, _)| key.split('/').next() == Some(kind)).count())
    }
}

/// What the program sees of one Filesystem after its start, and what it did before it was told anything.
struct Opened {
    status: FilesystemStatus,
    tasks: Vec<Task>,
    records: Vec<&'static str>,
}

/// A few minutes after the last of what was recorded: what is kept for an hour is kept.
const NOW: Timestamp = Timestamp(1_796_002_300_000);

/// The start of an actor: the rows, then the disk.
fn start(t: &TestPool, here: &Here, fs: FsId, rows: &[(String, Vec<u8>)]) -> Opened {
    let rows = Recovered::parse(rows).unwrap_or_else(|e| panic!("{fs}: {e}"));
    let mut machine = Filesystem::recover(fs, here.clone(), 1, rows);
    let ctx = Ctx { now: NOW, boot: BootTime(60_000), fresh: Fresh::new(Uuid::now_v7()), jitter: 7 };
    let mut out = Out::default();
    machine.handle(Event::Start, &ctx, &mut out);
    let (op, _) = out.tasks.iter().find(|(_, task)| matches!(task, Task::Inspect)).expect("the disk is looked at first");
    let seen = t.inspect(fs).unwrap_or_else(|e| panic!("{fs}: {e}"));
    let found = Found {
        base: seen.meta.as_ref().map(|meta| convert::base_of(meta, seen.head)),
        head: seen.head,
        fenced: seen.head && t.is_fenced(fs).unwrap(),
        commits: seen.commits,
        checkpoints: seen.checkpoints,
        incoming: seen.incoming,
        broken: seen.broken,
    };
    let done = Event::Done(*op, Box::new(Ok(TaskDone::Inspected(Box::new(found)))));
    let mut out = Out::default();
    machine.handle(done, &ctx, &mut out);
    Opened {
        status: machine.status(),
        tasks: out.tasks.into_iter().map(|(_, task)| task).collect(),
        records: out.records.iter().map(dotgraft_engine::filesystem::Record::name).collect(),
    }
}

/// Opens what a node had at a moment and checks of every Filesystem that all of it is there; `more` is told each, by its claim's name.
fn opens(moment: &str, node: &str, mut more: impl FnMut(&str, &Opened)) {
    let t = TestPool::new(1024);
    let pool = t.pool.pool().id;
    let fixture = Fixture::read(moment, node, pool);
    fixture.lay_out(&t.place.mount_point().join("fs"));
    let TestPool { pool: opened, place } = t;
    drop(opened);
    let (again, report) = place.open(Some(pool)).unwrap();
    assert!(report.unreadable.is_empty(), "{moment}/{node}: {:?}", report.unreadable);
    let t = TestPool { pool: again, place };

    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(&dir.path().join("journal.db"), pool).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let here = Here {
        place: Where { node: node.parse().unwrap(), pool },
        boot: Uuid::from_u128(77).to_string().parse().unwrap(),
        stream_version: 2,
        kernel_release: "6.18".into(),
    };
    for (fs, rows) in &fixture.rows {
        let entries = rows.iter().map(|(key, body)| Entry::put("fixture", key.clone(), body.clone().into_bytes())).collect();
        runtime.block_on(journal.commit(Scope::Fs(*fs), entries)).unwrap();
        let rows = runtime.block_on(journal.load(Scope::Fs(*fs))).unwrap();
        let o = start(&t, &here, *fs, &rows);
        let about = format!("{moment}/{node} {fs}: {:?} {:?} {:#?}", o.records, o.tasks, o.status);
        let base = o.status.base.clone();
        let gone = base.as_ref().is_none_or(|b| matches!(b.life, Life::Deleting | Life::Gone));
        if !gone {
            let missing = [Trouble::CommitsLost, Trouble::Degraded, Trouble::HeadMissing, Trouble::DataMissing, Trouble::FormatNewer];
            for trouble in missing {
                assert!(!o.status.conditions.iter().any(|c| c.r#type == trouble.into() && c.status), "{trouble} of {about}");
            }
            // A handoff that had only begun is taken back, with the row of its own transfer.
            let cancelled = o.records.contains(&"mig-cancelled");
            let lost =
                |r: &&str| ["commit-gone", "forget", "receive-over", "delete-intent"].contains(r) || (*r == "job-gone" && !cancelled);
            assert!(!o.records.iter().any(lost), "{about}");
            let anew = base.as_ref().is_some_and(|b| b.head_from.is_some() || b.reset_to.is_some());
            let makes = |t: &Task| matches!(t, Task::CreateHead { .. }) && !anew;
            let unasked = |t: &Task| match t {
                Task::Destroy { .. } => true,
                Task::DeleteCommit(id) => !fixture.has(*fs, &format!("removing/{id}")),
                other => makes(other),
            };
            assert!(!o.tasks.iter().any(unasked), "{about}");
            assert_eq!(o.status.receiving.is_some(), fixture.count(*fs, "partial") > 0, "{about}");
        }
        more(base.and_then(|b| b.claim).map_or(String::new(), |c| c.name).as_str(), &o);
    }
    // What only the disk knows is found as well.
    for fs in t.list().unwrap() {
        assert!(fixture.rows.contains_key(&fs), "{fs} has no rows");
    }
}

fn commits(o: &Opened) -> usize {
    o.status.commits
}

#[test]
fn at_rest_an_owner_a_copy_and_a_branch_are_found() {
    let mut seen = Vec::new();
    opens("rest", "n1", |name, o| {
        seen.push(name.to_owned());
        assert_eq!(o.status.role, RoleStatus::Owner, "{name}");
        match name {
            "plain" => assert_eq!((commits(o), o.status.jobs.len()), (1, 1)),
            "mover" => assert_eq!(commits(o), 1),
            _ => assert!(o.status.base.as_ref().unwrap().origin.is_some(), "{name} is a branch"),
        }
    });
    seen.sort();
    assert_eq!(seen, ["mover", "plain", "side"]);
    opens("rest", "n2", |name, o| {
        assert_eq!((name, o.status.role, commits(o)), ("plain", RoleStatus::Replica, 1));
    });
}

/// The fence that a handoff has set holds over the upgrade: only what authority says may end it.
#[test]
fn a_handoff_is_found_in_each_of_its_phases() {
    // Where the head was when the mover was killed, and on which node.
    for (moment, giver, taker) in
        [("mig-frozen", "n2", "n1"), ("mig-pending", "n1", "n2"), ("mig-export", "n1", "n2"), ("mig-committed", "n2", "n1")]
    {
        opens(moment, giver, |name, o| {
            if name == "mover" {
                let writable = o.status.opened_epoch.is_some() || o.tasks.iter().any(|t| matches!(t, Task::Open { .. } | Task::Thaw));
                assert!(!writable, "{moment}: {:?} {:#?}", o.tasks, o.status);
            }
        });
        opens(moment, taker, |_, _| {});
    }
    opens("mig-begin", "n1", |name, o| assert!(name != "mover" || o.status.role == RoleStatus::Owner));
    opens("import-start", "n1", |name, o| {
        if name == "mover" {
            assert!(o.status.import_start.is_some(), "{:#?}", o.status);
        }
    });
    opens("import-finish", "n2", |name, o| assert!(name != "mover" || o.status.role == RoleStatus::Owner, "{:#?}", o.status));
}

#[test]
fn a_receive_goes_on_from_its_checkpoint() {
    opens("receive-checkpoint", "n2", |name, o| {
        if name == "big" {
            let (_, safe) = o.status.receiving.expect("a receive is open");
            assert!(safe >= 48 << 20, "{safe} bytes are safe");
            assert!(!o.tasks.iter().any(|t| matches!(t, Task::Discard(_))), "{:?}", o.tasks);
        }
    });
    opens("receive-checkpoint", "n1", |_, _| {});
}

#[test]
fn a_reset_is_gone_on_with_and_a_deletion_ends() {
    opens("reset-begun", "n1", |name, o| {
        assert!(name != "plain" || o.tasks.iter().any(|t| matches!(t, Task::DropHead | Task::CreateHead { .. })), "{:?}", o.tasks);
    });
    opens("reset-begun", "n2", |_, _| {});
    opens("delete-intent", "n1", |name, o| {
        assert!(name != "mover" || o.status.role == RoleStatus::Deleting, "{:#?}", o.status);
    });
    opens("delete-intent", "n2", |_, _| {});
}
