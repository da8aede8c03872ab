//! Makes Rust types of OpenTelemetry's messages. protox compiles them, so that no protoc needs to be installed.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("protos");
    println!("cargo::rerun-if-changed={}", protos.display());
    let files = protox::compile(["opentelemetry/proto/collector/trace/v1/trace_service.proto"], [&protos])?;
    // Their comments are no Rust documentation, and would be tested as such.
    prost_build::Config::new().include_file("otlp.rs").disable_comments(["."]).compile_fds(files)?;
    Ok(())
}
