//! The baselines of the benchmarks: plain hyper and tonic on tokio's runtime.
//!
//! - `baselines http PORT`: a bare hyper server with the response of libs/web's example `hello`;
//! - `baselines grpc-serve PORT` and `baselines grpc-call PORT CALLERS SECONDS`: the two sides of libs/grpc's example
//!   `unary`.

use std::error::Error;

mod http;
mod unary;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["http", port] => http::serve(port.parse()?).await,
        ["grpc-serve", port] => unary::serve(port.parse()?).await,
        ["grpc-call", port, callers, seconds] => {
            let rate = unary::call(port.parse()?, callers.parse()?, seconds.parse()?).await?;
            println!("{rate:.0}");
            Ok(())
        }
        _ => Err("usage: baselines http PORT | grpc-serve PORT | grpc-call PORT CALLERS SECONDS".into()),
    }
}
