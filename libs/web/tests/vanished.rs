//! A client that vanishes without closing its connection, such as one that lost power or its network.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    time::Duration,
};

use config::{Environment, Reader};
use runtime::{Shutdown, timeout};
use smol::channel::{self, Sender};
use tide::{Request, Response};
use web::{Limits, Problem, Router, Server, Settings};

/// Reads the beginning of a stream, and then has the kernel drop every packet for its socket before TCP handles it.
const CLIENT: &str = r#"
import ctypes, socket, struct, sys, time
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.sendall(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
assert client.recv(100).startswith(b"HTTP/1.1 200")
drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
client.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(drop_all)))
print("vanished", flush=True)
time.sleep(120)
"#;

/// Far less than the kernel retransmits by default.
const LIMIT: Duration = Duration::from_secs(60);

struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A stream of a few bytes now and then, which reports its end.
async fn events(request: Request<Sender<()>>) -> Result<Response, Problem> {
    let gone = request.state().clone();
    let (events, response) = web::events();
    let send = async move {
        while events.send("event", "{}").await {
            smol::Timer::after(Duration::from_millis(100)).await;
        }
        let _ = gone.send(()).await;
    };
    runtime::spawn(send).detach();
    Ok(response)
}

#[test]
fn a_vanished_client_of_a_stream_is_disconnected() {
    let limits = Limits { write_timeout: Duration::from_secs(1), drain: Duration::from_secs(1), ..Limits::default() };
    let environment = Environment::empty().with("SERVER_PORT", "0");
    let settings = Settings { limits, ..Settings::read(&mut Reader::new(environment), "0") };
    runtime::block_on(2, async {
        let server = Server::bind(&settings).unwrap();
        let (gone, hears) = channel::unbounded();
        let (port, shutdown) = (server.address().port(), Shutdown::new());
        let serving = runtime::spawn(server.serve(Router::new(gone).get("/events", events).build(), shutdown.clone()));
        let client = Command::new("python3")
            .args(["-c", CLIENT, &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(client) = client else {
            // Not with eprintln, whose output is only shown for tests that fail.
            let _ = writeln!(io::stderr(), "SKIPPED: a client that vanishes: python3 is not installed");
            return;
        };
        let mut client = Client(client);
        let said = BufReader::new(client.0.stdout.take().unwrap());
        let said = smol::unblock(move || said.lines().next()).await;
        assert_eq!(said.unwrap().unwrap(), "vanished");
        timeout(LIMIT, hears.recv()).await.expect("the client is given up").unwrap();
        shutdown.trigger();
        serving.await;
    });
}
