//! The processes that a test or a tool starts are killed when it ends, also by SIGKILL.
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

/// Time for the guards, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The variable with the scenario that this test program runs when a test starts it as a child.
const PROGRAM: &str = "TESTBED_TEST_PROGRAM";

/// A child process that starts further processes, and its output.
struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
    /// In the command lines of the processes whose working directory is elsewhere.
    word: String,
}

impl Program {
    fn start(name: &str) -> Self {
        let word = format!("stray-{:016x}", fastrand::u64(..));
        let mut child = scenario(Command::new(env::current_exe().unwrap()), name)
            .env("WORD", &word)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output, word }
    }

    /// Waits for the line `name=value` in its output; returns the value.
    fn value_of(&mut self, name: &str) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if let Some(word) = line.trim().strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
                return word.to_owned();
            }
            line.clear();
        }
        panic!("it has not printed {name}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Makes `command`, which runs this test program, run a scenario.
fn scenario(mut command: Command, name: &str) -> Command {
    command.args(["--exact", "a_program_that_starts_others", "--ignored", "--nocapture"]).env(PROGRAM, name);
    command
}

/// The processes whose working directory is in `directory`, or whose command line contains `text`; no zombies.
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

/// Waits until no process and no directory is left of a program that has ended.
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

/// The scenarios that the tests start as child processes. They print what they have done, and wait until they are killed.
#[test]
#[ignore = "the other tests start it"]
fn a_program_that_starts_others() {
    let Ok(name) = env::var(PROGRAM) else { return };
    let print = |name: &str, word: &str| {
        println!("\n{name}={word}");
        std::io::stdout().flush().unwrap();
    };
    if name == "outer" {
        let inner = scenario(testbed::command(env::current_exe().unwrap()).unwrap(), "frozen").spawn();
        inner.unwrap().wait().unwrap();
    }
    let word = env::var("WORD").unwrap();
    let scratch = Scratch::new().unwrap();
    print("directory", &scratch.path().display().to_string());
    let (log, postgres) = (scratch.path().join("log"), scratch.path().join("postgres"));
    let shell = |script: &str| Process::builder("sh", "sh", &log).args(["-c", script]).directory("/");
    smol::block_on(async {
        match name.as_str() {
            "strayed" => {
                // In its own session, with a parent that has ended; and the child of a stopped process.
                let script = format!("setsid -f sh -c 'kill -STOP $$; : {word}'");
                shell(&script).run(TIMEOUT).await.unwrap();
                shell(&format!("setsid sh -c 'sleep 1000; : {word}' & kill -STOP $$; : {word}")).start().unwrap();
                until(|| processes(scratch.path(), &word).len() == 3);
            }
            "left running" => {
                testbed::leave_running();
                let process = shell(&format!("sleep 1000; : {word}")).start().unwrap();
                print("pid", &process.pid().to_string());
            }
            _ => {
                // Not registered with the guard: a test may end before that.
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
    print("done", &name);
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn until(mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !happened() {
        assert!(Instant::now() < end, "it has not happened");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a scenario, kills it once it has started its processes (at least `least`), and waits until nothing is left of it.
fn nothing_is_left_of(name: &str, least: usize) {
    let mut program = Program::start(name);
    let directory = PathBuf::from(program.value_of("directory"));
    program.value_of("done");
    let before = processes(&directory, &program.word);
    assert!(before.len() >= least, "{before:#?}");
    let word = program.word.clone();
    program.kill();
    until_gone(&directory, &word);
}

#[test]
fn a_stopped_postgresql_is_killed_with_a_test_that_is_killed() {
    nothing_is_left_of("frozen", 5);
}

#[test]
fn stopped_backends_of_a_dead_postmaster_are_killed() {
    nothing_is_left_of("frozen sessions", 4);
}

#[test]
fn descendants_in_their_own_sessions_are_killed() {
    nothing_is_left_of("strayed", 3);
}

#[test]
fn processes_of_a_child_program_are_killed_with_the_test() {
    nothing_is_left_of("outer", 5);
}

#[test]
fn a_stopped_postgresql_is_killed_with_a_test_that_panics() {
    let mut program = Program::start("panicked");
    let directory = PathBuf::from(program.value_of("directory"));
    program.child.wait().unwrap();
    until_gone(&directory, &program.word);
}

#[test]
fn processes_outlive_a_program_that_leaves_them_running() {
    let mut program = Program::start("left running");
    let directory = PathBuf::from(program.value_of("directory"));
    let pid = program.value_of("pid");
    program.value_of("done");
    let word = program.word.clone();
    program.kill();
    until(|| !directory.exists());
    assert_eq!(processes(&directory, &word).len(), 1);
    assert!(Command::new("kill").args(["-9", "--", &format!("-{pid}")]).status().unwrap().success());
}

#[test]
fn a_registered_process_is_killed_and_another_one_with_its_pid_is_not() {
    let logs = Scratch::new().unwrap();
    let sleep = |name| {
        let sleep = Process::builder(name, "sleep", logs.path().join("log")).args(["60"]);
        sleep.directory("/").start().unwrap()
    };
    let (mut guarded, mut stranger) = (sleep("guarded"), sleep("stranger"));
    let scratch = Scratch::new().unwrap();
    scratch.guard(&guarded).unwrap();
    // As if an earlier process with this pid had been registered.
    fs::write(scratch.path().join("pids").join(stranger.pid().to_string()), "1").unwrap();
    drop(scratch);
    smol::block_on(async {
        assert!(guarded.wait(Duration::from_secs(10)).await.is_some());
        assert_eq!(stranger.try_wait(), None);
        stranger.kill().await;
    });
}
