//! Unary gRPC calls: libs/grpc on both sides against tonic on plain tokio on both sides.

use std::process::Command;

use testbed::ports;

use crate::{
    Failure, Outcome,
    load::{Time, turns},
    progress::step,
    results::{Pair, Results},
    tool::{self, Server},
};

/// Concurrent calls, over one connection.
const CALLERS: u32 = 64;

pub(crate) async fn measure(quick: bool, results: &mut Results) -> Outcome {
    let seconds = Time::TURN.measured.as_secs();
    let mut pair =
        Pair::new("unary", "unary gRPC, 64 callers", "calls/s", "libs/grpc (smol, bridge)", "tonic on tokio");
    for turn in turns(quick) {
        let ours = calls("examples/unary", ["serve", "call"], seconds);
        pair.ours(step(&format!("Unary gRPC through the bridge ({turn})"), ours).await?);
        let theirs = calls("baselines", ["grpc-serve", "grpc-call"], seconds);
        pair.theirs(step(&format!("Unary gRPC on plain tokio ({turn})"), theirs).await?);
    }
    results.pair(pair);
    Ok(())
}

async fn calls(program: &str, [serve, call]: [&str; 2], seconds: u64) -> Outcome<f64> {
    let (program, port) = (tool::workspace_binary(program)?, ports::free());
    let mut server = Command::new(&program);
    server.args([serve, &port.to_string()]);
    let _server = Server::start(server, port).await?;
    let mut client = Command::new(program);
    client.args([call, &port.to_string(), &CALLERS.to_string(), &seconds.to_string()]);
    let printed = tool::output(client).await?;
    printed.trim().parse().map_err(|_| Failure(format!("not a rate: {printed}")))
}
