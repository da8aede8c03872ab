//! Which HTTP client a load generator should have: surf, our client elsewhere, against hyper's connection on smol.
//!
//! Start a fast server, such as `SERVER_PORT=4499 cargo run --release -p web --example hello`, then
//! `cargo run --release -p load --example clients -- http://127.0.0.1:4499/hello`. Both clients run in turn, several
//! times, with the same connections on one thread.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use load::target::{Connection, Target};
use testbed::http::Client;

const CONNECTIONS: usize = 64;
const ROUNDS: usize = 3;
const TIME: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(10);

fn main() {
    let url = std::env::args().nth(1).expect("an argument: the URL to GET");
    let address = url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).expect("a URL with http://");
    let base = format!("http://{address}");
    let path = url[base.len()..].to_owned();
    runtime::block_on(1, async {
        for round in 1..=ROUNDS {
            let client = Client::new(address).with_timeout(LIMIT);
            let surf = measure(|| {
                let (client, path) = (client.clone(), path.clone());
                async move {
                    let end = Instant::now() + TIME;
                    let mut count = 0_u64;
                    while Instant::now() < end {
                        assert_eq!(client.get(&path).await.expect("a response").status, 200);
                        count += 1;
                    }
                    count
                }
            });
            println!("{round}: surf   {}", surf.await);
            let target = Arc::new(Target::resolve(&base).await.expect("the URL is right"));
            let hyper = measure(|| {
                let (mut connection, path) = (Connection::new(target.clone(), LIMIT), path.clone());
                async move {
                    let end = Instant::now() + TIME;
                    let mut count = 0_u64;
                    while Instant::now() < end {
                        let response = connection.send(hyper::Method::GET, &path, None).await;
                        assert_eq!(response.expect("a response").status, 200);
                        count += 1;
                    }
                    count
                }
            });
            println!("{round}: hyper  {}", hyper.await);
        }
    });
}

async fn measure<F: Future<Output = u64> + Send + 'static>(client: impl Fn() -> F) -> String {
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| runtime::spawn(client())).collect();
    let mut count = 0;
    for client in clients {
        count += client.await;
    }
    let rate = count as f64 / begin.elapsed().as_secs_f64();
    let each = (cpu_seconds() - cpu) / count as f64 * 1e6;
    format!("{rate:>8.0} requests/s, {each:>6.1} us of the client's CPU each")
}

/// Our CPU time so far, in user and kernel.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux has this file");
    let (_, fields) = stat.rsplit_once(')').expect("the name stands in parentheses");
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}
