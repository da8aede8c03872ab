use std::{future::Future, io::Write, pin::Pin, process::ExitCode, sync::LazyLock};

use config::{Bounded, Environment, Reader};
use telemetry::{
    log,
    metrics::{self, IntGaugeVec},
};

use crate::Shutdown;

static BUILD_INFO: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges("build_info", "1, with the version and the git revision of the program.", &["version", "revision"])
});

/// Exit code of a service that failed.
const EX_FAILED: u8 = 1;
/// Exit code of a wrong command line: `EX_USAGE` of sysexits.h.
const EX_USAGE: u8 = 64;
/// Exit code of wrong settings: `EX_CONFIG` of sysexits.h.
const EX_CONFIG: u8 = 78;

/// The `main` of a service: reads the settings, runs the service and returns the exit code.
#[derive(Clone, Copy, Debug)]
pub struct Program<S: 'static> {
    /// Name of the binary.
    pub name: &'static str,
    /// What it is, in one line.
    pub about: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The git revision that it was built from, if the build set it.
    pub revision: Option<&'static str>,
    /// Reads the settings.
    pub settings: fn(&mut Reader) -> S,
    /// The command `healthcheck`: asks the running service with these settings whether it is ready.
    pub healthcheck: fn(&S) -> ExitCode,
    /// What it does besides running the service.
    pub commands: &'static [Command<S>],
}

/// A command of an operator, such as `patient-service dead-letters`: it has the settings of the service and ends by itself.
#[derive(Clone, Copy, Debug)]
pub struct Command<S: 'static> {
    /// The first argument.
    pub name: &'static str,
    /// The arguments after it, as `--help` shows them.
    pub arguments: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Reads the arguments after the name; the text of an error says what is wrong with them.
    pub parse: fn(&[&str]) -> Result<RunCommand<S>, String>,
}

/// A command with its arguments. It prints its result to stdout; its failure is printed to stderr.
pub type RunCommand<S> = Box<dyn FnOnce(S) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> + Send>;

/// Why a service ended without being stopped, and its exit code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// A configuration error, which persists until somebody changes the settings or what they refer to: exit code 78.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: EX_CONFIG }
    }

    /// The exit code.
    pub const fn code(&self) -> u8 {
        self.code
    }
}

impl From<String> for Failure {
    /// Any other failure: exit code 1.
    fn from(message: String) -> Self {
        Self { message, code: EX_FAILED }
    }
}

