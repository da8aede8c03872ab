//! The auth service. See `--help`.

use std::process::ExitCode;

use auth_service::{Service, Settings, users};
use runtime::Program;

fn main() -> ExitCode {
    let program = Program {
        name: "auth-service",
        about: "issues tokens to the users of a file, over HTTP",
        version: env!("CARGO_PKG_VERSION"),
        revision: option_env!("GIT_REVISION"),
        settings: Settings::read,
        healthcheck: |settings| web::healthcheck(&settings.http),
        commands: &[users::COMMAND],
    };
    program.main(|settings, shutdown| {
        otlp::export_while(settings.otlp.clone(), async { Service::build(settings).await?.run(shutdown).await })
    })
}
