//! Whatever a test or a tool starts ends with it, in whatever way that ends.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use testbed::{
    Process, Scratch, Signal,
    postgres::{Cluster, Durability},
};

/// How long the guards may take, on a busy machine too.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Which program this test is, when it is started by another one.
const PROGRAM: &str = "TESTBED_TEST_PROGRAM";

/// A program that starts others, and what it said of them.
struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Part of the command lines of what it starts elsewhere than in its directory.
    word: String,
}

impl Program {
    fn start(name: &str) -> Self {
        let word = format!("stray-{:016x}", fastrand::u64(..));
        let mut child = of_ourselves(Command::new(env::current_exe().unwrap()), name)
            .env("WORD", &word)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output, word }
    }

    /// The word that follows a name in its output.
    fn said(&mut self, name: &str) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if let Some(word) = line.trim().strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
                return word.to_owned();
            }
            line.clear();
        }
        panic!("it has not said {name}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Has this test program be one of the programs below.
fn of_ourselves(mut command: Command, name: &str) -> Command {
    command.args(["--exact", "a_program_that_starts_others", "--ignored", "--nocapture"]).env(PROGRAM, name);
    command
}

/// The processes that work in a directory or below, or whose command line holds a text; zombies are none.
fn processes(directory: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let works_there = fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
        let words = fs::read(path.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if works_there || (!words.contains("testbed-guard") && words.contains(text)) {
            found.push(format!("{} {words}", entry.file_name().display()));
        }
    }
    found
}

/// Waits until nothing is left of a program that has ended.
fn until_gone(directory: &Path, word: &str) {
    let end = Instant::now() + TIMEOUT;
    loop {
        let left = processes(directory, word);
        if left.is_empty() && !directory.exists() {
            return;
        }
        assert!(Instant::now() < end, "left behind: {left:#?}, the directory: {}", directory.exists());
        thread::sleep(Duration::from_millis(20));
    }
}

/// The programs that the tests start: they tell what they have done, and wait to be killed.
#[test]
#[ignore = "the other tests start it"]
fn a_program_that_starts_others() {
    let Ok(name) = env::var(PROGRAM) else { return };
    let say = |name: &str, word: &str| {
        println!("\n{name}={word}");
        std::io::stdout().flush().unwrap();
    };
    if name == "outer" {
        let inner = of_ourselves(testbed::command(env::current_exe().unwrap()).unwrap(), "frozen").spawn();
        inner.unwrap().wait().unwrap();
    }
    let word = env::var("WORD").unwrap();
    let scratch = Scratch::new().unwrap();
    say("directory", &scratch.path().display().to_string());
    let (log, postgres) = (scratch.path().join("log"), scratch.path().join("postgres"));
    let shell = |script: &str| Process::prepare("sh", "sh", &log).args(["-c", script]).directory("/");
    smol::block_on(async {
        match name.as_str() {
            "strayed" => {
                // In a session of its own, with a parent that has ended; and the child of one that is frozen.
                let script = format!("setsid -f sh -c 'kill -STOP $$; : {word}'");
                shell(&script).run(TIMEOUT).await.unwrap();
                shell(&format!("setsid sh -c 'sleep 1000; : {word}' & kill -STOP $$; : {word}")).start().unwrap();
                until(|| processes(scratch.path(), &word).len() == 3);
            }
            "left running" => {
                testbed::leave_running();
                let process = shell(&format!("sleep 1000; : {word}")).start().unwrap();
                say("pid", &process.pid().to_string());
            }
            _ => {
                // Not handed to the guard: a test may end before it has come to that.
                let mut cluster = Cluster::start(&postgres, Durability::Process).await.unwrap();
                cluster.process().signal_all(Signal::STOP);
                assert_ne!(name, "panicked", "as a test that fails");
                if name == "frozen sessions" {
                    cluster.process().signal(Signal::KILL);
                    assert!(cluster.process().wait(TIMEOUT).await.is_some());
                }
            }
        }
    });
    say("done", &name);
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn until(mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !happened() {
        assert!(Instant::now() < end, "it has not happened");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a program, kills it once it has done its work, and waits until nothing is left of it. `least` processes there
/// are before that.
fn nothing_is_left_of(name: &str, least: usize) {
    let mut program = Program::start(name);
    let directory = PathBuf::from(program.said("directory"));
    program.said("done");
    let before = processes(&directory, &program.word);
    assert!(before.len() >= least, "{before:#?}");
    let word = program.word.clone();
    program.kill();
    until_gone(&directory, &word);
}

#[test]
fn frozen_postgresql_ends_with_a_test_that_is_killed() {
    nothing_is_left_of("frozen", 5);
}

#[test]
fn frozen_sessions_whose_server_is_dead_end_too() {
    nothing_is_left_of("frozen sessions", 4);
}

#[test]
fn descendants_in_sessions_of_their_own_end_too() {
    nothing_is_left_of("strayed", 3);
}

#[test]
fn what_a_program_of_a_test_starts_ends_with_the_test() {
    nothing_is_left_of("outer", 5);
}

#[test]
fn frozen_postgresql_ends_with_a_test_that_panics() {
    let mut program = Program::start("panicked");
    let directory = PathBuf::from(program.said("directory"));
    program.child.wait().unwrap();
    until_gone(&directory, &program.word);
}

#[test]
fn what_is_to_be_left_running_goes_on() {
    let mut program = Program::start("left running");
    let directory = PathBuf::from(program.said("directory"));
    let pid = program.said("pid");
    program.said("done");
    let word = program.word.clone();
    program.kill();
    until(|| !directory.exists());
    assert_eq!(processes(&directory, &word).len(), 1);
    assert!(Command::new("kill").args(["-9", "--", &format!("-{pid}")]).status().unwrap().success());
}

#[test]
fn the_end_of_a_directory_kills_what_is_guarded_and_nobody_who_got_its_number() {
    let logs = Scratch::new().unwrap();
    let sleep = |name| {
        let sleep = Process::prepare(name, "sleep", logs.path().join("log")).args(["60"]);
        sleep.directory("/").start().unwrap()
    };
    let (mut guarded, mut stranger) = (sleep("guarded"), sleep("stranger"));
    let scratch = Scratch::new().unwrap();
    scratch.guard(&guarded).unwrap();
    // As if an earlier process with this number had been guarded.
    fs::write(scratch.path().join("pids").join(stranger.pid().to_string()), "1").unwrap();
    drop(scratch);
    smol::block_on(async {
        assert!(guarded.wait(Duration::from_secs(10)).await.is_some());
        assert_eq!(stranger.ended(), None);
        stranger.kill().await;
    });
}
