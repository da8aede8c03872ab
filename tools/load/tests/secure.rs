//! The load generator against a service with TLS that wants a token.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    process::Output,
    sync::{Arc, mpsc::channel},
};

use config::{Environment, Reader};
use runtime::Shutdown;
use serde_json::{Value as Json, json};
use testbed::{
    certificates::{Authority, Validity},
    proxy::{Proxy, Target},
};
use tide::{Request, Response, StatusCode};
use web::{Problem, Router, Server, Settings};

async fn who(request: Request<()>) -> Result<Response, Problem> {
    let known = request.header("authorization").is_some_and(|value| value.as_str() == "Bearer right");
    Ok(Response::new(if known { StatusCode::Ok } else { StatusCode::Unauthorized }))
}

#[test]
fn it_trusts_the_given_authority_and_sends_the_token() {
    let scratch = testbed::Scratch::new().unwrap();
    let file = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let authority = Authority::new("tests").unwrap();
    authority.write(scratch.path().join("ca.pem").as_path()).unwrap();
    let identity = authority.issue(scratch.path(), "server", &["localhost"], Validity::Now).unwrap();
    let environment = Environment::empty()
        .with("SERVER_PORT", "0")
        .with("SERVER_TLS_CERTIFICATE", identity.certificate.display().to_string())
        .with("SERVER_TLS_KEY", identity.key.display().to_string());
    let server = Server::bind(&Settings::read(&mut Reader::new(environment), "0")).unwrap();
    let port = server.address().port();
    let app = Router::new(()).get("/who", who).build();
    let (sender, receiver) = channel();
    // It ends with the test's process.
    std::thread::spawn(move || {
        runtime::block_on(2, async move {
            // Counts connections.
            let proxy = Proxy::start().await.unwrap();
            proxy.set_target(Target::Port(port));
            sender.send(Arc::new(proxy)).unwrap();
            server.serve(app, Shutdown::new()).await;
        });
    });
    let proxy = receiver.recv().unwrap();
    let url = format!("https://localhost:{}", proxy.port());
    for (name, token) in [("right", "right\n"), ("wrong", "wrong")] {
        fs::write(file(name), token).unwrap();
    }
    let run = |arguments: &[&str]| -> Output {
        let fixed = ["closed", &url, "--path", "/who", "-d", "300ms", "-w", "0s", "-c", "2", "--quiet"];
        let mut command = testbed::command(env!("CARGO_BIN_EXE_load")).unwrap();
        command.args(fixed).args(["--json", &file("report.json")]).args(arguments).output().unwrap()
    };
    let errors = || -> Json {
        let report: Json = serde_json::from_str(&fs::read_to_string(file("report.json")).unwrap()).unwrap();
        report["errors"].clone()
    };
    let (ca, right, wrong) = (file("ca.pem"), file("right"), file("wrong"));
    let output = run(&["--cacert", &ca, "--token", &right]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("p99.9"), "{output:?}");
    assert_eq!(errors(), json!({}));
    assert_eq!(proxy.accepted(), 2, "they are kept");
    run(&["--cacert", &ca, "--token", &right, "--new-connections"]);
    assert_eq!(errors(), json!({}));
    assert!(proxy.accepted() > 4, "each request has its own");
    run(&["--cacert", &ca, "--token", &wrong]);
    assert!(errors().to_string().contains("401"), "{}", errors());
    run(&["--token", &right]);
    assert!(errors().to_string().contains("connect"), "a server of no public authority: {}", errors());
}
