//! The guard: it measures what a peer sends before anything is kept or allocated for it, in both
//! daemons and in every client. Pure: bytes in, a verdict out.
//!
//! A ZMTP frame says how long it is, up to 2^63 bytes. No decoder here believes it before
//! [`zmtp`] has compared it with the limit.

pub mod zmtp;
