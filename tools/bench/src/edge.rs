//! A constant over HTTP: libs/web against a bare hyper server on tokio.

use std::process::Command;

use testbed::{Scratch, ports};

use crate::{
    Outcome,
    load::{self, Time, figure, split_words, turns},
    progress::step,
    results::{Pair, Results},
    tool::{self, Server},
};

pub(crate) async fn measure(quick: bool, results: &mut Results) -> Outcome {
    let scratch = Scratch::new()?;
    let mut pair =
        Pair::new("edge", "GET of a constant, 64 connections", "requests/s", "libs/web", "bare hyper on tokio");
    for turn in turns(quick) {
        let ours = async {
            let port = ports::free();
            let mut command = Command::new(tool::workspace_binary("examples/hello")?);
            command.env("SERVER_PORT", port.to_string());
            let server = Server::start(command, port).await?;
            rate(&scratch, &server, port).await
        };
        pair.ours(step(&format!("GET of a constant, libs/web ({turn})"), ours).await?);
        let theirs = async {
            let port = ports::free();
            let mut command = Command::new(tool::workspace_binary("baselines")?);
            command.arg("http").arg(port.to_string());
            let server = Server::start(command, port).await?;
            rate(&scratch, &server, port).await
        };
        pair.theirs(step(&format!("GET of a constant, bare hyper ({turn})"), theirs).await?);
    }
    results.pair(pair);
    Ok(())
}

async fn rate(scratch: &Scratch, server: &Server, port: u16) -> Outcome<f64> {
    let pid = server.pid();
    let arguments = split_words(&format!("closed http://127.0.0.1:{port} --path /hello -c 64 --watch server={pid}"));
    let report = load::run(scratch.path(), &[arguments, Time::TURN.arguments()].concat()).await?;
    Ok(figure(&report, "/all/perSecond"))
}
