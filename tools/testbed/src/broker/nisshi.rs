//! Nisshi, a Kafka-compatible broker in Rust.

use std::path::{Path, PathBuf};

use super::{INSTALL_TIMEOUT, log_file};
use crate::{Error, Process, cache};

/// The newest version of Nisshi that builds with our version of Rust.
pub const NISSHI_VERSION: &str = "0.7.0-pre.2";

/// Whether it is installed.
pub(super) fn is_installed() -> bool {
    binary().is_file()
}

fn binary() -> PathBuf {
    cache::directory().join(format!("nisshi-{NISSHI_VERSION}/bin/nisshi"))
}

/// Builds it with cargo.
pub(super) async fn install() -> Result<(), Error> {
    let root = cache::directory().join(format!("nisshi-{NISSHI_VERSION}"));
    Process::builder("the build of Nisshi", "cargo", cache::directory().join("nisshi-install.log"))
        .args(["install", "nisshi", "--version", NISSHI_VERSION, "--locked", "--quiet"])
        // It is built in a temporary directory, which the recipes' own would replace.
        .without_env("CARGO_TARGET_DIR")
        // The build takes two thirds of the time, and the broker is still fast enough for one machine.
        .envs([("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"), ("CARGO_PROFILE_RELEASE_LTO", "off")])
        .envs([("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")])
        .args(["--no-default-features", "--features", "libsql", "--root"])
        .args([&root])
        .run(INSTALL_TIMEOUT)
        .await
}

/// Starts a broker with its data in `directory`.
pub(super) fn launch(directory: &Path, port: u16, advertised: u16) -> Result<Process, Error> {
    let [url, advertised] = [port, advertised].map(|port| format!("tcp://127.0.0.1:{port}"));
    Process::builder("Nisshi", binary(), log_file(directory))
        .args(["broker", "--listener-url", &url, "--advertised-listener-url", &advertised])
        // The path is relative to the working directory. Only this storage engine is durable.
        .args(["--storage-engine", "sqlite://broker.db"])
        .directory(directory)
        .start()
}
