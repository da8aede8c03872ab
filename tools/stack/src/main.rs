//! Runs the system on this machine: the commands behind the just recipes. Without arguments, it prints its usage.

use std::{
    panic,
    process::{ExitCode, exit},
};

mod addresses;
mod agent;
mod agent_process;
mod analytics;
mod backend;
mod console_export;
mod dead_letters;
mod demo;
mod docker;
mod external_databases;
mod home;
mod http;
mod install;
mod lock;
mod logs;
mod native;
mod patient_dead_letters;
mod ports;
mod private_file;
mod rebuild;
mod secure;
mod seed;
mod service_settings;
mod settings;
mod summary;
mod terminal;
mod topic;
mod tour;

use anyhow::{Result, bail};
use settings::Settings;

const USAGE: &str = "\
Usage: stack COMMAND

  up [--docker | --native | --scaled] [--secure] [--no-build] [--yes]
                  start everything and wait until it is ready: in containers if a Docker engine responds, else natively;
                  --scaled starts several replicas in containers; --secure starts a system of its own with identities and
                  TLS everywhere; --no-build starts what was built last; --yes allows up to use existing databases on the
                  server of DATABASE_URL
  down            stop everything; data stay
  ps              show what runs
  logs [-f] [--all] [COMPONENT...]
                  show the last 50 lines of each log; --all shows them whole, -f follows them
  kill SERVICE    kill a service by SIGKILL; up starts it again
  reset [--yes]   stop everything and delete all data
  demo            send one patient through the system and show each step with its time
  tour            walk through the running system in ten steps: commands, what they did, where to look
  seed [N]        register N plausible patients (200), marked as samples
  dead-letters [--resend [ID...]]
                  show dead letters: records that are not events, and events that the broker rejected; --resend sends them
                  again
  rebuild-analytics [--anyway]
                  count all events again; --anyway also if the first records of the topic have been deleted
  token [USER]    log in to a secure system, as its developer or as its reader, and print the token
  target          print the addresses of the running system, for tests
  install-test-dependencies
                  install what the tests need; print arguments for cargo test that skip the tests of missing brokers
";

fn main() -> ExitCode {
    // What `up` starts outlives this program; what it waits for, such as a build, does not.
    testbed::leave_running();
    exit_on_broken_pipe();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match runtime::block_on(1, run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the program exit without a message if its output is closed, as in `just ps | head -3`.
fn exit_on_broken_pipe() {
    let default_hook = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            exit(0);
        }
        default_hook(panic);
    }));
}

async fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["up", rest @ ..] => return backend::up(&Settings::from_environment()?, rest).await,
        ["install-test-dependencies"] => {
            return install::test_dependencies(Settings::from_environment()?.broker.map(|broker| broker.0)).await;
        }
        _ => {}
    }
    let settings = Settings::of_checkout()?;
    match arguments {
        ["down"] => backend::down(&settings).await,
        ["ps"] => backend::ps(&settings).await,
        ["logs", rest @ ..] => backend::logs(rest).await,
        ["kill", component] => backend::kill(&settings, component).await,
        ["reset"] => backend::reset(&settings, false).await,
        ["reset", "--yes"] => backend::reset(&settings, true).await,
        ["demo"] => demo::run(&settings).await,
        ["tour"] => tour::run(&settings).await,
        ["seed"] => seed::run(&settings, None).await,
        ["seed", count] => seed::run(&settings, Some(count)).await,
        ["token"] => secure::print_token(&settings, secure::DEVELOPER).await,
        ["token", user] => secure::print_token(&settings, user).await,
        // Started by `up`.
        ["agent"] => agent::run(&settings).await,
        ["target"] => {
            println!("{}", backend::addresses(&settings).await?.as_variables());
            secure::print_target(&settings)
        }
        ["dead-letters"] => dead_letters::list(&settings).await,
        ["dead-letters", "--resend", ids @ ..] => dead_letters::resend(&settings, ids).await,
        ["rebuild-analytics"] => backend::rebuild_analytics(&settings, false).await,
        ["rebuild-analytics", "--anyway"] => backend::rebuild_analytics(&settings, true).await,
        _ => bail!(USAGE),
    }
}
