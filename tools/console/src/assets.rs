//! The files of the page: embedded in the binary, or read from a folder during development.

use std::{collections::BTreeMap, fs, io::Write as _, path::PathBuf, sync::Arc};

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};
use tide::{Request, Response, StatusCode};
use web::Problem;

/// Names and contents, in the order of the names.
const BUILT_IN: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// The files of the page. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Assets {
    files: Arc<BTreeMap<String, File>>,
    /// The folder that they are read from at each request instead.
    folder: Option<PathBuf>,
}

#[derive(Clone, Debug)]
struct File {
    content: Vec<u8>,
    gzip: Vec<u8>,
    media_type: &'static str,
    hash: String,
}

impl Assets {
    /// Those that are built in, or those of a folder.
    pub(crate) fn new(folder: Option<PathBuf>) -> Self {
        let files = BUILT_IN.iter().filter_map(|(name, content)| Some(((*name).to_owned(), File::new(name, content)?)));
        Self { files: Arc::new(files.collect()), folder }
    }

    /// The response with a file.
    ///
    /// # Errors
    /// 404 if there is none of this name.
    pub(crate) fn response<S>(&self, name: &str, request: &Request<S>) -> Result<Response, Problem> {
        let not_found = || Problem::not_found("There is no such file.");
        let read;
        let file = match &self.folder {
            Some(folder) => {
                // A name with a slash would lead out of the folder.
                let is_plain = !name.contains(['/', '\\']) && !name.starts_with('.');
                let content = is_plain.then(|| fs::read(folder.join(name)).ok()).flatten().ok_or_else(not_found)?;
                read = File::new(name, &content).ok_or_else(not_found)?;
                &read
            }
            None => self.files.get(name).ok_or_else(not_found)?,
        };
        let mut response = Response::new(StatusCode::Ok);
        let gzip = file.gzip.len() < file.content.len() && accepts_gzip(request);
        if gzip {
            response.set_body(file.gzip.clone());
            response.insert_header("content-encoding", "gzip");
        } else {
            response.set_body(file.content.clone());
        }
        response.insert_header("content-type", file.media_type);
        response.insert_header("etag", format!("\"{}{}\"", file.hash, if gzip { "-gzip" } else { "" }));
        // Revalidated each time, answered 304 while unchanged: a new build is seen at once.
        response.insert_header("cache-control", "no-cache");
        response.insert_header("vary", "accept-encoding");
        Ok(response)
    }
}

impl File {
    /// None for a kind of file that is not served.
    fn new(name: &str, content: &[u8]) -> Option<Self> {
        let media_type = match name.rsplit_once('.')?.1 {
            "html" => "text/html; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            "png" => "image/png",
            "woff2" => "font/woff2",
            _ => return None,
        };
        let hash = Sha256::digest(content).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        // Writing to memory does not fail; without it, the file is served as it is.
        let gzip = encoder.write_all(content).and_then(|()| encoder.finish()).unwrap_or_else(|_| content.to_vec());
        Some(Self { content: content.to_vec(), gzip, media_type, hash })
    }
}

fn accepts_gzip<S>(request: &Request<S>) -> bool {
    let values = request.header("accept-encoding").into_iter().flatten();
    let mut codings = values.flat_map(|value| value.as_str().split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim().eq_ignore_ascii_case("gzip") && !["q=0", "q=0.0", "q=0.00", "q=0.000"].contains(&weight.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_together_are_smaller_than_60_kb() {
        let assets = Assets::new(None);
        assert!(assets.files.contains_key("index.html"));
        assert_eq!(assets.files.len(), BUILT_IN.iter().filter(|(name, _)| !name.ends_with(".md")).count());
        let size: usize = assets.files.values().map(|file| file.gzip.len()).sum();
        assert!(size < 60_000, "{size} bytes");
    }
}
