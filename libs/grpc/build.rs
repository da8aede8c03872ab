//! Makes the client and the server of the billing service; its messages are libs/codec's.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    generate("billing_service.proto", &here.join("../../protos"), &out)?;
    // For a test: a build script cannot be told what it is run for.
    let original = out.join("original");
    fs::create_dir_all(&original)?;
    generate("original.proto", &here.join("tests"), &original)
}

fn generate(file: &str, directory: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", directory.join(file).display());
    let descriptors = protox::compile([file], [directory])?;
    let messages = descriptors.file.iter().filter(|file| file.package().is_empty()).flat_map(|file| &file.message_type);
    let mut builder = tonic_prost_build::configure().build_transport(false).out_dir(out);
    for message in messages {
        builder = builder.extern_path(format!(".{}", message.name()), format!("::codec::billing::{}", message.name()));
    }
    builder.extern_path(".TransactionType", "::codec::billing::TransactionType").compile_fds(descriptors)?;
    Ok(())
}
