//! The core cannot use a clock, socket or file, because no dependency offers one.

#[test]
fn the_core_depends_only_on_the_protocol_and_two_small_crates() {
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
    assert_eq!(
        manifest.matches("dependencies]").count(),
        2,
        "the dependencies, and those of tests"
    );
}

#[test]
fn lints_forbid_clocks_and_hash_maps() {
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
