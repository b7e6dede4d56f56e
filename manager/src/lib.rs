//! podmesh-manager
