//! Makes Rust types of OpenTelemetry's messages. protox compiles them, so that no protoc needs to be installed.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("protos");
    println!("cargo::rerun-if-changed={}", protos.display());
    let services = ["trace/v1/trace", "metrics/v1/metrics", "logs/v1/logs"];
    let services = services.map(|service| format!("opentelemetry/proto/collector/{service}_service.proto"));
    let files = protox::compile(services, [&protos])?;
    // Their comments are no Rust documentation, and would be tested as such.
    prost_build::Config::new().include_file("otlp.rs").disable_comments(["."]).compile_fds(files)?;
    Ok(())
}
