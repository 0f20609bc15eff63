//! What the world may do to us, beyond crashes, cuts and lost words. What takes a person to go on from is left out of the long random runs
//! ([`Hazards::MENDED`]) and has its schedules in `tests/known_faults.rs`.

/// A set of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hazards(u32);

impl Hazards {
    pub const NONE: Self = Self(0);
    /// Pods make subvolumes in the head (fault 1).
    pub const NESTED: Self = Self(1);
    /// Openings get old: an agent stands still with the answer in its socket, a clock jumps, the agent restarts (fault 5).
    pub const OLD_OPENINGS: Self = Self(1 << 1);
    /// A write to the API arrives after its sender has given up (fault 6).
    pub const LATE_WRITES: Self = Self(1 << 2);
    /// A pod starts while the head is being fenced (fault 8).
    pub const MOUNTS_IN_FENCES: Self = Self(1 << 3);
    /// Clocks jump, by an hour too, forward and back (fault 10).
    pub const CLOCKS: Self = Self(1 << 4);
    /// A journal is lost at any moment of a handoff (fault 6, second half).
    pub const LOST_JOURNALS: Self = Self(1 << 5);
    /// etcd is restored to an earlier state (fault 4).
    pub const RESTORES: Self = Self(1 << 6);

    /// What the random runs have in them.
    pub const MENDED: Self = Self::NESTED.with(Self::MOUNTS_IN_FENCES).with(Self::CLOCKS).with(Self::LATE_WRITES).with(Self::OLD_OPENINGS);

    /// Those that the random runs have in them, or those named by `DOTGRAFT_SIM_HAZARDS`: to see what is not mended yet.
    pub fn of_runs() -> Self {
        let Ok(names) = std::env::var("DOTGRAFT_SIM_HAZARDS") else { return Self::MENDED };
        names.split(',').map(Self::named).fold(Self::MENDED, Self::with)
    }

    fn named(name: &str) -> Self {
        match name {
            "nested" => Self::NESTED,
            "old-openings" => Self::OLD_OPENINGS,
            "late-writes" => Self::LATE_WRITES,
            "mounts-in-fences" => Self::MOUNTS_IN_FENCES,
            "clocks" => Self::CLOCKS,
            "lost-journals" => Self::LOST_JOURNALS,
            "restores" => Self::RESTORES,
            other => panic!("DOTGRAFT_SIM_HAZARDS knows no {other}"),
        }
    }

    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
