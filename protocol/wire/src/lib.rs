//! podmesh-wire
