//! Where JWK sets come from.

use std::{path::PathBuf, time::Duration};

use runtime::timeout;
use surf::{Client, StatusCode, Url};
use web_client::SingleConnectionClient;

use crate::KeySource;

/// The longest JWK set, in bytes.
const MAX_BYTES: usize = 64 * 1024;
/// Time for a fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

impl KeySource {
    /// The JWK set as it is now.
    ///
    /// # Errors
    /// Why it could not be had, for an operator.
    pub(crate) async fn fetch(&self) -> Result<Vec<u8>, String> {
        let fetched = match self {
            Self::Url(url, ca) => timeout(FETCH_TIMEOUT, Box::pin(get(url, ca.clone()))).await,
            Self::File(file) => {
                let file = file.clone();
                timeout(FETCH_TIMEOUT, smol::unblock(move || read(&file))).await
            }
            Self::Fixed(bytes) => Ok(Ok(bytes.clone())),
        };
        fetched.unwrap_or_else(|elapsed| Err(elapsed.to_string()))
    }
}

/// No redirect is followed: who answers at the URL must not be able to name another place.
async fn get(url: &Url, ca: Option<PathBuf>) -> Result<Vec<u8>, String> {
    let mut backend = SingleConnectionClient::new(MAX_BYTES);
    if url.scheme() == "https" {
        // The files are read for each fetch: there are few, and the authorities may have changed.
        let files = tls::ClientSettings { ca, identity: None };
        backend = backend.with_tls("keys", files).map_err(|error| error.to_string())?;
    }
    let client = Client::with_http_client(backend);
    let mut response = client.get(url).await.map_err(|error| error.to_string())?;
    match response.status() {
        StatusCode::Ok => response.body_bytes().await.map_err(|error| error.to_string()),
        status => Err(format!("the response is {status}")),
    }
}

fn read(file: &std::path::Path) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(|error| error.to_string())?;
    opened.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_BYTES { Err(format!("it has more than {MAX_BYTES} bytes")) } else { Ok(bytes) }
}
