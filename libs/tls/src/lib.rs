//! TLS for servers and clients on smol: rustls with ring, TLS 1.2 and 1.3.
//!
//! - [`ServerSettings`] and [`ClientSettings`]: the files of a certificate, its key and the certificate authorities;
//! - [`Acceptor`] and [`Connector`]: handshakes, by a configuration that is read from those files;
//! - [`Stream`]: a connection with TLS or without, so that the code above is the same for both.
//!
//! Files are PEM. They are read again every few seconds; when they have changed and are valid, new connections use them, and
//! open connections stay as they are. Files that are not valid leave the configuration as it is: that is logged and counted in
//! `tls_reloads_total`. When the certificate in use expires is in `tls_certificate_expires_timestamp_seconds`.
//!
//! There is no way to skip the verification of a server: a client checks the chain up to its certificate authorities (a file,
//! else the public ones) and the server's name.

mod client;
mod error;
mod expiry;
mod files;
mod handshakes;
mod metrics;
mod own_certificate;
mod reload;
mod server;
mod stream;

pub use client::{ClientFiles, ClientPem, ClientSettings, ClientVariables, Connector};
pub use error::Error;
pub use expiry::expires;
pub use own_certificate::connect_to_own_certificate;
pub use rustls;
pub use server::{Acceptor, ClientAuth, ServerSettings, ServerVariables};
pub use stream::Stream;
