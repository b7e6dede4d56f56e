//! `podmesh doctor`

use std::path::Path;
use std::time::Duration;

use podmesh_protocol::access::Caller;
use podmesh_protocol::client::Info;
use podmesh_wire::WireError;
use podmesh_wire::enrolment::EnrolmentError;
use podmesh_wire::locate::Locator;
use podmesh_wire::machine::free_bytes;
use podmesh_wire::route::Route;
use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::access::DoctorArgs;
use crate::connect::{Connection, PATIENCE_ASK};
use crate::context::Context;
use crate::error::{CliError, EXIT_FAILURE, Outcome};
use crate::output::screen;
use crate::output::text::escape;
use crate::output::time::now_ms;
use crate::settings::DataDir;

/// Beyond this, times that are shown are confusing. Nothing else depends on clocks.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(30);
/// Less free space than this is soon none.
const FREE_BYTES_MIN: u64 = 100 << 20;

/// `podmesh doctor --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DoctorOutput {
    /// What was looked at, in order.
    checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Serialize, JsonSchema)]
struct Check {
    /// What.
    what: &'static str,
    /// Whether it is well.
    ok: bool,
    /// What was found.
    found: String,
    /// What to do, where it is not.
    advice: Option<String>,
}

#[derive(Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn well(&mut self, what: &'static str, found: impl Into<String>) {
        self.0.push(Check { what, ok: true, found: found.into(), advice: None });
    }

    fn wrong(&mut self, what: &'static str, found: impl Into<String>, advice: &str) {
        let advice = Some(advice.to_owned());
        self.0.push(Check { what, ok: false, found: found.into(), advice });
    }
}

/// Says what is wrong between this machine and its manager.
pub(crate) async fn doctor(context: &Context, args: DoctorArgs) -> Outcome {
    let data_dir = context.data_dir()?;
    let place = context.global.manager.clone();
    let locator = match args.agent {
        true => data_dir.agent_locator(place),
        false => data_dir.user_locator(place),
    };
    let mut checks = Checks::default();
    folders(&mut checks, &data_dir, args.logs_dir.as_deref());
    if let Some(route) = way(&mut checks, &locator) {
        manager(&mut checks, &route, locator).await;
    }
    docker(&mut checks).await;
    let well = checks.0.iter().all(|check| check.ok);
    if context.json() {
        screen::json(&DoctorOutput { checks: checks.0 })?;
    } else {
        for check in &checks.0 {
            let mark = if check.ok { "ok   " } else { "WRONG" };
            screen::line(format!("{mark}  {:<9}  {}", check.what, escape(&check.found)))?;
            if let Some(advice) = &check.advice {
                screen::line(format!("                  {advice}"))?;
            }
        }
    }
    Ok(if well { 0 } else { EXIT_FAILURE })
}

fn folders(checks: &mut Checks, data_dir: &DataDir, logs_dir: Option<&Path>) {
    folder(checks, "disk", data_dir.path());
    let logs = data_dir.task_logs();
    let logs = logs_dir.unwrap_or(&logs);
    if logs.exists() && !logs.starts_with(data_dir.path()) {
        folder(checks, "logs", logs);
    }
}

fn folder(checks: &mut Checks, what: &'static str, path: &Path) {
    let shown = path.display();
    if !path.exists() {
        return checks.well(what, format!("{shown} is not there yet"));
    }
    if let Err(error) = nix::unistd::access(path, nix::unistd::AccessFlags::W_OK) {
        let advice = "run as its owner, or choose another one with --data-dir";
        return checks.wrong(what, format!("{shown} cannot be written: {error}"), advice);
    }
    match free_bytes(path) {
        Ok(free) => {
            let free_text = bytesize::ByteSize::b(free).display().iec().to_string();
            let found = format!("{shown}, {free_text} free");
            if free < FREE_BYTES_MIN {
                checks.wrong(what, found, "make room: without it no work can be taken");
            } else {
                checks.well(what, found);
            }
        }
        Err(error) => checks.wrong(what, format!("{shown}: {error}"), "is its disk there?"),
    }
}

/// The way to the manager: key and enrolment.
fn way(checks: &mut Checks, locator: &Locator) -> Option<Route> {
    match locator.find() {
        Ok(route @ Route::Local(_)) => {
            checks.well("key", "none is needed: the manager is on this machine");
            Some(route)
        }
        Ok(route) => {
            checks.well("key", format!("{}", locator.enrolment_dir.display()));
            Some(route)
        }
        Err(error) => {
            let advice = match &error {
                EnrolmentError::None { .. } => {
                    "join: podmesh login TOKEN, podmesh agent --join TOKEN"
                }
                _ => "repair the file, or remove it and join again with a new token",
            };
            checks.wrong("key", error.to_string(), advice);
            None
        }
    }
}

async fn manager(checks: &mut Checks, route: &Route, locator: Locator) {
    let began = now_ms();
    // A try of its own: its error says where on the way it ended.
    if let Err(error) = podmesh_wire::client::Client::connect(route).await {
        let (what, advice) = match &error {
            WireError::NoLocalManager { .. } => (
                "address",
                "start one with `podmesh manager`; if another user runs it, ask them for access (--group)",
            ),
            WireError::WrongKey { .. } => ("key", "ask the manager's admin which key is right"),
            WireError::NotAManager { .. } => {
                ("address", "is the port right? are both of one version?")
            }
            WireError::Refused { .. } => ("key", "join again with a new token"),
            _ => ("address", "does the manager run? does a firewall let its port through?"),
        };
        return checks.wrong(what, error.to_string(), advice);
    }
    checks.well("address", format!("the manager answers by {route}"));
    let connection = Connection::new(locator, PATIENCE_ASK);
    let asked = async { Ok((connection.info().await?, connection.who_am_i().await?)) };
    let answered: Result<(Info, Caller), CliError> = asked.await;
    match answered {
        Ok((info, caller)) => {
            version(checks, &info);
            clock(checks, &info, began);
            checks.well("role", format!("{}, as {}", caller.role, caller.name));
        }
        Err(error) => checks.wrong("version", error.to_string(), "install one release on both"),
    }
}

fn version(checks: &mut Checks, info: &Info) {
    let (theirs, ours) = (&info.program_version, env!("CARGO_PKG_VERSION"));
    if *theirs == ours {
        checks.well("version", format!("both are {ours}"));
    } else {
        checks.well("version", format!("the manager is {theirs}, and this is {ours}"));
    }
}

fn clock(checks: &mut Checks, info: &Info, began_ms: u64) {
    let now = now_ms();
    // Theirs was read between these two.
    let off_ms = began_ms.saturating_sub(info.wall_ms).max(info.wall_ms.saturating_sub(now));
    let off = Duration::from_millis(off_ms);
    if off > CLOCK_OFF_MAX {
        let found = format!("it is {} s off that of the manager", off.as_secs());
        let advice =
            "set it, by NTP for instance: nothing depends on it, but times that are shown do";
        checks.wrong("clock", found, advice);
    } else {
        checks.well("clock", "as the manager's");
    }
}

async fn docker(checks: &mut Checks) {
    match podmesh_agent::docker::engine_version().await {
        Ok(version) => checks.well("docker", format!("engine {version}")),
        // A node without containers is a node.
        Err(error) => checks.well("docker", format!("no containers here: {error}")),
    }
}
