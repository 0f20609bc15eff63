//! Where the runbook explains a condition's reason: each has an address there, its name in small letters.

/// The page, as the repository shows it.
const PAGE: &str = "https://github.com/dotgraft/dotgraft/blob/main/docs/runbook.md";

/// The address of `reason`.
pub fn of(reason: &str) -> String {
    format!("{PAGE}#{}", reason.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn what_status_shows_has_its_place_in_the_runbook() {
        let page = include_str!("../../docs/runbook.md");
        for reason in ["NoSpace", "OwnerLost", "Superseded", "PoolMissing", "CorruptDisk", "Diverged", "TargetIsOwner"] {
            let address = of(reason);
            let (_, place) = address.split_once('#').unwrap();
            assert!(page.contains(&format!("<a id=\"{place}\"></a>")), "{reason}");
        }
    }
}
