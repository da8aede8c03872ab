//! Kills our processes when we end, in whatever way: a shell waits for the end of a pipe that we hold open, and kills them
//! then. A panic, SIGKILL and a closed terminal all close the pipe.
//!
//! A process is found by an environment variable that it was started with ([`owner_variable`]), by its working directory
//! (PostgreSQL's backends overwrite their environment), by its pid, or as a descendant of one of those. So it is found in
//! another process group or session too, and SIGKILL also ends a stopped process.

use std::{
    ffi::OsStr,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio, id},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// The environment variable that marks a process as ours.
const VARIABLE: &str = "TESTBED_OWNER";

/// The script of the shell. It spares guards and their children, by the name in `$0`, and an interactive shell that somebody
/// has opened in the directory, because it is the leader of a session with a terminal. A registered pid counts only with the
/// start time of its process, because the kernel gives pids to other processes.
const SCRIPT: &str = r#"trap '' HUP INT TERM
cd /
read -r _
ours() {
    {
        find /proc/[0-9]*/cwd -maxdepth 0 -printf 'directory %h %l\n'
        [ -z "$MARK" ] || grep -lzxF -e "$MARK" /proc/[0-9]*/environ | sed 's/^/marked /'
        [ -z "$DIRECTORY" ] || grep -H . "$DIRECTORY"/pids/* | sed 's|^.*/pids/|noted |; s/:/ /'
        grep -lzxF testbed-guard /proc/[0-9]*/cmdline | sed 's/^/guard /'
        cat /proc/[0-9]*/stat
    } 2>/dev/null | awk '
        function pid(path, parts) { split(path, parts, "/"); return parts[3] }
        BEGIN { directory = ENVIRON["DIRECTORY"]; size = length(directory) }
        $1 == "directory" {
            process = pid($2)
            sub(/^directory [^ ]* /, "")
            if (size && substr($0, 1, size) == directory && substr($0, size + 1, 1) ~ /^[\/ ]?$/) inside[process]
            next
        }
        $1 == "marked" { marked[pid($2)]; next }
        $1 == "noted" { noted[$2] = $3; next }
        $1 == "guard" { guard[pid($2)]; next }
        {
            process = $1
            if (!sub(/^.*\) /, "") || $1 == "Z" || $1 == "X") next
            parent[process] = $2
            if ($5 != 0 && $4 == process) leader[process]
            started[process] = $20
        }
        END {
            for (process in parent)
                if (process in marked || process in inside && !(process in leader) || noted[process] == started[process])
                    found[process]
            do {
                more = 0
                for (process in parent)
                    if (!(process in found) && parent[process] in found && !(process in guard)) { found[process]; more = 1 }
            } while (more)
            for (process in found) if (!(process in guard)) print process
        }'
}
for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    found=$(ours)
    [ -n "$found" ] || break
    kill -9 $found 2>/dev/null
    [ "$round" = 1 ] || sleep 0.2
done
[ -z "$DIRECTORY" ] || for round in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$DIRECTORY" 2>/dev/null && break; sleep 0.2; done"#;

/// A shell that waits until we end or call [`Guard::kill_all`].
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    /// Starts a guard that kills every process with this value of the variable.
    fn of_mark(mark: &str) -> io::Result<Self> {
        Self::start(&format!("{VARIABLE}={mark}"), "".as_ref())
    }

    /// Starts a guard that kills every process whose working directory is in `directory` and those registered in its folder
    /// `pids`, and then removes the directory.
    pub(crate) fn of_directory(directory: &Path) -> io::Result<Self> {
        Self::start("", directory.as_os_str())
    }

    fn start(mark: &str, directory: &OsStr) -> io::Result<Self> {
        let mut command = Command::new("sh");
        // Its own process group: Ctrl-C in the terminal must not end it.
        command.args(["-c", SCRIPT, "testbed-guard"]).process_group(0);
        command.env("MARK", mark).env("DIRECTORY", directory).env("LC_ALL", "C").env_remove(VARIABLE);
        // Otherwise a reader of our output would wait for the guard too.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Self)
    }

    /// Kills the processes now, and waits until the guard has ended.
    pub(crate) fn kill_all(&mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            let _ = pipe.write_all(b"\n");
        }
        let _ = self.0.wait();
    }
}

static LEAVES_RUNNING: AtomicBool = AtomicBool::new(false);

/// From now on, processes that [`ProcessBuilder::start`](crate::process::ProcessBuilder::start) starts outlive our program,
/// as `just up` needs.
pub fn leave_running() {
    LEAVES_RUNNING.store(true, Ordering::Relaxed);
}

pub(crate) fn leaves_running() -> bool {
    LEAVES_RUNNING.load(Ordering::Relaxed)
}

/// An environment variable: processes with it, and their descendants, are killed when our program ends.
///
/// # Errors
/// If the guard cannot be started.
pub fn owner_variable() -> io::Result<(&'static str, String)> {
    static MARK: OnceLock<(String, Guard)> = OnceLock::new();
    if let Some((mark, _)) = MARK.get() {
        return Ok((VARIABLE, mark.clone()));
    }
    let mark = format!("{}-{:016x}", id(), fastrand::u64(..));
    let guard = Guard::of_mark(&mark)?;
    // Another thread may have set it first; then our guard ends here.
    Ok((VARIABLE, MARK.get_or_init(|| (mark, guard)).0.clone()))
}

/// A command whose process, with its descendants, is killed when our program ends.
///
/// # Errors
/// If the guard cannot be started.
pub fn command(program: impl AsRef<OsStr>) -> io::Result<Command> {
    let mut command = Command::new(program);
    command.envs([owner_variable()?]);
    Ok(command)
}
