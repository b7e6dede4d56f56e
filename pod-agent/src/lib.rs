//! podmesh-agent
