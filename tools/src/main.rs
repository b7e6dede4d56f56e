//! The `podmesh` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    podmesh_tools::main()
}
