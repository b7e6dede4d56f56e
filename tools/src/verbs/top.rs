//! `podmesh top`

use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::CliResult;
use crate::top;

/// Shows the view in the terminal until the user quits.
pub(crate) async fn top(context: &Context) -> CliResult {
    top::terminal::check()?;
    let connection = context.connection(PATIENCE_ASK)?;
    top::run(connection, context.screen.color).await
}
