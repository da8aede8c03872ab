//! Generates the messages of `protos/patient_event.proto`. protox compiles the file, so no protoc needs to be installed.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../protos");
    println!("cargo::rerun-if-changed={}", protos.join("patient_event.proto").display());
    prost_build::compile_fds(protox::compile(["patient_event.proto"], [&protos])?)?;
    Ok(())
}
