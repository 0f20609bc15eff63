//! When a schedule fires (replication.md §4, [ADR 41](../../docs/adr/0041-schedules.md)). Pure: `now` is given, and the time zones are the
//! IANA database that is built in, so two nodes agree whatever is installed on them.

use std::fmt;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Zoned};
use serde::{Deserialize, Serialize};

use crate::ids::{JobUid, Timestamp};

/// Longest pattern of cron and name of a time zone, in bytes.
pub const MAX_TEXT: usize = 128;
/// Shortest interval, in seconds.
pub const MIN_INTERVAL: u32 = 10;
/// Longest interval: a year, in seconds.
pub const MAX_INTERVAL: u32 = 31_536_000;
/// What fires at one moment for many is spread over at most so long (failures.md, row 22).
const MAX_JITTER_MS: u64 = 60_000;
/// A last firing that lies so far ahead was one of a clock that was wrong.
const WRONG_CLOCK_MS: u64 = 24 * 3_600_000;

/// When something is to be done by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Said", into = "Said")]
pub struct Schedule {
    said: Said,
    when: When,
}

/// A schedule as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Said {
    Cron { pattern: String, time_zone: String },
    Interval { seconds: u32 },
}

#[derive(Debug, Clone)]
enum When {
    Cron(Box<Cron>, TimeZone),
    Interval(u64),
}

/// Why a schedule is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// It can't be read.
    #[error(
        "`{0}` is no pattern of cron ({1}): take five fields, such as `30 2 * * *` for half past two each night, or a name such as @daily"
    )]
    Pattern(String, String),
    /// It can be read and means no day, such as the 30th of February.
    #[error("`{0}` never fires: there is no such day")]
    Never(String),
    /// Not in the database.
    #[error("there is no time zone `{0}`: take a name of the IANA database, such as Europe/Berlin, or UTC")]
    TimeZone(String),
    /// Out of bounds.
    #[error("an interval of {0} s: take {MIN_INTERVAL} to {MAX_INTERVAL}")]
    Interval(u32),
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.said == other.said
    }
}

impl Eq for Schedule {}

/// For people, and to tell whether a schedule has changed.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.said {
            Said::Cron { pattern, time_zone } => write!(f, "{pattern} {time_zone}"),
            Said::Interval { seconds } => write!(f, "every {seconds} s"),
        }
    }
}

impl TryFrom<Said> for Schedule {
    type Error = ScheduleError;

    fn try_from(said: Said) -> Result<Self, ScheduleError> {
        match said {
            Said::Cron { pattern, time_zone } => Self::cron(&pattern, Some(&time_zone)),
            Said::Interval { seconds } => Self::interval(seconds),
        }
    }
}

impl From<Schedule> for Said {
    fn from(schedule: Schedule) -> Self {
        schedule.said
    }
}

impl Schedule {
    /// Cron of five fields (minute, hour, day of month, month, day of week), or one of its names: `@hourly`, `@daily`, `@weekly`, `@monthly`,
    /// `@yearly`. `time_zone`: of the IANA database; UTC if absent.
    ///
    /// # Errors
    /// It can't be read, never fires, or the time zone isn't known.
    pub fn cron(pattern: &str, time_zone: Option<&str>) -> Result<Self, ScheduleError> {
        let zone_name = time_zone.unwrap_or("UTC");
        let clip = |text: &str| text.chars().take(MAX_TEXT).collect::<String>();
        let unread = |why: &str| ScheduleError::Pattern(clip(pattern), why.to_owned());
        let zone = TimeZoneDatabase::bundled().get(zone_name).map_err(|_| ScheduleError::TimeZone(clip(zone_name)))?;
        let fields = pattern.split_whitespace().count();
        if pattern.len() > MAX_TEXT {
            return Err(unread("it is too long"));
        }
        if fields != if pattern.trim_start().starts_with('@') { 1 } else { 5 } {
            return Err(unread(&format!("it has {fields} fields")));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(pattern).map_err(|e| unread(&e.to_string()))?;
        let when = When::Cron(Box::new(cron), zone);
        let said = Said::Cron { pattern: pattern.split_whitespace().collect::<Vec<_>>().join(" "), time_zone: zone_name.to_owned() };
        let schedule = Self { said, when };
        // Leap days come within eight years of any day.
        schedule.after(Timestamp(0)).map(|_| schedule).ok_or_else(|| ScheduleError::Never(clip(pattern)))
    }

    /// At once, and then again and again, so many seconds apart.
    ///
    /// # Errors
    /// Fewer than [`MIN_INTERVAL`] or more than [`MAX_INTERVAL`].
    pub fn interval(seconds: u32) -> Result<Self, ScheduleError> {
        if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&seconds) {
            return Err(ScheduleError::Interval(seconds));
        }
        Ok(Self { said: Said::Interval { seconds }, when: When::Interval(u64::from(seconds) * 1000) })
    }

