//! The analytics service. See `--help`.

use std::process::ExitCode;

use analytics_service::{Service, Settings};
use runtime::Program;

fn main() -> ExitCode {
    let program = Program {
        name: "analytics-service",
        about: "counts patient events from Kafka in a local state, effectively once",
        version: env!("CARGO_PKG_VERSION"),
        revision: option_env!("GIT_REVISION"),
        settings: Settings::read,
        healthcheck: |settings| web::healthcheck(&settings.http),
        commands: &[],
    };
    program.main(|settings, shutdown| {
        otlp::export_while(settings.otlp.clone(), async { Service::build(settings)?.run(shutdown).await })
    })
}
