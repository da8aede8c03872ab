//! The billing service. See `--help`.

use std::process::ExitCode;

use billing_service::{Service, Settings};
use runtime::Program;

fn main() -> ExitCode {
    let program = Program {
        name: "billing-service",
        about: "billing accounts of patients and their ledgers, over gRPC",
        version: env!("CARGO_PKG_VERSION"),
        revision: option_env!("GIT_REVISION"),
        settings: Settings::read,
        healthcheck: |settings| web::healthcheck(&settings.http),
        commands: &[],
    };
    program.main(|settings, shutdown| {
        otlp::export_while(settings.otlp.clone(), async { Service::build(settings).await?.run(shutdown).await })
    })
}
