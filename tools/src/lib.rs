//! podmesh-tools
