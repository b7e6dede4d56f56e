//! What the daemons share to measure themselves: a [`Histogram`] that costs its user some atomic
//! additions, the numbers of the process, and the [`Page`] that Prometheus reads.
//!
//! A daemon keeps its counters as plain atomics, and makes a page only when somebody asks for it.

mod histogram;
mod labels;
mod page;
mod process;

pub use histogram::{Buckets, Histogram};
pub use labels::{OUTCOMES, bounded};
pub use page::{CONTENT_TYPE, Page, Sample, Value};
pub use process::add_process;
