//! The guard: it checks the sizes of a peer's input before memory is allocated for it, in both
//! daemons and in every client. Pure: bytes in, a verdict out.
//!
//! A ZMTP frame states its length, up to 2^63 bytes. No decoder here relies on it before [`zmtp`]
//! has compared it with the limit.

pub mod zmtp;
