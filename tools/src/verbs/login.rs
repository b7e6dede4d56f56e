//! `podmesh login`

use std::io::Read;

use podmesh_protocol::access::Role;
use podmesh_protocol::limits::TOKEN_TEXT_BYTES_MAX;
use podmesh_wire::enrolment::Enrolment;

use crate::cli::access::{LoginArgs, parse_token};
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::screen;
use crate::values::made_name;

/// Joins a cluster as a user. From then on every verb uses its manager.
pub(crate) async fn login(context: &Context, args: LoginArgs) -> CliResult {
    let token = if args.token == "-" {
        let mut text = String::new();
        std::io::stdin()
            .take(TOKEN_TEXT_BYTES_MAX as u64)
            .read_to_string(&mut text)
            .map_err(|why| CliError::failure("the token cannot be read").because(why))?;
        parse_token(&text)?
    } else {
        parse_token(&args.token)?
    };
    let name = match args.name {
        Some(name) => name,
        None => usual_name().ok_or_else(|| {
            CliError::failure("this user has no name").hint("choose one with --name")
        })?,
    };
    let dir = context.data_dir()?.user();
    let joined = Enrolment::join(&dir, &token, &name)
        .await
        .map_err(|why| CliError::failure("cannot join the cluster").because(why))?;
    if joined.role == Role::Agent {
        screen::say(
            "this token was for an agent and is now used up; to join an agent, run on its machine: podmesh agent --join TOKEN",
        );
    }
    screen::say(format!(
        "joined as {} with the role {}; the key is in {}",
        joined.name,
        joined.role,
        dir.display()
    ));
    Ok(0)
}

/// Returns a name such as `ann-laptop`, because the same person may join from several machines.
fn usual_name() -> Option<podmesh_protocol::ids::Name> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten()?.name;
    let host = nix::unistd::gethostname().ok()?;
    made_name(&format!("{user}-{}", host.to_string_lossy()))
}
