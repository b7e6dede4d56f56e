//! The guard: what stands between bytes from the network and a ZeroMQ socket, in both daemons and
//! in every client.
//!
//! ZeroMQ's decoder believes what a frame says of its length, and so nothing reaches it that was
//! not measured first. [`zmtp`] measures, without any I/O; [`relay`] moves the bytes.

pub(crate) mod relay;
pub mod zmtp;
