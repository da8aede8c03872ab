//! The program `stack` with a data directory and ports for one test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use testbed::{Process, Scratch, broker::Kind, http::Client, ports, service::binaries};

/// The components that `up` starts, by their pid files.
const COMPONENTS: [&str; 9] = [
    "postgres/postgres",
    "broker/broker",
    "patient-service",
    "billing-service",
    "analytics-service",
    "auth-service",
    "gateway",
    "console",
    "agent",
];

/// A data directory for a system that `up` starts. Dropping it kills the system.
pub(crate) struct Stack {
    pub(crate) scratch: Scratch,
    home: PathBuf,
    ports: Vec<(&'static str, String)>,
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) kafka: kafka::Settings,
}

impl Stack {
    /// With a data directory of this name.
    pub(crate) fn new(kind: Kind, home: &str) -> Self {
        let scratch = Scratch::new().unwrap();
        let kafka_port = ports::free();
        let port = || ports::free().to_string();
        let ports = vec![
            ("PATIENT_PORT", port()),
            ("BILLING_PORT", port()),
            ("BILLING_GRPC_PORT", port()),
            ("ANALYTICS_PORT", port()),
            ("KAFKA_PORT", kafka_port.to_string()),
            ("CONSOLE_PORT", port()),
            ("AUTH_PORT", port()),
            ("GATEWAY_PORT", port()),
            ("PATIENT_OPERATIONS_PORT", port()),
            ("BILLING_OPERATIONS_PORT", port()),
            ("ANALYTICS_OPERATIONS_PORT", port()),
        ];
        let environment = vec![
            // Relative to the working directory.
            ("STACK_HOME", format!("./{home}")),
            ("BROKER", if kind == Kind::Kafka { "kafka" } else { "nisshi" }.to_owned()),
        ];
        let bootstrap = config::Value::parse(&format!("127.0.0.1:{kafka_port}")).unwrap();
        let kafka = kafka::Settings {
            bootstrap,
            deadline: Duration::from_secs(5),
            client_id: "test",
            security: kafka::Security::default(),
        };
        Self { home: scratch.path().join(home), scratch, ports, environment, kafka }
    }

    /// Starts the system, with special characters of lists, URLs and Java properties in the name of its data directory, and
    /// with Java options that add a line to the output of `java -version`.
    pub(crate) fn up(kind: Kind) -> Self {
        let stack = Self::new(kind, "stäck, \"+\" \\");
        stack.up_with(&[("JAVA_TOOL_OPTIONS", r#"-XX:OnOutOfMemoryError="kill -9 %p""#)], &[]);
        stack
    }

    /// Runs `up` with further variables and arguments; panics if it fails. Returns its output.
    pub(crate) fn up_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> String {
        let output = self.try_up(variables, arguments);
        assert!(output.status.success(), "{}", printed(&output));
        printed(&output)
    }

    /// Runs `up` with further variables and arguments.
    pub(crate) fn try_up(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut command = self.command(&["up"]);
        let ports = self.ports.iter().map(|(name, port)| (name, port));
        let output = command.args(arguments).envs(ports).envs(variables.iter().copied()).output().unwrap();
        self.guard();
        output
    }

    /// A new system for `up --secure`, which has a data directory of its own beside the other one.
    pub(crate) fn secure(name: &str) -> Self {
        let stack = Self::new(Kind::Kafka, name);
        Self { home: stack.scratch.path().join(format!("{name}-secure")), ..stack }
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// The process of a running component.
    pub(crate) fn process(&self, component: &str) -> Option<Process> {
        let file = self.home.join(format!("{component}.pid"));
        Process::from_pid_file(component, &file, file.with_extension("log"))
    }

    /// Registers every running component to be killed at the end.
    pub(crate) fn guard(&self) {
        for process in COMPONENTS.iter().filter_map(|component| self.process(component)) {
            self.scratch.guard(&process).unwrap();
        }
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A command of `stack`. It knows the ports from the settings that `up` saved.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = testbed::command(binaries().unwrap().join("stack")).unwrap();
        let variables = self.environment.iter().map(|(name, value)| (name, value));
        command.args(arguments).env_remove("DATABASE_URL").env_remove("KAFKA_BOOTSTRAP_SERVERS").envs(variables);
        command.current_dir(self.scratch.path());
        command
    }

    /// Runs a command whose stdout is closed.
    pub(crate) fn run_unread(&self, arguments: &[&str]) -> Output {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        self.command(arguments).stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
    }

    /// Runs a command; panics if it fails. Returns its stdout.
    pub(crate) fn print(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", printed(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn client(&self, port: &str) -> Client {
        Client::new(format!("127.0.0.1:{}", self.port(port)))
    }

    pub(crate) fn port(&self, variable: &str) -> u16 {
        let (_, port) = self.ports.iter().find(|(name, _)| *name == variable).unwrap();
        port.parse().unwrap()
    }

    /// An environment variable of a running component.
    pub(crate) fn variable_of(&self, component: &str, name: &str) -> Option<String> {
        let pid = self.process(component).unwrap_or_else(|| panic!("{component} does not run")).pid();
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8(environment).unwrap();
        let found = environment.split('\0').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        found.map(str::to_owned)
    }
}

/// The stdout and stderr of a program.
pub(crate) fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
