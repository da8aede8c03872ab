//! Who listens on a port.

use std::fs;

use crate::{Failure, Outcome};

/// A port that the system is about to listen on.
pub(crate) struct Wanted {
    pub(crate) port: u16,
    /// The variable that chooses it.
    pub(crate) variable: &'static str,
    /// Whether the system listens on it already.
    pub(crate) ours: bool,
}

/// Says which ports are taken by whom, unless it is by us.
pub(crate) fn refuse_taken(ports: impl IntoIterator<Item = Wanted>) -> Outcome {
    let taken: Vec<_> = ports
        .into_iter()
        .filter(|wanted| !wanted.ours && !testbed::ports::is_free(wanted.port))
        .map(|Wanted { port, variable, .. }| {
            let owner = find(port).unwrap_or_else(|| "a process that we may not see".to_owned());
            format!("Port {port} is taken by {owner}. Stop it, or choose another port: {variable}=... just up")
        })
        .collect();
    if taken.is_empty() { Ok(()) } else { Err(Failure(taken.join("\n"))) }
}

/// The process that listens on a TCP port of this machine, as far as we may know: its id and name.
fn find(port: u16) -> Option<String> {
    let sockets = listening(port);
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let holds = |link: fs::DirEntry| {
            let target = fs::read_link(link.path()).unwrap_or_default();
            target.to_str().is_some_and(|target| sockets.iter().any(|inode| *target == format!("socket:[{inode}]")))
        };
        if fs::read_dir(entry.path().join("fd")).is_ok_and(|links| links.flatten().any(holds)) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

/// The inodes of the sockets that listen on a port.
fn listening(port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    let mut inodes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if let [_, local, _, LISTEN, .., _, _, _, _] = fields.as_slice()
                && local.ends_with(&suffix)
                && let Some(inode) = fields.get(9)
            {
                inodes.push((*inode).to_owned());
            }
        }
    }
    inodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_ourselves() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = find(listener.local_addr().unwrap().port()).unwrap();
        assert!(owner.contains(&format!("process {}", std::process::id())), "{owner}");
    }
}
