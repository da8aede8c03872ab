//! Issues tokens to the users of a file.
//!
//! Data flow one way: [`http`](mod@http) reads a login, [`limiter`] says whether it may be tried, [`users`] checks the
//! password, [`signer`] signs a token. There is no registration, no refresh and no consent: whoever needs these runs an
//! OpenID provider in its place, which the other services take as well.

mod http;
pub mod limiter;
mod service;
mod settings;
pub mod signer;
pub mod users;

pub use service::Service;
pub use settings::Settings;
