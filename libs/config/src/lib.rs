//! Environment to typed settings.
//!
//! A service reads each of its settings through a [`Reader`], which records every variable that was read. The same code
//! therefore yields the settings, the list of *all* wrong values ([`Errors`]), the text of `--help` and that of
//! `--print-config`, which cannot diverge.
//!
//! It reads no files, and the environment of the process only in [`Environment::process`], so tests need no global
//! state.
//!
//! ```
//! use config::{Environment, Reader};
//!
//! struct Settings { port: u16 }
//!
//! let mut reader = Reader::new(Environment::empty().with("SERVER_PORT", "8080"));
//! let settings = Settings { port: reader.variable(&["SERVER_PORT"], "port of the HTTP server").or("4000") };
//! let (settings, _report) = reader.finish(settings).unwrap();
//! assert_eq!(settings.port, 8080);
//! ```

mod address;
mod environment;
mod reader;
mod secret;
mod value;

pub use address::{Authority, BootstrapServers, HostPort, HostPorts};
pub use environment::Environment;
pub use reader::{Errors, Field, Invalid, Reader, Report, Variable};
pub use secret::Secret;
pub use value::{Bounded, Value};
