//! The smallest server: `cargo run -p web --example hello`, then `curl -i localhost:4000/hello`.

use config::{Environment, Reader};
use runtime::Shutdown;
use tide::{Request, Response, StatusCode};
use web::{Health, Problem, Router, Server, Settings};

async fn hello(_: Request<()>) -> Result<Response, Problem> {
    Ok(web::json(StatusCode::Ok, &"Hello, world"))
}

fn main() {
    let mut reader = Reader::new(Environment::process());
    let settings = Settings::read(&mut reader, "4000");
    let (settings, _) = reader.finish(settings).expect("the environment is right");
    runtime::block_on(1, async move {
        let shutdown = Shutdown::new();
        shutdown.trigger_on_signals().expect("signals can be handled");
        let server = Server::bind(&settings).expect("the port is free");
        println!("listening on http://{}", server.address());
        let app = Router::new(()).get("/hello", hello).operations(Health::new(shutdown.clone())).build();
        server.serve(app, shutdown).await;
    });
}
