//! The core can have no clock, socket or file: there is nothing in reach that has one.

#[test]
fn the_core_depends_on_words_alone() {
    let manifest = include_str!("../../Cargo.toml");
    let dependencies: Vec<&str> = manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|dependency| !dependency.is_empty() && !dependency.starts_with('#'))
        .collect();
    assert_eq!(dependencies, ["podmesh-protocol", "thiserror", "tracing"]);
    assert_eq!(manifest.matches("dependencies]").count(), 2, "these, and those of tests");
}

#[test]
fn the_lints_that_keep_it_so_are_there() {
    let lints = include_str!("../../clippy.toml");
    for path in [
        "std::time::Instant::now",
        "std::time::SystemTime::now",
        "std::collections::HashMap",
        "std::collections::HashSet",
    ] {
        assert!(lints.contains(path), "{path}");
    }
}
