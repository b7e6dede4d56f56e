//! The core stays pure: it can reach neither clock nor I/O through what it depends on.

#[test]
fn nothing_but_words_and_errors_is_depended_on() {
    let manifest = include_str!("../../Cargo.toml");
    let (_, rest) = manifest.split_once("\n[dependencies]\n").unwrap();
    let (dependencies, _) = rest.split_once("\n[").unwrap();
    let mut names: Vec<_> = dependencies
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["podmesh-protocol", "thiserror", "tracing"]);
}
