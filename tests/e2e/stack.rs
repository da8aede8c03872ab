//! `stack up`, the program behind the recipes, with a home and ports of a test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use testbed::{Process, Scratch, broker::Kind, http::Client, ports, service::binaries};

/// The parts that `up` starts, by their pid files.
const PARTS: [&str; 7] = [
    "postgres/postgres",
    "broker/broker",
    "patient-service",
    "billing-service",
    "analytics-service",
    "console",
    "agent",
];

/// A home for a system that `up` starts. All that runs ends with it.
pub(crate) struct Stack {
    pub(crate) scratch: Scratch,
    home: PathBuf,
    ports: Vec<(&'static str, String)>,
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) kafka: kafka::Settings,
}

impl Stack {
    /// In a folder of this name.
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
        ];
        let environment = vec![
            // Relative to where the program works.
            ("STACK_HOME", format!("./{home}")),
            ("BROKER", if kind == Kind::Kafka { "kafka" } else { "nisshi" }.to_owned()),
        ];
        let bootstrap = config::Value::parse(&format!("127.0.0.1:{kafka_port}")).unwrap();
        let kafka = kafka::Settings { bootstrap, deadline: Duration::from_secs(5), client_id: "test" };
        Self { home: scratch.path().join(home), scratch, ports, environment, kafka }
    }

    /// Starts it, in a folder with a name that lists, URLs and Java's settings would take apart, and with options for Java
    /// that make it say more than its version.
    pub(crate) fn up(kind: Kind) -> Self {
        let stack = Self::new(kind, "stäck, \"+\" \\");
        stack.up_with(&[("JAVA_TOOL_OPTIONS", r#"-XX:OnOutOfMemoryError="kill -9 %p""#)], &[]);
        stack
    }

    /// Starts it with more variables and arguments; it has to succeed. Gives what `up` said.
    pub(crate) fn up_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> String {
        let output = self.try_up(variables, arguments);
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    }

    /// Starts it with more variables and arguments.
    pub(crate) fn try_up(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut command = self.command(&["up"]);
        let ports = self.ports.iter().map(|(name, port)| (name, port));
        let output = command.args(arguments).envs(ports).envs(variables.iter().copied()).output().unwrap();
        self.guard();
        output
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// A part that runs.
    pub(crate) fn process(&self, part: &str) -> Option<Process> {
        let file = self.home.join(format!("{part}.pid"));
        Process::from_pid_file(part, &file, file.with_extension("log"))
    }

    /// Has everything that runs killed at the end.
    pub(crate) fn guard(&self) {
        for process in PARTS.iter().filter_map(|part| self.process(part)) {
            self.scratch.guard(&process).unwrap();
        }
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A command of the program. Where the system is, it knows from `up` alone.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = testbed::command(binaries().unwrap().join("stack")).unwrap();
        let variables = self.environment.iter().map(|(name, value)| (name, value));
        command.args(arguments).env_remove("DATABASE_URL").env_remove("KAFKA_BOOTSTRAP_SERVERS").envs(variables);
        command.current_dir(self.scratch.path());
        command
    }

    /// Runs a command whose output nobody reads any more.
    pub(crate) fn run_unread(&self, arguments: &[&str]) -> Output {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        self.command(arguments).stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
    }

    /// Runs a command that has to succeed; gives what it printed.
    pub(crate) fn print(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn client(&self, port: &str) -> Client {
        let (_, port) = self.ports.iter().find(|(name, _)| *name == port).unwrap();
        Client::new(format!("127.0.0.1:{port}"))
    }

    /// A variable that a process was started with.
    pub(crate) fn variable_of(&self, part: &str, name: &str) -> Option<String> {
        let pid = self.process(part).unwrap_or_else(|| panic!("{part} does not run")).pid();
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8(environment).unwrap();
        let found = environment.split('\0').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        found.map(str::to_owned)
    }
}

/// What a program printed.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
