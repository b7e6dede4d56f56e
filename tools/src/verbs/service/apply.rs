//! `podmesh service apply`

use podmesh_protocol::service::{ServicePlan, ServiceRequest, ServiceSpec};

use super::tell;
use super::wait::{self, Goal};
use crate::cli::service::ApplyArgs;
use crate::connect::PATIENCE_SUBMIT;
use crate::context::Context;
use crate::error::CliResult;
use crate::output::screen;
use crate::output::service::ServicePlanOutput;
use crate::output::text::{count, escape};
use crate::service;

/// Creates or changes a service, and says before what will change.
pub(super) async fn apply(context: &Context, args: ApplyArgs) -> CliResult {
    let spec = service::read(&args.file, &|name| std::env::var_os(name))?;
    let connection = context.connection(PATIENCE_SUBMIT)?;
    let plan = connection.service_plan(spec.clone()).await?;
    if args.dry_run {
        show_plan(context, &spec, &plan)?;
        return Ok(0);
    }
    if !changes_nothing(&spec, &plan) {
        screen::say(intent(&spec, &plan));
        for reason in &plan.waits_for {
            screen::say(format!("replicas will wait: {}", escape(reason)));
        }
    }
    let request = ServiceRequest::Apply { spec: Box::new(spec) };
    let changed = connection.change_service(request).await?;
    tell(context, &changed)?;
    if args.wait.wait {
        wait::until(&connection, &changed, Goal::Healthy, args.wait.timeout).await
    } else {
        Ok(0)
    }
}

/// Returns whether an apply changes nothing. A stopped service is started again.
pub(crate) fn changes_nothing(spec: &ServiceSpec, plan: &ServicePlan) -> bool {
    plan.before.as_deref() == Some(spec) && !plan.replaces
}

/// Says in one sentence what an apply changes.
pub(crate) fn intent(spec: &ServiceSpec, plan: &ServicePlan) -> String {
    let name = &spec.name;
    let replicas = count(u64::from(spec.replicas), "replica");
    let Some(before) = &plan.before else {
        return format!("{name} is new: starting {replicas}");
    };
    let keys = service::changed_keys(before, spec);
    if keys.is_empty() {
        return format!("{name} is stopped: starting {replicas}");
    }
    let keys = keys.join(", ");
    let effect = if plan.replaces && !spec.replaces(before) {
        format!("; it is stopped, and starts with {replicas}")
    } else if plan.replaces {
        format!("; all replicas are replaced, {} at a time", at_a_time(spec))
    } else if spec.replicas == before.replicas {
        "; no replica is replaced".to_owned()
    } else {
        format!("; from {} to {replicas}, the others stay", before.replicas)
    };
    format!("{name} changes: {keys}{effect}")
}

/// Returns how many replicas an update replaces at a time.
fn at_a_time(spec: &ServiceSpec) -> u32 {
    let spare = spec.replicas.saturating_sub(spec.min_healthy());
    spec.update.max_surge.saturating_add(spare).clamp(1, spec.replicas.max(1))
}

fn show_plan(context: &Context, spec: &ServiceSpec, plan: &ServicePlan) -> CliResult<()> {
    let diff = service::unified(plan.before.as_deref(), spec)?;
    if context.json() {
        let changes = plan
            .before
            .as_ref()
            .map_or_else(Vec::new, |before| service::changed_keys(before, spec));
        return screen::json(&ServicePlanOutput {
            service: spec.name.to_string(),
            new: plan.before.is_none(),
            changes,
            diff,
            replaces: plan.replaces,
            placements: plan
                .placements
                .iter()
                .map(|(node, replicas)| (node.to_string(), *replicas))
                .collect(),
            waiting: plan.waiting,
            waits_for: plan.waits_for.clone(),
        });
    }
    screen::print(&describe(spec, plan, &diff, context.screen.color))
}

/// Describes a plan for people: the diff, and where replicas would go.
pub(crate) fn describe(spec: &ServiceSpec, plan: &ServicePlan, diff: &str, color: bool) -> String {
    if changes_nothing(spec, plan) {
        return format!("{}: nothing to change\n", spec.name);
    }
    let mut text = String::new();
    for line in diff.lines() {
        let style = match line.as_bytes().first() {
            Some(b'+') => anstyle::AnsiColor::Green.on_default(),
            Some(b'-') => anstyle::AnsiColor::Red.on_default(),
            _ => anstyle::Style::new(),
        };
        let line = escape(line);
        text += &if color { format!("{style}{line}{style:#}\n") } else { format!("{line}\n") };
    }
    text += &format!("\n{}\n", intent(spec, plan));
    for (node, replicas) in &plan.placements {
        text += &format!("  {node}: {}\n", count(u64::from(*replicas), "new replica"));
    }
    if plan.waiting > 0 {
        text +=
            &format!("  {} would wait for room\n", count(u64::from(plan.waiting), "new replica"));
    }
    for reason in &plan.waits_for {
        text += &format!("  {}\n", escape(reason));
    }
    text
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::verbs::service::example;

    fn plan(before: Option<ServiceSpec>, replaces: bool) -> ServicePlan {
        ServicePlan {
            before: before.map(Box::new),
            replaces,
            placements: [("node-1".parse().unwrap(), 1), ("node-2".parse().unwrap(), 2)].into(),
            waiting: 1,
            waits_for: vec!["no room\u{1b}[2J".into()],
        }
    }

    #[test]
    fn a_plan_shows_the_difference_and_where_replicas_go() {
        let mut spec = example::spec();
        spec.replicas = 4;
        spec.run.env.insert("MODE".into(), "a\u{1b}[31m\u{202e}".into());
        let plan = plan(Some(example::spec()), true);
        let diff = service::unified(plan.before.as_deref(), &spec).unwrap();
        let text = describe(&spec, &plan, &diff, false);
        for part in [
            "-replicas = 2\n+replicas = 4\n",
            "web changes: env, replicas; all replicas are replaced, 1 at a time\n",
            "  node-1: 1 new replica\n  node-2: 2 new replicas\n  1 new replica would wait",
            "no room\\u{1b}[2J",
        ] {
            assert!(text.contains(part), "{part:?}: {text}");
        }
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
        assert!(describe(&spec, &plan, &diff, true).contains("\u{1b}[32m+replicas = 4"));
    }

    #[test]
    fn the_same_spec_changes_nothing() {
        let spec = example::spec();
        let plan = plan(Some(spec.clone()), false);
        let diff = service::unified(plan.before.as_deref(), &spec).unwrap();
        assert_eq!(diff, "");
        assert_eq!(describe(&spec, &plan, &diff, false), "web: nothing to change\n");
    }

    #[test]
    fn what_will_change_is_one_sentence() {
        let spec = example::spec();
        assert_eq!(intent(&spec, &plan(None, true)), "web is new: starting 2 replicas");
        let mut before = spec.clone();
        before.replicas = 5;
        assert_eq!(
            intent(&spec, &plan(Some(before.clone()), false)),
            "web changes: replicas; from 5 to 2 replicas, the others stay"
        );
        assert_eq!(
            intent(&spec, &plan(Some(before), true)),
            "web changes: replicas; it is stopped, and starts with 2 replicas"
        );
        assert_eq!(
            intent(&spec, &plan(Some(spec.clone()), true)),
            "web is stopped: starting 2 replicas"
        );
        before = spec.clone();
        before.drain_ms = 1;
        assert_eq!(
            intent(&spec, &plan(Some(before), false)),
            "web changes: drain; no replica is replaced"
        );
    }
}
