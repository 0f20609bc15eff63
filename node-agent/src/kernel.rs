//! Kernels in whose btrfs a process without any privilege, such as a pod with a volume, can turn the whole pool read-only: with file names of
//! one hash (CVE-2026-43360), or by received UUIDs and snapshots of its own (CVE-2026-43361 and the fault beside it). The agent can't keep a pod
//! from it; it says so on its `NodePool`. Pure.
//!
//! Mended by 2d1ababdedd4, 87f2c46003fc and e1b18b959025 in Linux 7.0, and in the stable kernels of [`MENDED`], as their change logs say.

use dotgraft_api::{ConditionType, Reason};

use crate::cluster::pools::Fact;

/// The first kernel that has all three from its beginning.
const FIRST: (u32, u32) = (7, 0);
/// The stable series that they were brought into, and the first of each that has them. No other from 6.7 on lived long enough.
const MENDED: [(u32, u32, u32); 3] = [(6, 12, 78), (6, 18, 19), (6, 19, 9)];

/// Whether a kernel has the faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    /// It hasn't.
    Mended,
    /// It has, if its number is true.
    Present,
    /// Its number doesn't say: a vendor counts its own patches behind a version without a third number (`6.8.0-60-generic`), or it is a candidate.
    Unknown,
}

/// What the name of a kernel release (`uname -r`) says.
pub fn faults(release: &str) -> Faults {
    let Some((major, minor, patch, rest)) = numbers(release) else { return Faults::Unknown };
    if rest.starts_with("-rc") {
        return Faults::Unknown;
    }
    if (major, minor) >= FIRST {
        return Faults::Mended;
    }
    // Who backports without raising the third number leaves it at 0 and counts behind it.
    if patch == 0 && !rest.is_empty() {
        return Faults::Unknown;
    }
    match MENDED.iter().find(|(a, b, _)| (*a, *b) == (major, minor)) {
        Some((_, _, first)) if patch >= *first => Faults::Mended,
        _ => Faults::Present,
    }
}

/// Version, patch level (0 if there is none) and what stands behind them.
fn numbers(release: &str) -> Option<(u32, u32, u32, &str)> {
    let number = |text: &str| -> Option<(u32, usize)> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        Some((text.get(..end)?.parse().ok()?, end))
    };
    let (major, end) = number(release)?;
    let rest = release.get(end..)?.strip_prefix('.')?;
    let (minor, end) = number(rest)?;
    let rest = rest.get(end..)?;
    match rest.strip_prefix('.').and_then(|r| Some((number(r)?, r))) {
        Some(((patch, end), r)) => Some((major, minor, patch, r.get(end..)?)),
        None => Some((major, minor, 0, rest)),
    }
}

/// What the `NodePool` says of a kernel; nothing of one that is mended.
pub fn fact(release: &str) -> Option<Fact> {
    let what = "a pod with a volume can turn this pool read-only (CVE-2026-43360, CVE-2026-43361)";
    let (status, message) = match faults(release) {
        Faults::Mended => return None,
        Faults::Present => {
            (Some(true), format!("on kernel {release} {what}, unless its vendor has mended that: 6.12.78, 6.18.19, 6.19.9 and 7.0 are"))
        }
        Faults::Unknown => {
            let ask = "its vendor's security tracker says whether that is mended";
            (None, format!("the number of kernel {release} doesn't say whether {what}: {ask}"))
        }
    };
    let reason = Reason::from(ConditionType::KernelFaulty).to_string();
    Some(Fact { kind: ConditionType::KernelFaulty.to_string(), status, reason, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_number_says_whether_pods_can_turn_the_pool_read_only() {
        for mended in
            ["7.0", "7.0.0-22-generic", "7.3.4+deb13-amd64", "6.12.78", "6.12.95+deb12-amd64", "6.18.44-vm", "6.19.9-200.fc43.x86_64"]
        {
            assert_eq!(faults(mended), Faults::Mended, "{mended}");
            assert!(fact(mended).is_none());
        }
        for present in ["6.7", "6.9.12", "6.12.77+deb13-amd64", "6.17.13-1-default", "6.18.18", "6.19.8-arch1-1"] {
            assert_eq!(faults(present), Faults::Present, "{present}");
            let told = fact(present).unwrap();
            assert!(told.status == Some(true) && told.message.contains(present) && told.kind == "KernelFaulty", "{told:?}");
        }
        for unknown in ["6.8.0-60-generic", "6.12.0-160000.5-default", "7.0.0-rc3", "7.0-rc3", "", "6", "six.one", "6.8-mine"] {
            assert_eq!(faults(unknown), Faults::Unknown, "{unknown}");
            assert_eq!(fact(unknown).unwrap().status, None);
        }
    }
}
