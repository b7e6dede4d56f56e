//! `podmesh`, for the end-to-end tests: cargo builds it before them and tells them where it is.

use std::process::ExitCode;

fn main() -> ExitCode {
    podmesh_tools::main()
}
