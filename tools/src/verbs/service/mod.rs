//! `podmesh service`

pub(crate) mod apply;
mod endpoints;
pub(crate) mod wait;

use std::time::Duration;

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::ServiceRequest;

use self::wait::Goal;
use crate::cli::service::{ServiceArgs, ServiceVerb, ShowArgs, WaitArgs};
use crate::connect::{Connection, PATIENCE_ASK, PATIENCE_SUBMIT, RequestError};
use crate::connect_services::Changed;
use crate::context::Context;
use crate::error::{CliError, CliResult, EXIT_FAILURE};
use crate::output::service::{
    HistoryOutput, ServiceChangedOutput, ServiceOutput, ServicesRemovedOutput,
};
use crate::output::{screen, service_table};

/// The similarity from which on a name is worth a hint.
const SIMILAR: f64 = 0.8;

/// Shows or changes services.
pub(crate) async fn service(context: &Context, args: ServiceArgs) -> CliResult {
    let verb = match (args.verb, args.show) {
        (Some(verb), None) => verb,
        (None, Some(show)) => ServiceVerb::Show(show),
        // clap's own rule against both would also refuse global options before the verb.
        (Some(_), Some(_)) => {
            return Err(CliError::usage("the name of the service stands before the command")
                .hint("write it after: podmesh service history web"));
        }
        (None, None) => {
            let error = CliError::usage("the name of a service is missing");
            return Err(error.hint("podmesh services lists them; see also podmesh service --help"));
        }
    };
    match verb {
        ServiceVerb::Show(args) => show(context, args).await,
        ServiceVerb::Apply(args) => apply::apply(context, args).await,
        ServiceVerb::Scale { service, replicas, wait } => {
            let (service, replicas) = (service.name, replicas.0);
            let request = ServiceRequest::Scale { service: service.clone(), replicas };
            change(context, service, request, wait, Goal::Healthy).await
        }
        ServiceVerb::Restart { service, wait } => {
            let request = ServiceRequest::Restart { service: service.name.clone() };
            change(context, service.name, request, wait, Goal::Healthy).await
        }
        ServiceVerb::Rollback { service, to, wait } => {
            let request = ServiceRequest::Rollback { service: service.name.clone(), to };
            change(context, service.name, request, wait, Goal::Healthy).await
        }
        ServiceVerb::Stop { service, wait } => {
            let request = ServiceRequest::Stop { service: service.name.clone() };
            change(context, service.name, request, wait, Goal::Stopped).await
        }
        ServiceVerb::Start { service, wait } => {
            let request = ServiceRequest::Start { service: service.name.clone() };
            change(context, service.name, request, wait, Goal::Healthy).await
        }
        ServiceVerb::Remove { names, wait } => remove(context, names, wait).await,
        ServiceVerb::History { service } => history(context, service.name).await,
    }
}

async fn show(context: &Context, args: ShowArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let name = args.name.clone();
    let detail = match connection.service(name.clone(), None, Duration::ZERO).await {
        Ok(detail) => detail,
        Err(error) => return Err(not_found(&connection, &name, error).await),
    };
    if args.endpoints || args.format.is_some() || args.port.is_some() {
        return endpoints::print(context, &args, &detail);
    }
    let history = connection.service_history(name).await?;
    if context.json() {
        screen::json(&ServiceOutput::new(&detail, &history))?;
    } else {
        screen::print(&service_table::service(context.screen, &detail, &history))?;
    }
    Ok(0)
}

async fn history(context: &Context, name: Name) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let history = match connection.service_history(name.clone()).await {
        Ok(history) => history,
        Err(error) => return Err(not_found(&connection, &name, error).await),
    };
    if context.json() {
        let revisions = history.iter().map(Into::into).collect();
        screen::json(&HistoryOutput { service: name.to_string(), revisions })?;
    } else {
        screen::print(&service_table::revisions(context.screen, &history))?;
    }
    Ok(0)
}

/// Sends a request that changes a service, says what it did, and waits if asked to.
async fn change(
    context: &Context,
    name: Name,
    request: ServiceRequest,
    wait: WaitArgs,
    goal: Goal,
) -> CliResult {
    let connection = context.connection(PATIENCE_SUBMIT)?;
    let changed = match connection.change_service(request).await {
        Ok(changed) => changed,
        Err(error) => return Err(not_found(&connection, &name, error).await),
    };
    tell(context, &changed)?;
    if wait.wait { wait::until(&connection, &changed, goal, wait.timeout).await } else { Ok(0) }
}

