//! The real nginx with a configuration of deploy/, changed so that it runs on this machine.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use testbed::{Process, Scratch};

/// Starts nginx with the configuration that `configure` makes for a port and for a directory of temporary files; returns its
/// directory and the port, or none if nginx is not installed.
pub(crate) fn start(configure: impl FnOnce(u16, &str) -> String) -> Option<(Scratch, u16)> {
    Command::new("nginx").arg("-v").output().ok()?;
    let scratch = Scratch::new().unwrap();
    // The port is free again for nginx at once.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = configure(port, &format!("{}/", scratch.path().display()));
    let (file, log) = (scratch.path().join("nginx.conf"), scratch.path().join("nginx.log"));
    fs::write(&file, text).unwrap();
    let arguments =
        ["-e", "stderr", "-g", "daemon off;", "-c"].map(Into::into).into_iter().chain([file.into_os_string()]);
    let process = Process::builder("nginx", "nginx", log).args(arguments).start().unwrap();
    scratch.guard(&process).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < end, "nginx does not listen: {}", fs::read_to_string(process.log()).unwrap());
        thread::sleep(Duration::from_millis(20));
    }
    Some((scratch, port))
}

/// Says that a configuration is not tested. To stderr itself, which the test harness does not capture: a skipped test must not
/// look like a success.
pub(crate) fn skipped(configuration: &str) {
    let _ = writeln!(io::stderr(), "SKIPPED: the {configuration}'s configuration: nginx is not installed");
}

/// The head of a request; none from a connection that ends before it is complete.
pub(crate) fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).unwrap_or(0) == 0 {
            return None;
        }
    }
    Some(head)
}

/// Sends a complete request and returns the response.
pub(crate) fn response_to(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    io::read_to_string(stream).unwrap()
}

/// The status of a response.
pub(crate) fn status(response: &str) -> u16 {
    response.split(' ').nth(1).unwrap().parse().unwrap()
}
