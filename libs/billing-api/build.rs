//! Generates the messages, the client and the server. protox compiles the file, so that no protoc needs to be installed.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use protox::prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    generate("billing_service.proto", &root.join("../../protos"), &out)?;
    // For tests/original.rs: cargo has no build scripts for tests alone.
    generate("original.proto", &root.join("tests"), &out.join("original"))
}

/// Writes `_.rs` and `descriptors.binpb` into `out`.
fn generate(file: &str, directory: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", directory.join(file).display());
    fs::create_dir_all(out)?;
    let descriptors = protox::compile([file], [directory])?;
    fs::write(out.join("descriptors.binpb"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().build_transport(false).out_dir(out).compile_fds(descriptors)?;
    Ok(())
}
