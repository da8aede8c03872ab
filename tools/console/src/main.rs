//! The console. See `--help`.

use std::process::ExitCode;

use console::{Service, Settings};
use runtime::Program;

fn main() -> ExitCode {
    let program = Program {
        name: "console",
        about: "a web page that shows the system at work",
        version: env!("CARGO_PKG_VERSION"),
        revision: option_env!("GIT_REVISION"),
        settings: Settings::read,
        healthcheck: |settings| web::healthcheck(&settings.http),
        commands: &[],
    };
    program.main(|settings, shutdown| async { Service::build(settings)?.run(shutdown).await })
}
