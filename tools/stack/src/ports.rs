//! Checks that ports are free, and finds the process that listens on a port.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::Result;

/// Time for the sockets of a killed process to be closed.
const CLOSING_TIME: Duration = Duration::from_secs(1);

/// A port of the system.
pub(crate) struct RequiredPort {
    pub(crate) port: u16,
    /// The variable that sets it.
    pub(crate) variable: &'static str,
    /// Whether the running system listens on it.
    pub(crate) ours: bool,
}

/// # Errors
/// If two of the ports are the same, or another process listens on one; the error names the variables or the process.
pub(crate) fn check_free(ports: impl IntoIterator<Item = RequiredPort>) -> Result<()> {
    let ports: Vec<_> = ports.into_iter().collect();
    check_distinct(&ports)?;
    let taken: Vec<_> = ports
        .into_iter()
        .filter(|required| !required.ours && !becomes_free(required.port))
        .map(|RequiredPort { port, variable, .. }| {
            let owner = find(port).unwrap_or_else(|| "a process of another user".to_owned());
            format!("Port {port} is taken by {owner}. Stop it, or choose another port: {variable}=... just up")
        })
        .collect();
    if taken.is_empty() { Ok(()) } else { Err(anyhow::Error::msg(taken.join("\n"))) }
}

fn check_distinct(ports: &[RequiredPort]) -> Result<()> {
    let mut variables = BTreeMap::<u16, Vec<&str>>::new();
    for RequiredPort { port, variable, .. } in ports {
        variables.entry(*port).or_default().push(variable);
    }
    let shared = variables.into_iter().filter(|(_, names)| names.len() > 1);
    let shared: Vec<_> = shared
        .map(|(port, names)| format!("{} are the same port, {port}. Choose different ones.", names.join(" and ")))
        .collect();
    if shared.is_empty() { Ok(()) } else { Err(anyhow::Error::msg(shared.join("\n"))) }
}

/// Whether a port is free, or becomes so: the kernel closes the sockets of a process that was killed a moment after its end.
fn becomes_free(port: u16) -> bool {
    let end = Instant::now() + CLOSING_TIME;
    while !testbed::ports::is_free(port) {
        if find(port).is_some() || Instant::now() > end {
            return false;
        }
        thread::sleep(CLOSING_TIME / 20);
    }
    true
}

/// The name and pid of the process that listens on a TCP port; none if it belongs to another user.
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
    fn the_variables_of_one_port_are_named_before_anything_is_started() {
        let port = testbed::ports::free();
        let required = |port, variable| RequiredPort { port, variable, ours: true };
        assert!(check_free([required(port, "PATIENT_PORT"), required(port - 1, "BILLING_PORT")]).is_ok());
        let error = check_free([required(port, "PATIENT_PORT"), required(port, "BILLING_PORT")]).unwrap_err();
        assert!(error.to_string().starts_with("PATIENT_PORT and BILLING_PORT are the same port"), "{error}");
    }

    #[test]
    fn our_own_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = find(listener.local_addr().unwrap().port()).unwrap();
        assert!(owner.contains(&format!("process {}", std::process::id())), "{owner}");
    }
}
