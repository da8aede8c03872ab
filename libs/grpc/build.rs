//! Makes the client and the server of the billing service; its messages are libs/codec's.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../protos");
    println!("cargo::rerun-if-changed={}", protos.display());
    let descriptors = protox::compile(["billing_service.proto"], [protos])?;
    let messages = descriptors.file.iter().filter(|file| file.package().is_empty()).flat_map(|file| &file.message_type);
    let mut builder = tonic_prost_build::configure().build_transport(false);
    for message in messages {
        builder = builder.extern_path(format!(".{}", message.name()), format!("::codec::billing::{}", message.name()));
    }
    builder.extern_path(".TransactionType", "::codec::billing::TransactionType").compile_fds(descriptors)?;
    Ok(())
}
