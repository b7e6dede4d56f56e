//! Makes Cargo notice new files of the console.

fn main() {
    println!("cargo:rerun-if-changed=console/assets");
}
