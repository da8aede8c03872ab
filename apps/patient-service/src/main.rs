//! The patient service. See `--help`.

use std::process::ExitCode;

use patient_service::{Service, Settings, dead_letters};
use runtime::Program;

fn main() -> ExitCode {
    let program = Program {
        name: "patient-service",
        about: "patient records over HTTP; publishes what happens to them and keeps billing informed",
        version: env!("CARGO_PKG_VERSION"),
        revision: option_env!("GIT_REVISION"),
        settings: Settings::read,
        healthcheck: |settings| web::healthcheck(&settings.http),
        commands: &[dead_letters::COMMAND],
    };
    program.main(|settings, shutdown| {
        otlp::export_while(settings.otlp.clone(), async { Service::build(settings).await?.run(shutdown).await })
    })
}
