//! The ground of the operator knows no controller: nineteen modules once formed a circle through `context.rs`, each of them a reason to change
//! all.

use std::path::Path;

/// What controllers stand on, and which may only stand on each other.
const GROUND: [&str; 21] = [
    "ca",
    "cache",
    "caches",
    "conditions",
    "content",
    "context",
    "crds",
    "error",
    "handle",
    "http",
    "lag",
    "leader",
    "live",
    "metrics",
    "names",
    "note",
    "pools",
    "triggers",
    "troubles",
    "volumes",
    "write",
];

/// The modules that a file names by `crate::`, its own tests left out.
fn named(source: &str) -> Vec<&str> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code.lines().filter(|l| !l.trim_start().starts_with("//"));
    let first_word = |rest: &'_ str| rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    lines.flat_map(|l| l.split("crate::").skip(1)).map(|rest| rest.get(..first_word(rest)).unwrap_or_default()).collect()
}

#[test]
fn the_ground_knows_no_controller() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for module in GROUND {
        let source = std::fs::read_to_string(src.join(module).with_extension("rs")).expect(module);
        let above: Vec<_> = named(&source).into_iter().filter(|m| !GROUND.contains(m)).collect();
        assert!(above.is_empty(), "{module}.rs stands on {above:?}");
    }
}
