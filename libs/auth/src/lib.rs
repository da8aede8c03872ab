//! Who calls a service, and what they may do.
//!
//! - [`Caller`] and [`Scope`]: the result, the same for HTTP and gRPC, for tokens and for certificates;
//! - [`Settings`]: `AUTH=off` or `AUTH=jwt` with the issuer, the audience and where the keys are;
//! - [`Authenticator`]: verifies a bearer token (RFC 6750, RFC 8725) with the keys of the issuer.
//!
//! It knows no HTTP server and no gRPC server: [`Rejection`] says what a caller is told, and libs/web and libs/grpc make
//! a response of it. The cryptography is `ring`'s, the parsing and the checks of claims are `jsonwebtoken`'s.

mod authenticator;
mod cache;
mod caller;
mod claims;
mod crypto;
mod keys;
mod rejection;
mod settings;
mod source;

pub use authenticator::Authenticator;
pub use caller::{Caller, Identity, Scope, ServiceIdentity};
pub use keys::LEEWAY;
pub use rejection::Rejection;
pub use settings::{JwtSettings, KeySource, Mode, Settings};
