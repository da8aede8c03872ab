//! What pages of `CORS_ORIGINS` may read.

use std::thread;

use auth::Authenticator;
use config::{Environment, Reader};
use runtime::Shutdown;
use tide::{Request, Response};
use web::{Edge, Problem, Router, Server, Settings};

use crate::support::{Client, TestServer};

const ORIGIN: &str = "https://app.example.org";

async fn hello(_: Request<()>) -> Result<Response, Problem> {
    Ok(web::no_content())
}

/// A server for [`ORIGIN`] with so many requests in flight at most.
fn with_server(in_flight: usize, test: impl FnOnce(&TestServer)) {
    let environment = Environment::empty().with("SERVER_PORT", "0").with("CORS_ORIGINS", ORIGIN);
    let settings = Settings::read(&mut Reader::new(environment), "0");
    let server = Server::bind(&settings).unwrap();
    let (address, shutdown) = (server.address(), Shutdown::new());
    let stop = shutdown.clone();
    let thread = thread::spawn(move || {
        let edge = Edge::new(&settings, Authenticator::off());
        let router = Router::new(()).edge(edge).header("x-everywhere", "yes").limit_in_flight(in_flight);
        runtime::block_on(1, server.serve(router.get("/hello", hello).open().build(), stop));
    });
    test(&TestServer { address, shutdown, thread: Some(thread) });
}

#[test]
fn a_page_reads_also_what_no_route_has_answered() {
    let ask = |client: &mut Client, head: &str, origin: &str| {
        client.request(&format!("GET /hello HTTP/1.1\r\n{head}origin: {origin}\r\n\r\n"))
    };
    for (in_flight, head, status) in [
        (5, "host: localhost\r\n", 204),
        (5, "host: elsewhere\r\n", 421),
        (5, "host: localhost\r\nhost: localhost\r\n", 400),
        (0, "host: localhost\r\n", 503),
    ] {
        with_server(in_flight, |server| {
            let mut client = server.connect();
            let shared = ask(&mut client, head, ORIGIN);
            assert_eq!(shared.status, status);
            assert_eq!(shared.header("access-control-allow-origin"), Some(ORIGIN), "{status}");
            let exposed = shared.header("access-control-expose-headers").unwrap_or_default();
            for name in ["retry-after", "missing-partitions"] {
                assert!(exposed.contains(name), "{status}: {name} in {exposed}");
            }
            assert_eq!(shared.header("cache-control"), matches!(status, 400 | 503).then_some("no-store"), "{status}");
            let foreign = ask(&mut client, head, "https://evil.example");
            assert_eq!((foreign.status, foreign.header("access-control-allow-origin")), (status, None));
            for response in [shared, foreign] {
                assert_eq!(response.header("vary"), Some("origin"), "{status}");
                assert_eq!(response.header("x-everywhere"), Some("yes"), "{status}");
            }
        });
    }
}
