//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, ValueEnum};
use config::{HostPort, Value as _};

use crate::processes::WatchedProcess;

/// Measures an implementation of the patient registry from outside, over HTTP.
#[derive(Clone, Debug, Parser)]
#[command(name = "load", version)]
pub(crate) enum Options {
    /// Find the peak: each connection sends its next request when it has the response to the last one
    Closed(RunOptions),
    /// Find the latency at a fixed rate: that of a late request counts from its scheduled start
    Open {
        /// Requests a second of all connections together
        #[arg(long, value_parser = rate)]
        rate: f64,
        #[command(flatten)]
        run: RunOptions,
    },
}

impl Options {
    /// The options of both commands.
    pub(crate) fn run(&self) -> &RunOptions {
        let (Self::Closed(run) | Self::Open { run, .. }) = self;
        run
    }

    /// The rate of an open loop.
    pub(crate) fn rate(&self) -> Option<f64> {
        if let Self::Open { rate, .. } = self { Some(*rate) } else { None }
    }
}

/// The options of both commands.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunOptions {
    /// Base URL of the service
    #[arg(default_value = "http://127.0.0.1:4000")]
    pub(crate) url: String,
    /// PEM file with the authority of an https service, instead of the public ones
    #[arg(long, value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// File with a token to send, such as the output of just token
    #[arg(long, value_name = "FILE", conflicts_with = "analytics")]
    pub(crate) token: Option<PathBuf>,
    /// The requests to send
    #[arg(long, value_enum, default_value_t = ScenarioKind::Mixed)]
    pub(crate) scenario: ScenarioKind,
    /// GET this path instead of a scenario
    #[arg(long, conflicts_with = "scenario")]
    pub(crate) path: Option<String>,
    /// Connections, and so the most requests in flight
    #[arg(long, short, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) connections: u16,
    /// Open a connection for each request, to measure handshakes; those of TLS after the first resume its session, as browsers do
    #[arg(long)]
    pub(crate) new_connections: bool,
    /// Time measured, such as 30s
    #[arg(long, short, default_value = "20s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// Warm-up before it, which is not measured
    #[arg(long, short, default_value = "5s", value_parser = duration_or_none)]
    pub(crate) warm_up: Duration,
    /// Timeout of a request
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub(crate) limit: Duration,
    /// Most existing patients to read; they are taken from the list
    #[arg(long, default_value_t = 100_000)]
    pub(crate) known: usize,
    /// Also measure from each POST until analytics has applied its event; needs --kafka
    #[arg(long, requires = "kafka", value_name = "URL")]
    pub(crate) analytics: Option<String>,
    /// Bootstrap broker, to read the offset of each patient's event from the topic
    #[arg(long, requires = "analytics", value_parser = broker, value_name = "HOST:PORT")]
    pub(crate) kafka: Option<HostPort>,
    /// Topic of patient events
    #[arg(long, default_value = "patient")]
    pub(crate) topic: String,
    /// Patients that the scenarios update and delete create before the run, all clients together
    #[arg(long, default_value_t = 10_000)]
    pub(crate) own: usize,
    /// Report memory of this process, and CPU time and context switches of it and its descendants; may be repeated
    #[arg(long, value_name = "NAME=PID")]
    pub(crate) watch: Vec<WatchedProcess>,
    /// Command for sh that prints counters, `name value` on each line: run at the beginning and the end of the measurement;
    /// their growth is reported
    #[arg(long, value_name = "COMMAND")]
    pub(crate) counters: Option<String>,
    /// Write the report to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Threads of the load generator itself
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) threads: u8,
    /// Print no progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// The requests to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScenarioKind {
    /// 40 % read, 15 % list, 25 % create, 12 % update, 8 % delete
    Mixed,
    /// POST /patients
    Create,
    /// GET /patients/{id} of any known patient
    Read,
    /// GET /patients
    List,
    /// PUT /patients/{id} of patients that the client has created before
    Update,
    /// DELETE /patients/{id} of patients that the client has created before; when none is left, it creates more
    Delete,
}

fn duration(text: &str) -> Result<Duration, String> {
    Duration::parse(text).map_err(|why| format!("expected {}: {why}", Duration::EXPECTED))
}

fn duration_or_none(text: &str) -> Result<Duration, String> {
    if matches!(text, "0" | "0s") { Ok(Duration::ZERO) } else { duration(text) }
}

fn broker(text: &str) -> Result<HostPort, String> {
    HostPort::parse(text).map_err(|why| format!("expected {}: {why}", HostPort::EXPECTED))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if (0.01..=1e6).contains(&rate) { Ok(rate) } else { Err("it must be from 0.01 to 1000000".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Options::command().debug_assert();
    }

    #[test]
    fn wrong_values_are_rejected() {
        let parse = |line: &str| Options::try_parse_from(line.split(' ')).map_err(|error| error.to_string());
        for (line, why) in [
            ("load open", "--rate"),
            ("load open --rate 0", "from 0.01"),
            ("load closed --duration soon", "expected"),
            ("load closed --connections 0", "connections"),
            ("load closed --analytics http://127.0.0.1:4002", "--kafka"),
            ("load closed --watch postgres", "NAME=PID"),
        ] {
            assert!(parse(line).unwrap_err().contains(why), "{line}");
        }
        let options = parse("load open --rate 250.5 http://127.0.0.1:9 -c 8 -d 1500ms").unwrap();
        assert_eq!((options.rate(), options.run().connections), (Some(250.5), 8));
        assert_eq!(options.run().duration, Duration::from_millis(1500));
    }
}
