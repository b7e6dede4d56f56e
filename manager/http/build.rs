//! Compresses the OpenAPI document, and makes Cargo notice new files of the console.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=console/assets");
    println!("cargo:rerun-if-changed=openapi.json");
    let folder = std::env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    let file = File::create(Path::new(&folder).join("openapi.json.gz"))?;
    let mut encoder = GzEncoder::new(file, Compression::best());
    encoder.write_all(&std::fs::read("openapi.json")?)?;
    encoder.finish()?.flush()
}
