//! `podmesh doctor`

use std::path::Path;
use std::time::Duration;

use podmesh_agent::PROCESS_USER;
use podmesh_protocol::access::Caller;
use podmesh_protocol::client::Info;
use podmesh_wire::WireError;
use podmesh_wire::enrolment::EnrolmentError;
use podmesh_wire::locate::Locator;
use podmesh_wire::machine::free_bytes;
use podmesh_wire::manager_keys::KEY_FILE;
use podmesh_wire::route::Route;
use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::access::DoctorArgs;
use crate::connect::{Connection, PATIENCE_ASK};
use crate::context::Context;
use crate::error::{CliError, CliResult, EXIT_FAILURE};
use crate::output::screen;
use crate::output::text::escape;
use crate::output::time::now_ms;
use crate::settings::DataDir;
use crate::verbs::agent::process_user;

/// Above this difference, displayed times are confusing. Nothing else depends on clocks.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(30);
/// Below this amount of free space, the disk will soon be full.
const FREE_BYTES_MIN: u64 = 100 << 20;

/// `podmesh doctor --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DoctorOutput {
    /// The checks, in order.
    checks: Vec<Check>,
}

/// The result of one check.
#[derive(Debug, Serialize, JsonSchema)]
struct Check {
    /// The name of the check.
    what: &'static str,
    /// Whether the check passed.
    ok: bool,
    /// The result.
    found: String,
    /// What to do if the check failed.
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

/// Checks the connection between this machine and its manager.
pub(crate) async fn doctor(context: &Context, args: DoctorArgs) -> CliResult {
    let data_dir = context.data_dir()?;
    let place = context.global.manager.clone();
    let locator = match args.agent {
        true => data_dir.agent_locator(place),
        false => data_dir.user_locator(place),
    };
    let mut checks = Checks::default();
    folders(&mut checks, &data_dir, args.logs_dir.as_deref());
    if let Some(route) = route(&mut checks, &locator) {
        manager(&mut checks, &route, locator).await;
    }
    // The agents of `dev` have their own folders.
    if [data_dir.agent(), data_dir.inner("node-1").agent()].iter().any(|dir| dir.exists()) {
        commands(&mut checks, &data_dir);
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
        return checks.well(what, format!("{shown} does not exist yet"));
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
                checks.wrong(what, found, "free some space; otherwise this node gets no work");
            } else {
                checks.well(what, found);
            }
        }
        Err(error) => {
            checks.wrong(what, format!("{shown}: {error}"), "check that its disk is mounted")
        }
    }
}

/// Checks the way to the manager: its key and how this machine joined.
fn route(checks: &mut Checks, locator: &Locator) -> Option<Route> {
    match locator.find() {
        Ok(route @ Route::Local(_)) => {
            checks.well("key", "not needed: the manager is on this machine");
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
    // A separate connection, because its error tells at which point it failed.
    if let Err(error) = podmesh_wire::client::Client::connect(route).await {
        let (what, advice) = match &error {
            WireError::NoLocalManager { .. } => (
                "address",
                "start one with `podmesh manager`; if another user runs it, ask them for access (--group)",
            ),
            WireError::WrongKey { .. } => ("key", "ask the manager's admin which key is correct"),
            WireError::NotAManager { .. } => {
                ("address", "check the port, and that both sides run the same version")
            }
            WireError::Refused { .. } => ("key", "join again with a new token"),
            _ => (
                "address",
                "check that the manager is running and that no firewall blocks its port",
            ),
        };
        return checks.wrong(what, error.to_string(), advice);
    }
    checks.well("address", format!("the manager responds at {route}"));
    let connection = Connection::new(locator, PATIENCE_ASK);
    let asked = async { Ok((connection.info().await?, connection.who_am_i().await?)) };
    let answered: Result<(Info, Caller), CliError> = asked.await;
    match answered {
        Ok((info, caller)) => {
            version(checks, &info);
            clock(checks, &info, began);
            checks.well("role", format!("{}, as {}", caller.role, caller.name));
        }
        Err(error) => {
            checks.wrong("version", error.to_string(), "install the same release on both machines")
        }
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
    // The manager read its clock between these two times.
    let off_ms = began_ms.saturating_sub(info.wall_ms).max(info.wall_ms.saturating_sub(now));
    let off = Duration::from_millis(off_ms);
    if off > CLOCK_OFF_MAX {
        let found = format!("it differs from the manager's by {} s", off.as_secs());
        let advice = "set the clock, for example with NTP; only displayed times depend on it";
        checks.wrong("clock", found, advice);
    } else {
        checks.well("clock", "same as the manager's");
    }
}

/// Checks what commands on this machine can access and use.
fn commands(checks: &mut Checks, data_dir: &DataDir) {
    let what = "commands";
    let own = nix::unistd::geteuid();
    if own.is_root() {
        match process_user(data_dir) {
            Ok(None) => checks.well(what, format!("run as {PROCESS_USER}")),
            Ok(Some(user)) if user == "root" => {
                checks.well(
                    what,
                    "run as root: everyone who may submit jobs has root access to this machine",
                );
            }
            Ok(Some(user)) => checks.well(what, format!("run as {user}")),
            Err(error) => checks.wrong(what, error.to_string(), "correct agent.toml"),
        }
    } else {
        let name = nix::unistd::User::from_uid(own).ok().flatten().map(|user| user.name);
        let name = name.unwrap_or_else(|| format!("user {own}"));
        let key = data_dir.manager().join(KEY_FILE);
        let more = match nix::unistd::access(&key, nix::unistd::AccessFlags::R_OK) {
            Ok(()) => {
                ", including the manager's key: everyone who may submit jobs can become admin"
            }
            Err(_) => "",
        };
        checks.well(what, format!("run as {name}, with access to everything of this user{more}"));
    }
    let unenforced = podmesh_agent::unenforced_limits();
    if unenforced.is_empty() {
        checks.well("limits", "memory and cpus of commands are enforced");
    }
    for (limit, why) in unenforced {
        // A node without limits is still a valid node.
        checks.well("limits", format!("--{limit} is not enforced for commands: {why}"));
    }
}

async fn docker(checks: &mut Checks) {
    match podmesh_agent::docker::engine_version().await {
        Ok(version) => checks.well("docker", format!("engine {version}")),
        // A node without containers is a valid node.
        Err(error) => checks.well("docker", format!("containers are not available: {error}")),
    }
}
