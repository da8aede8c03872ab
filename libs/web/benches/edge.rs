//! The HTTP edge without a network: routing, a JSON answer, and a rejected request.

use divan::{Bencher, black_box};
use serde::Serialize;
use tide::{
    Request, Response, StatusCode,
    http::{self, Method, Url},
};
use web::{App, Problem, Router};

fn main() {
    divan::main();
}

#[derive(Serialize)]
struct Body {
    id: &'static str,
    name: &'static str,
    email: &'static str,
}

async fn found(_: Request<()>) -> Result<Response, Problem> {
    let body =
        Body { id: "0190a4c8-9a3b-7c1d-8e2f-3a4b5c6d7e8f", name: "Amara Abebe", email: "amara.abebe@example.org" };
    Ok(web::json(StatusCode::Ok, &body))
}

async fn invalid(_: Request<()>) -> Result<Response, Problem> {
    let problem = Problem::bad_request("The patient is not valid.").kind("invalid-patient");
    Err(problem.field("name", "Name is required").field("email", "Email should be valid"))
}

fn app() -> App<()> {
    Router::new(()).get("/patients/:id", found).get("/invalid", invalid).get("/patients", found).build()
}

fn answer(bencher: Bencher<'_, '_>, path: &str) {
    let app = app();
    let url = Url::parse(&format!("http://localhost{path}")).expect("it is a URL");
    bencher.with_inputs(|| http::Request::new(Method::Get, url.clone())).bench_local_values(|request| {
        let response: http::Response = smol::block_on(app.respond(black_box(request)));
        response
    });
}

#[divan::bench]
fn json_answer(bencher: Bencher<'_, '_>) {
    answer(bencher, "/patients/0190a4c8-9a3b-7c1d-8e2f-3a4b5c6d7e8f");
}

#[divan::bench]
fn problem_body(bencher: Bencher<'_, '_>) {
    answer(bencher, "/invalid");
}

#[divan::bench]
fn not_found(bencher: Bencher<'_, '_>) {
    answer(bencher, "/nowhere");
}
