//! Facts about this machine that authority depends on.

use std::path::Path;

use dotgraft_engine::ids::BootId;

use super::ClusterError;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// This boot's id (random(4), `boot_id`). An opening lasts for (epoch, boot): migration.md §2, R0.
///
/// # Errors
/// `Refused` if /proc doesn't say; nothing can be opened then.
pub fn boot_id() -> Result<BootId, ClusterError> {
    read(Path::new(BOOT_ID))
}

fn read(path: &Path) -> Result<BootId, ClusterError> {
    let refused = |e: &dyn std::fmt::Display| ClusterError::Refused { message: format!("{}: {e}", path.display()) };
    let text = std::fs::read_to_string(path).map_err(|e| refused(&e))?;
    text.trim_end().parse().map_err(|e| refused(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_the_same_all_day_and_nothing_is_made_up() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert!(read(Path::new("/proc/version")).is_err());
        assert!(read(Path::new("/nonexistent")).is_err());
    }
}
