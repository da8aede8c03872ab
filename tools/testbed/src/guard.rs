//! What ends our processes when we end, in whatever way: a shell that waits for the end of a pipe which we hold open, and
//! kills them then. A panic, SIGKILL and a lost terminal all close the pipe.
//!
//! A process is found by a variable that it was started with ([`mark`]), by its working directory (PostgreSQL's sessions
//! overwrite their environment), by its number, or by its descent from one of those. So neither a process group nor a
//! session of its own hides it, and SIGKILL reaches a frozen one too.

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

/// The variable by which a process is known as ours.
const VARIABLE: &str = "TESTBED_OWNER";

/// What the shell does. The name in `$0` spares it, and what it runs, from the guards of others; an interactive shell that
/// somebody has opened in the directory leads the session of its terminal and is spared too. A number may have been given
/// to another process: only together with the time of its start it names the one that was noted.
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

/// A shell that waits for our end, or for [`Guard::act`].
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    /// Starts one that ends every process with this value of the variable.
    fn of_mark(mark: &str) -> io::Result<Self> {
        Self::start(&format!("{VARIABLE}={mark}"), "".as_ref())
    }

    /// Starts one that ends every process which works in `directory`, and those noted in its folder `pids`, and then
    /// removes the directory.
    pub(crate) fn of_directory(directory: &Path) -> io::Result<Self> {
        Self::start("", directory.as_os_str())
    }

    fn start(mark: &str, directory: &OsStr) -> io::Result<Self> {
        let mut command = Command::new("sh");
        // A process group of its own: what ends us from the terminal must not end it.
        command.args(["-c", SCRIPT, "testbed-guard"]).process_group(0);
        command.env("MARK", mark).env("DIRECTORY", directory).env("LC_ALL", "C").env_remove(VARIABLE);
        // Who waits for the end of our output does not wait for it.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Self)
    }

    /// Has it act now, and waits until it has.
    pub(crate) fn act(&mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            let _ = pipe.write_all(b"\n");
        }
        let _ = self.0.wait();
    }
}

static LEFT_RUNNING: AtomicBool = AtomicBool::new(false);

/// From now on, the processes that [`Process`](crate::Process) starts, and does not run to their end, go on when our
/// program ends: what `just up` is for.
pub fn leave_running() {
    LEFT_RUNNING.store(true, Ordering::Relaxed);
}

pub(crate) fn leaves_running() -> bool {
    LEFT_RUNNING.load(Ordering::Relaxed)
}

/// A variable for the environment of a process that is to end, with all that descend from it, when our program does.
///
/// # Errors
/// If the shell that sees to it cannot be started.
pub fn mark() -> io::Result<(&'static str, String)> {
    static MARK: OnceLock<(String, Guard)> = OnceLock::new();
    if let Some((mark, _)) = MARK.get() {
        return Ok((VARIABLE, mark.clone()));
    }
    let mark = format!("{}-{:016x}", id(), fastrand::u64(..));
    let guard = Guard::of_mark(&mark)?;
    // Another thread may have been faster; its guard stays, and ours ends now.
    Ok((VARIABLE, MARK.get_or_init(|| (mark, guard)).0.clone()))
}

/// A command for a process that ends, with all that descend from it, when our program does.
///
/// # Errors
/// If the shell that sees to it cannot be started.
pub fn command(program: impl AsRef<OsStr>) -> io::Result<Command> {
    let mut command = Command::new(program);
    command.envs([mark()?]);
    Ok(command)
}
