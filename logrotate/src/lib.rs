//! podmesh-logrotate