/// Prints what a request did.
pub(crate) fn tell(context: &Context, changed: &Changed) -> CliResult<()> {
    if context.json() {
        return screen::json(&ServiceChangedOutput::from(changed));
    }
    let Changed { service, revision, changed } = changed;
    screen::line(match changed {
        true => format!("{service}: revision {revision}"),
        false => format!("{service}: nothing to change; it has revision {revision}"),
    })
}

/// Removes services. If one cannot be removed, the others still are.
async fn remove(context: &Context, names: Vec<Name>, wait: WaitArgs) -> CliResult {
    let connection = context.connection(PATIENCE_SUBMIT)?;
    let mut removed = Vec::new();
    let mut code = 0;
    for name in names {
        match connection.change_service(ServiceRequest::Remove { service: name.clone() }).await {
            Ok(changed) => {
                if !context.json() {
                    screen::line(match changed.changed {
                        true => format!("{name}: is being removed"),
                        false => format!("{name}: is being removed already"),
                    })?;
                }
                removed.push(changed);
            }
            Err(error @ RequestError::Refused(_)) => {
                screen::say_error(&not_found(&connection, &name, error).await);
                code = EXIT_FAILURE;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if context.json() {
        let services = removed.iter().map(Into::into).collect();
        screen::json(&ServicesRemovedOutput { services })?;
    }
    if wait.wait {
        let started = std::time::Instant::now();
        for changed in &removed {
            let left = wait
                .timeout
                .map(|timeout| crate::values::Span(timeout.0.saturating_sub(started.elapsed())));
            let waited = wait::until(&connection, changed, Goal::Removed, left).await?;
            code = code.max(waited);
        }
    }
    Ok(code)
}

/// Returns the error of a request about a service, with a hint about a service of a similar name
/// if there is none of this name.
pub(crate) async fn not_found(
    connection: &Connection,
    name: &Name,
    error: RequestError,
) -> CliError {
    if !error.is_not_found() {
        return error.into();
    }
    let likeness =
        |other: &str| strsim::jaro_winkler(&name.as_str().to_lowercase(), &other.to_lowercase());
    // A hint only: without an answer there is none.
    let services = connection.services().await.unwrap_or_default();
    let nearest = services
        .iter()
        .map(|view| (likeness(view.service.as_str()), &view.service))
        .filter(|(likeness, _)| *likeness > SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let error = CliError::from(error);
    match nearest {
        Some((_, service)) => error.hint(format!("did you mean `{service}`?")),
        None => error,
    }
}

/// A service for tests.
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(crate) mod example {
    use podmesh_protocol::ids::{AttemptId, JobId, Revision};
    use podmesh_protocol::service::{
        ReplicaState, ReplicaView, RevisionState, ServiceDetail, ServiceRevision, ServiceSpec,
        ServiceState, ServiceView,
    };

    pub(crate) fn spec() -> ServiceSpec {
        serde_json::from_value(serde_json::json!({
            "name": "web",
            "replicas": 2,
            "ports": {"http": {"container": 80, "publish": 8080}},
            "run": {"runtime": {"docker": {"image": "nginx:1.27"}}},
        }))
        .unwrap()
    }

    pub(crate) fn revision() -> ServiceRevision {
        ServiceRevision {
            revision: 4,
            spec: spec(),
            by: "anna".parse().unwrap(),
            applied_wall_ms: 0,
            state: RevisionState::Begun.into(),
            message: None,
        }
    }

    pub(crate) fn replica(number: u32, state: ReplicaState) -> ReplicaView {
        ReplicaView {
            number,
            revision: 4,
            state: state.into(),
            attempt: Some(AttemptId::new(JobId(6 + u64::from(number)), 1, 1)),
            node: Some("node-1".parse().unwrap()),
            endpoints: [("http".parse().unwrap(), format!("10.0.0.1:{}", 20_000 + number))].into(),
            message: None,
            failures: 0,
            restarts_in_ms: None,
        }
    }

    pub(crate) fn detail() -> ServiceDetail {
        ServiceDetail {
            view: ServiceView {
                service: "web".parse().unwrap(),
                state: ServiceState::Degraded.into(),
                revision: 4,
                replicas: 2,
                healthy: 1,
                existing: 2,
                runs: "nginx:1.27".into(),
                published: [("http".parse().unwrap(), 8080)].into(),
                project: None,
            },
            spec: spec(),
            changed: Revision(9),
            replicas: vec![replica(1, ReplicaState::Healthy), replica(2, ReplicaState::Restarting)],
            waits_for: vec![],
            failed_update: None,
            closed_ports: Vec::new(),
        }
    }
}
