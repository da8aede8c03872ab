//! What the just recipes do. See `just --list`, or this program without arguments.

use std::{
    fmt, panic,
    process::{ExitCode, exit},
};

mod addresses;
mod agent;
mod agent_process;
mod analytics;
mod backend;
mod databases;
mod dead_letters;
mod demo;
mod docker;
mod given_databases;
mod home;
mod http;
mod logs;
mod native;
mod observation;
mod parts;
mod patient_dead_letters;
mod port_owner;
mod private_file;
mod rebuild;
mod seed;
mod service_settings;
mod settings;
mod show;
mod summary;
mod topic;

use settings::Settings;

const USAGE: &str = "\
Usage: stack COMMAND

  up [--docker | --native | --scaled] [--no-build] [--yes]
                  start everything and wait until it is ready: in containers where a Docker engine answers, else
                  natively; --scaled starts several replicas in containers; --no-build starts what was built last;
                  --yes agrees to use databases on the server of DATABASE_URL that up has not made
  down            stop everything; data stay
  ps              show what runs
  logs [-f] [--all] [PART]
                  show the end of the logs; -f follows them
  kill PART       kill a part as a crash does; up brings it back
  reset [--yes]   stop everything and delete all data
  demo            send one patient all the way and show where it was
  seed [N]        register N plausible patients (200), marked as samples
  dead-letters [--resend [ID...]]
                  show the records that are no events, and the events that the broker refused; --resend sends them
                  again
  rebuild-analytics [--anyway]
                  count all events again; --anyway also if the topic has lost the first of them
  target          print where the system that is up is reached, for tests
  test-parts      install what the tests need; print the arguments that leave out tests whose broker cannot be had
";

/// Why a command failed, as its user should read it.
#[derive(Debug)]
struct Failure(String);

impl<E: fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

type Outcome<T = ()> = Result<T, Failure>;

fn main() -> ExitCode {
    // What `up` starts goes on; what is run to its end, such as a build, ends with us.
    testbed::leave_running();
    end_with_the_reader();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match runtime::block_on(1, run(&words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(why)) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Lets the program end in silence when nobody reads its output any more, as in `just ps | head -3`.
fn end_with_the_reader() {
    let others = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            exit(0);
        }
        others(panic);
    }));
}

async fn run(words: &[&str]) -> Outcome {
    match words {
        ["up", rest @ ..] => return backend::up(&Settings::from_environment()?, rest).await,
        ["test-parts"] => return parts::for_tests(Settings::from_environment()?.broker.map(|broker| broker.0)).await,
        _ => {}
    }
    let settings = Settings::of_checkout()?;
    match words {
        ["down"] => backend::down(&settings).await,
        ["ps"] => backend::ps(&settings).await,
        ["logs", rest @ ..] => backend::logs(rest).await,
        ["kill", part] => backend::kill(&settings, part).await,
        ["reset"] => backend::reset(&settings, false).await,
        ["reset", "--yes"] => backend::reset(&settings, true).await,
        ["demo"] => demo::run(&settings).await,
        ["seed"] => seed::run(&settings, None).await,
        ["seed", count] => seed::run(&settings, Some(count)).await,
        // Started by `up`.
        ["agent"] => agent::run(&settings).await,
        ["target"] => {
            println!("{}", backend::addresses(&settings).await?.as_words());
            Ok(())
        }
        ["dead-letters"] => dead_letters::list(&settings).await,
        ["dead-letters", "--resend", ids @ ..] => dead_letters::resend(&settings, ids).await,
        ["rebuild-analytics"] => backend::rebuild_analytics(&settings, false).await,
        ["rebuild-analytics", "--anyway"] => backend::rebuild_analytics(&settings, true).await,
        _ => Err(Failure(USAGE.to_owned())),
    }
}
