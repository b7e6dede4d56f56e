//! podmesh-tests
