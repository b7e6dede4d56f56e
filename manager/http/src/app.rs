//! What all requests share.

use std::sync::Arc;

use tokio::sync::watch;

use crate::budget::Budgets;
use crate::door::Door;
use crate::events::Feed;
use crate::guard::Hosts;

/// What all requests share.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) door: Arc<dyn Door>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) hosts: Arc<Hosts>,
    /// True once the server is about to stop.
    pub(crate) stopping: watch::Receiver<bool>,
}
