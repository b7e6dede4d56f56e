//! tools/monitoring: the page, the alerts and the dashboard name the metrics that there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use podmesh_tests::api::{Api, Place};
use podmesh_tests::wait::until_true;
use serde_json::Value;
use tempfile::TempDir;

use crate::scrape::Scrape;
use crate::{agent_address, manager, mesh_with_metrics};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/monitoring")
}

pub(crate) fn read(name: &str) -> String {
    let path = folder().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the words of a text that are names of metrics.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_metric = |word: &&str| word.starts_with("podmesh_") || word.starts_with("process_");
    // The series of a histogram.
    let family = |word: &str| {
        let ends = ["_bucket", "_count", "_sum"];
        ends.iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
    };
    words.filter(is_metric).map(family).collect()
}

/// Returns the metrics in the tables of the page.
fn documented() -> BTreeSet<String> {
    let page = read("README.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.map(str::to_owned).collect()
}

/// Returns the expressions of the alerts, with their names.
fn alerts() -> Vec<(String, String)> {
    let rules = read("rules.yml");
    let after = |key: &str| -> Vec<String> {
        rules.lines().filter_map(|line| line.trim().strip_prefix(key)).map(str::to_owned).collect()
    };
    let (names, expressions) = (after("- alert: "), after("expr: "));
    assert_eq!(names.len(), expressions.len(), "each alert has its expression in one line");
    names.into_iter().zip(expressions).collect()
}

/// Returns the expressions of the dashboard.
pub(crate) fn panels() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_page_has_every_metric_and_no_other() {
    let mesh = mesh_with_metrics("a", 1);
    let agent = Api::new(Place::Address(agent_address(1)));
    let mut found = BTreeSet::new();
    // The size of the output is known after the first look.
    until_true("the agent has looked at its disk", || {
        let names = Scrape::of(&agent).names();
        let complete = names.contains("podmesh_agent_log_bytes");
        found.extend(names);
        complete
    });
    found.extend(manager(&mesh).names());
    assert_eq!(found, documented(), "left: the daemons; right: tools/monitoring/README.md");
}

#[test]
fn alerts_and_the_dashboard_name_metrics_that_there_are() {
    let documented = documented();
    let expressions = alerts().into_iter().map(|(_, expression)| expression).chain(panels());
    for expression in expressions {
        let names = names_in(&expression);
        assert!(!names.is_empty() || expression.contains("up{"), "{expression}");
        let unknown: Vec<_> = names.difference(&documented).collect();
        assert!(unknown.is_empty(), "{expression}: there is no {unknown:?}");
    }
}

#[test]
fn each_alert_has_a_page_and_a_test() {
    let tests = read("rules_test.yml");
    let rules = read("rules.yml");
    let mut pages = BTreeSet::new();
    for (alert, _) in alerts() {
        let page = format!("runbook/{alert}.md");
        assert!(rules.contains(&format!("runbook: {page}\n")), "{alert}: its page");
        for part in ["**What it means.**", "**Look.**", "**Do.**"] {
            assert!(read(&page).contains(part), "{page}: {part}");
        }
        assert!(
            tests.contains(&format!("alertname: {alert}\n        exp_alerts")),
            "{alert}: tests"
        );
        pages.insert(format!("{alert}.md"));
    }
    let files = fs::read_dir(folder().join("runbook")).unwrap();
    let files: BTreeSet<String> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, pages);
}

/// Runs promtool; `None` if there is none, which is said.
fn promtool(args: &[&str], within: &Path) -> Option<Output> {
    match Command::new("promtool").args(args).current_dir(within).output() {
        Ok(output) => Some(output),
        Err(error) => {
            let required = std::env::var("PODMESH_TEST_PROMTOOL").is_ok_and(|it| it == "required");
            assert!(!required, "promtool cannot be run: {error}; install the package `prometheus`");
            eprintln!(
                "SKIPPED: promtool cannot be run ({error}); install the package `prometheus`"
            );
            None
        }
    }
}

#[track_caller]
fn passes(args: &[&str], within: &Path) -> bool {
    let Some(output) = promtool(args, within) else { return false };
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {args:?}: {said}");
    true
}

#[test]
fn promtool_accepts_the_configuration_the_alerts_and_the_dashboard() {
    let copy = TempDir::new().unwrap();
    for name in ["prometheus.yml", "rules.yml", "rules_test.yml"] {
        let text = read(name).replace("/etc/prometheus/podmesh.token", "podmesh.token");
        fs::write(copy.path().join(name), text).unwrap();
    }
    fs::write(copy.path().join("podmesh.token"), "x").unwrap();
    // The expressions of the dashboard, as rules.
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (at, expression) in panels().iter().enumerate() {
        let expression = Value::from(expression.replace("$__rate_interval", "1m"));
        rules += &format!("      - record: panel:{at}\n        expr: {expression}\n");
    }
    fs::write(copy.path().join("dashboard.yml"), rules).unwrap();
    for args in [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
        ["check", "rules", "dashboard.yml"],
    ] {
        if !passes(&args, copy.path()) {
            return;
        }
    }
}