impl<S: Send + 'static> Program<S> {
    /// Executes the command line. Without arguments it runs the service until SIGTERM or SIGINT.
    pub fn main<R, E>(self, run: impl FnOnce(S, Shutdown) -> R + Send + 'static) -> ExitCode
    where
        R: Future<Output = Result<(), E>> + Send,
        E: Into<Failure> + Send + 'static,
    {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] => self.with_settings(|settings| self.run(settings, run)),
            ["healthcheck"] => self.with_settings(|settings| (self.healthcheck)(&settings.own)),
            ["--print-config"] => self.print_config(),
            ["--help" | "-h"] => self.help(),
            ["--version" | "-V"] => print(&format!("{} {}\n", self.name, self.full_version())),
            [name, rest @ ..] => match self.commands.iter().find(|command| command.name == *name) {
                Some(command) => self.command(command, rest),
                None => {
                    eprintln!("{}: unknown arguments: {}; see {} --help", self.name, arguments.join(" "), self.name);
                    ExitCode::from(EX_USAGE)
                }
            },
        }
    }

    fn command(&self, command: &Command<S>, arguments: &[&str]) -> ExitCode {
        let (program, Command { name, arguments: usage, .. }) = (self.name, command);
        let run = match (command.parse)(arguments) {
            Ok(run) => run,
            Err(error) => {
                eprintln!("{program} {name}: {error}\nUsage: {program} {name} {usage}");
                return ExitCode::from(EX_USAGE);
            }
        };
        self.with_settings(|settings| match crate::block_on(settings.threads.size(), run(settings.own)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(Failure { message, code }) => {
                eprintln!("{program} {name}: {message}");
                ExitCode::from(code)
            }
        })
    }

    fn read(&self, reader: &mut Reader) -> Settings<S> {
        Settings {
            own: (self.settings)(reader),
            // Two threads wake each other for every small task and gain little even at peak load (docs/performance.md).
            threads: reader.variable(&["EXECUTOR_THREADS"], "threads that run the service's own work").or("1"),
            log: log::Settings::read(reader),
        }
    }

    fn with_settings(&self, then: impl FnOnce(Settings<S>) -> ExitCode) -> ExitCode {
        let mut reader = Reader::new(Environment::process());
        let settings = self.read(&mut reader);
        match reader.finish(settings) {
            Ok((settings, _)) => then(settings),
            Err(errors) => {
                eprintln!("{}: {errors}", self.name);
                ExitCode::from(EX_CONFIG)
            }
        }
    }

    fn run<R, E>(&self, settings: Settings<S>, run: impl FnOnce(S, Shutdown) -> R + Send + 'static) -> ExitCode
    where
        R: Future<Output = Result<(), E>> + Send,
        E: Into<Failure> + Send + 'static,
    {
        if let Err(error) = log::init(self.name, &settings.log) {
            eprintln!("{}: cannot log: {error}", self.name);
            return ExitCode::FAILURE;
        }
        let revision = self.revision.unwrap_or_default();
        tracing::info!(version = self.version, revision, "starting");
        BUILD_INFO.with_label_values(&[self.version, revision]).set(1);
        let _flush = Flush;
        let shutdown = Shutdown::new();
        let outcome = crate::block_on(settings.threads.size(), async move {
            shutdown.trigger_on_signals().map_err(|error| Failure::from(error.to_string()))?;
            run(settings.own, shutdown).await.map_err(Into::into)
        });
        match outcome {
            Ok(()) => {
                tracing::info!("stopped");
                ExitCode::SUCCESS
            }
            Err(Failure { message: error, code }) => {
                tracing::error!(error, "stopped by an error");
                ExitCode::from(code)
            }
        }
    }

    /// The version, with the revision where it is known.
    fn full_version(&self) -> String {
        self.revision.map_or(self.version.to_owned(), |revision| format!("{} ({revision})", self.version))
    }

    fn print_config(&self) -> ExitCode {
        let mut reader = Reader::new(Environment::process());
        let settings = self.read(&mut reader);
        match reader.finish(settings) {
            Ok((_, report)) => print(&report.values()),
            Err(errors) => {
                eprintln!("{}: {errors}", self.name);
                ExitCode::from(EX_CONFIG)
            }
        }
    }

    fn help(&self) -> ExitCode {
        let mut reader = Reader::new(Environment::empty());
        self.read(&mut reader);
        print(&format!(
            "{name} {version}: {about}\n\n\
             Usage: {name} [COMMAND | --print-config | --help | --version]\n\
             \x20 (nothing)        runs the service until SIGTERM or SIGINT\n\
             \x20 healthcheck      queries the readiness of the running service; exit code 0 if it is ready\n\
             {commands}\
             \x20 --print-config   shows the settings in force, secrets masked\n\n\
             Exit codes: 0 stopped in order, 1 failed, 64 wrong arguments, 78 wrong settings.\n\n\
             Environment:\n{environment}",
            name = self.name,
            version = self.full_version(),
            about = self.about,
            commands = self.commands.iter().map(Command::help).collect::<String>(),
            environment = reader.into_report().help()
        ))
    }
}

impl<S: 'static> Command<S> {
    fn help(&self) -> String {
        format!("  {} {}\n                   {}\n", self.name, self.arguments, self.about)
    }
}

/// Flushes the log, also if `main` panics.
struct Flush;

impl Drop for Flush {
    fn drop(&mut self) {
        log::flush();
    }
}

struct Settings<S> {
    own: S,
    threads: Bounded<1, 64>,
    log: log::Settings,
}

fn print(text: &str) -> ExitCode {
    // A closed pipe (`--help | head`) is not an error.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    ExitCode::SUCCESS
}
