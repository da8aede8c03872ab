//! Makes Rust types of the messages in `protos/`. protox compiles them, so that no protoc needs to be installed.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../protos");
    println!("cargo::rerun-if-changed={}", protos.display());
    let billing = protox::compile(["billing_service.proto"], [&protos])?;
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("billing_service.binpb");
    fs::write(descriptors, billing.encode_to_vec())?;
    prost_build::compile_fds(billing)?;
    prost_build::compile_fds(protox::compile(["patient_event.proto"], [&protos])?)?;
    Ok(())
}
