//! `podmesh services`

use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::CliResult;
use crate::output::service::ServicesOutput;
use crate::output::{screen, service_table};

/// Lists the services.
pub(crate) async fn services(context: &Context) -> CliResult {
    let services = context.connection(PATIENCE_ASK)?.services().await?;
    if context.json() {
        screen::json(&ServicesOutput { services: services.iter().map(Into::into).collect() })?;
    } else {
        screen::print(&service_table::services(context.screen, &services))?;
        if services.is_empty() {
            screen::say(
                "there are no services yet; start one with `podmesh service apply -f FILE`",
            );
        }
    }
    Ok(0)
}
