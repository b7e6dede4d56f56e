//! `podmesh` for the end-to-end tests. Cargo builds it first and passes its path to them.

use std::process::ExitCode;

fn main() -> ExitCode {
    podmesh_tools::main()
}
