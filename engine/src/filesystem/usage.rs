//! How much room the copy takes: the qgroup is read now and then, sooner where something changed.

use super::event::Task;
use super::standing::Standing;
use super::tasks::{Desk, Slot};
use crate::ids::BootTime;

/// How often the qgroup is read when nothing else asks for it.
const EVERY_MS: u64 = 60_000;
/// And while nine tenths of the limit are used, or a partial transfer was cleared away: room that comes back is soon seen.
const SOON_MS: u64 = 2_000;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Usage {
    bytes: u64,
    /// 0: none known.
    limit: u64,
    due: BootTime,
}

impl Usage {
    /// Used bytes, and their limit.
    pub(super) const fn figures(&self) -> (u64, u64) {
        (self.bytes, self.limit)
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
        (self.bytes, self.limit) = (0, 0);
    }

    pub(super) fn advance(&self, standing: &Standing, desk: &mut Desk<'_>) {
        if standing.is_active() && self.due <= desk.ctx.boot && desk.is_ready(Slot::Usage) {
            desk.start(Slot::Usage, Task::Usage { qgroup: standing.qgroup() });
        }
    }

    /// It was read, or could not be.
    pub(super) fn on_read(&mut self, figures: Option<(u64, u64)>, now: BootTime) {
        if let Some((bytes, limit)) = figures {
            (self.bytes, self.limit) = (bytes, limit);
        }
        let nearly_full = self.limit > 0 && self.bytes >= self.limit / 10 * 9;
        self.due = now.plus_ms(if nearly_full { SOON_MS } else { EVERY_MS });
    }
}