    /// The schedule that an object's fields mean: cron, the time zone of that, or an interval in seconds; `None` if neither is there.
    ///
    /// # Errors
    /// As [`Self::cron`] and [`Self::interval`]. Both together: cron counts, as the CRD takes one of them only.
    pub fn of(cron: Option<&str>, time_zone: Option<&str>, interval: Option<u32>) -> Result<Option<Self>, ScheduleError> {
        let cron = cron.map(|pattern| Self::cron(pattern, time_zone));
        cron.or_else(|| interval.map(Self::interval)).transpose()
    }

    /// Whether it fires as soon as it is there: an interval does, a time of day waits.
    pub const fn begins_at_once(&self) -> bool {
        matches!(self.when, When::Interval(_))
    }

    /// The firing after `last`; `None` if there is none that this program can tell.
    ///
    /// A wall time that summer time skips fires at the end of the gap, and one that comes twice fires the first time only. A pattern whose hours
    /// or minutes are left open goes by real time: it fires through both hours.
    pub fn after(&self, last: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::Cron(cron, zone) => cron.find_next_occurrence(&zoned(last, zone)?, false).ok().map(|at| stamp(&at)),
            When::Interval(ms) => Some(last.plus_ms(*ms)),
        }
    }

    /// The newest firing after `last` that is not after `now`. All that were missed in between are one.
    fn newest(&self, last: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let newest = match &self.when {
            When::Cron(cron, zone) => stamp(&cron.find_previous_occurrence(&zoned(now, zone)?, true).ok()?),
            When::Interval(ms) => last.plus_ms(now.since_ms(last) / ms * ms),
        };
        (newest > last).then_some(newest)
    }

    /// So long after its time a firing is acted upon: at most a minute, and a tenth of the time to the next one, by the object's name alone.
    fn jitter_ms(&self, at: Timestamp, whose: JobUid) -> u64 {
        let gap = self.after(at).map_or(u64::MAX, |next| next.since_ms(at));
        let most = MAX_JITTER_MS.min(gap / 10).max(1);
        let (high, low) = whose.uuid().as_u64_pair();
        (high ^ low).wrapping_mul(0x9E37_79B9_7F4A_7C15) % most
    }

    /// What is due at `now`, after the last firing was `last`; none is due twice, whoever asks and whatever the clock does in between.
    pub fn due(&self, last: Timestamp, now: Timestamp, whose: JobUid) -> Option<Timestamp> {
        let newest = self.newest(last, now)?;
        if newest.plus_ms(self.jitter_ms(newest, whose)) <= now {
            return Some(newest);
        }
        // Its time has come and its turn hasn't; one before it may have been missed.
        self.newest(last, Timestamp(newest.0.saturating_sub(1)))
    }

    /// When [`Self::due`] has something next. May be past.
    pub fn next_due(&self, last: Timestamp, whose: JobUid) -> Option<Timestamp> {
        let next = self.after(last)?;
        Some(next.plus_ms(self.jitter_ms(next, whose)))
    }

    /// The last firing to count from: a clock that was more than a day ahead when it fired isn't waited for.
    pub fn counted(last: Timestamp, now: Timestamp) -> Timestamp {
        if last.since_ms(now) > WRONG_CLOCK_MS { now } else { last }
    }
}

/// To the second: what cron knows.
fn zoned(at: Timestamp, zone: &TimeZone) -> Option<Zoned> {
    let at = jiff::Timestamp::UNIX_EPOCH.checked_add(SignedDuration::from_millis(at.0)).ok()?;
    Some(at.to_zoned(zone.clone()))
}

fn stamp(at: &Zoned) -> Timestamp {
    Timestamp(at.timestamp().as_millisecond() / 1000 * 1000)
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
