//! How much room the copy takes, and whether its files differ from the newest commit: the disk is looked at now and then, sooner where something
//! changed.

use super::event::Task;
use super::outbox::Source;
use super::tasks::{Desk, Slot};
use crate::ids::{BootTime, CommitId, Now, Timestamp};
use crate::model::Commit;

/// How often it is looked at when nothing else asks for it.
const EVERY_MS: u64 = 60_000;
/// … while an owner's files are those of its newest commit: the first write after it is to be seen.
const WATCH_MS: u64 = 20_000;
/// How often files are measured while nine tenths are used: that takes a quarter of a second at most.
const FILES_MS: u64 = 60_000;
/// And while nine tenths of the limit are used, or a partial transfer was cleared away: room that comes back is soon seen.
const SOON_MS: u64 = 2_000;

/// What a look has found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) bytes: u64,
    pub(super) limit: u64,
    /// The head was written after the commit that was asked about.
    pub(super) written: Option<bool>,
    /// Bytes of the files, if they were measured.
    pub(super) files: Option<u64>,
}

/// How the head stands to a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    commit: CommitId,
    /// Until then nothing had been written.
    unwritten_until: Timestamp,
    /// Something has been written since.
    written: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Usage {
    bytes: u64,
    /// 0: none known.
    limit: u64,
    /// Of the files alone, as last measured.
    files: Option<u64>,
    files_due: BootTime,
    seen: Option<Seen>,
    due: BootTime,
}

impl Usage {
    /// Used bytes, and their limit.
    pub(super) const fn figures(&self) -> (u64, u64) {
        (self.bytes, self.limit)
    }

    /// Bytes of the files, while nine tenths of the limit are used.
    pub(super) const fn files(&self) -> Option<u64> {
        self.files
    }

    const fn is_nearly_full(&self) -> bool {
        self.limit > 0 && self.bytes >= self.limit / 10 * 9
    }

    /// Since when the files differ from that commit, the newest: at the latest, as what was written may be seen a minute and a half later.
    /// `None`: they don't, as far as is known.
    pub(super) fn written_since(&self, newest: Option<CommitId>) -> Option<Timestamp> {
        self.seen.filter(|s| s.written && Some(s.commit) == newest).map(|s| s.unwritten_until)
    }

    /// Bytes left, where a limit is known.
    pub(super) fn free(&self) -> Option<u64> {
        (self.limit > 0).then(|| self.limit.saturating_sub(self.bytes))
    }

    pub(super) const fn due(&self) -> BootTime {
        self.due
    }

    /// Something changed that counts.
    pub(super) const fn look(&mut self) {
        self.due = BootTime(0);
    }

    /// Room may come back in a moment.
    pub(super) fn look_soon(&mut self, now: BootTime) {
        self.due = self.due.min(now.plus_ms(SOON_MS));
    }

    /// Nothing is here any more.
    pub(super) const fn clear(&mut self) {
        (self.bytes, self.limit, self.files, self.seen) = (0, 0, None, None);
    }

    pub(super) fn advance(&self, source: Source<'_>, desk: &mut Desk<'_>) {
        let standing = source.standing;
        if standing.is_active() && self.due <= desk.ctx.boot && desk.is_ready(Slot::Usage) {
            let has_head = standing.is_owner() && !standing.is_headless();
            let newest = source.history.newest().filter(|_| has_head).map(|c| c.id);
            let files = has_head && self.is_nearly_full() && self.files_due <= desk.ctx.boot;
            desk.start(Slot::Usage, Task::Usage { qgroup: standing.qgroup(), newest, files });
        }
    }

    /// It was looked at, or could not be. `about`: the commit that the head was compared with, if it is still here.
    pub(super) fn on_read(&mut self, about: Option<&Commit>, measured: bool, found: Option<Found>, now: Now) {
        if let Some(found) = found {
            (self.bytes, self.limit) = (found.bytes, found.limit);
            if let (Some(commit), Some(written)) = (about, found.written) {
                self.see(commit, written, now.wall);
            }
            if measured {
                (self.files, self.files_due) = (found.files, now.boot.plus_ms(FILES_MS));
            }
        }
        if !self.is_nearly_full() {
            (self.files, self.files_due) = (None, BootTime(0));
        }
        let watched = self.seen.is_some_and(|s| !s.written);
        self.due = now.boot.plus_ms(match () {
            () if self.is_nearly_full() => SOON_MS,
            () if watched => WATCH_MS,
            () => EVERY_MS,
        });
    }

    fn see(&mut self, commit: &Commit, written: bool, now: Timestamp) {
        let before = self.seen.filter(|s| s.commit == commit.id);
        let unwritten_until = match before {
            _ if !written => now.max(commit.time),
            Some(seen) => seen.unwritten_until,
            None => commit.time,
        };
        self.seen = Some(Seen { commit: commit.id, unwritten_until, written });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(n: i64) -> Commit {
        let json = serde_json::json!({"version": 1, "id": format!("0198c2a5-7f00-7000-8000-{n:012}"), "fsId": "0198c2a5-7f00-7000-8000-000000000001",
            "parent": null, "time": n * 100, "epoch": 1, "transient": false});
        serde_json::from_value(json).unwrap()
    }
    fn look(usage: &mut Usage, commit: &Commit, written: Option<bool>, at: i64) {
        let now = Now { wall: Timestamp(at), boot: BootTime(0) };
        usage.on_read(Some(commit), false, Some(Found { bytes: 1, limit: 100, written, files: None }), now);
    }

    #[test]
    fn files_are_measured_once_a_minute_while_it_is_nearly_full() {
        let mut usage = Usage::default();
        let mut read = |bytes: u64, measured: Option<u64>, at: u64| {
            let found = Found { bytes, limit: 100, written: None, files: measured };
            usage.on_read(None, measured.is_some(), Some(found), Now { wall: Timestamp(0), boot: BootTime(at) });
            (usage.files(), usage.is_nearly_full() && usage.files_due <= BootTime(at + SOON_MS), usage.due().0 - at)
        };
        assert_eq!(read(50, None, 0), (None, false, EVERY_MS));
        assert_eq!(read(95, None, 10), (None, true, SOON_MS), "it is to be measured");
        assert_eq!(read(95, Some(60), 20), (Some(60), false, SOON_MS));
        assert_eq!(read(96, None, FILES_MS + 20), (Some(60), true, SOON_MS), "and again a minute later");
        assert_eq!(read(80, None, FILES_MS + 30), (None, false, EVERY_MS), "nobody asks any more");
    }

    #[test]
    fn a_write_is_told_as_of_the_last_look_without_it_and_a_commit_ends_it() {
        let (mut usage, one, two) = (Usage::default(), commit(1), commit(2));
        look(&mut usage, &one, Some(false), 110);
        assert_eq!((usage.written_since(Some(one.id)), usage.due()), (None, BootTime(WATCH_MS)), "the first write is to be seen");
        look(&mut usage, &one, Some(true), 150);
        look(&mut usage, &one, Some(true), 190);
        look(&mut usage, &one, None, 195);
        assert_eq!((usage.written_since(Some(one.id)), usage.due()), (Some(Timestamp(110)), BootTime(EVERY_MS)));
        assert_eq!(usage.written_since(Some(two.id)), None, "that is another matter");
        look(&mut usage, &two, Some(true), 250);
        assert_eq!(usage.written_since(Some(two.id)), Some(Timestamp(200)), "after a start nobody knows better than from the commit on");
    }
}
