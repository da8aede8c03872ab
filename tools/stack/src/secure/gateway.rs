//! The gateway: nginx with the configuration of deploy/gateway, changed to speak TLS on both sides. It serves the paths of the
//! original gateway: `/auth/login`, `/auth/validate`, `/api/patients/**` and `/api/analytics/**`.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Result;
use testbed::{Process, http::Client};

use super::{
    Secure,
    certificates::{self, GATEWAY},
};
use crate::{settings::Settings, terminal::step};

/// The configuration for containers without TLS.
const CONFIGURATION: &str = include_str!("../../../../deploy/gateway/nginx.conf");
/// Time until it serves, and for a check whether it does.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether nginx is installed.
pub(crate) fn is_installed() -> bool {
    Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The gateway if it runs.
pub(crate) fn running(home: &Path) -> Option<Process> {
    Process::from_pid_file(GATEWAY, &home.join("gateway.pid"), home.join("gateway.log"))
}

/// Starts it again, so that it has the present ports and certificates.
pub(crate) async fn start(secure: &Secure, settings: &Settings, home: &Path) -> Result<()> {
    stop(home).await;
    let directory = home.join(GATEWAY);
    fs::create_dir_all(&directory)?;
    let file = directory.join("nginx.conf");
    fs::write(&file, configuration(secure, settings, &directory))?;
    let client = Client::new(settings.gateway_address()).with_access(&secure.access_without_user()?);
    let client = client.with_timeout(CHECK_TIMEOUT);
    let start = async {
        let mut process = Process::builder(GATEWAY, "nginx", home.join("gateway.log"))
            .args(["-e", "stderr", "-g", "daemon off;", "-c"])
            .args([&file])
            .start()?;
        process.write_pid_file(&home.join("gateway.pid"))?;
        let serves = || async { client.get("/healthy").await.is_ok_and(|answer| answer.status == 204) };
        process.until(START_TIMEOUT, serves).await?;
        Ok::<_, anyhow::Error>(())
    };
    step("Starting the gateway", "", start).await
}

/// Stops it if it runs.
pub(crate) async fn stop(home: &Path) -> bool {
    match running(home) {
        Some(mut process) => {
            process.stop(Duration::from_secs(10)).await;
            true
        }
        None => false,
    }
}

/// The configuration in a container, whose certificates are in this directory.
pub(super) fn of_container(certificates: &Path) -> String {
    with_tls(CONFIGURATION, "listen 4004 ssl;", certificates)
}

/// The configuration with TLS on both sides, with the certificates in this directory.
fn with_tls(text: &str, listen: &str, directory: &Path) -> String {
    let identity = certificates::identity(directory, GATEWAY);
    // Every service's certificate has the name of the machine that it is on.
    let tls = format!(
        "{listen}\n        ssl_certificate {certificate};\n        ssl_certificate_key {key};\n        \
         ssl_protocols TLSv1.2 TLSv1.3;\n        proxy_ssl_trusted_certificate {authority};\n        proxy_ssl_verify on;\n        \
         proxy_ssl_name localhost;",
        certificate = quoted(&identity.certificate),
        key = quoted(&identity.key),
        authority = quoted(&certificates::authority(directory)),
    );
    text.replace("listen 4004;", &tls).replace("proxy_pass http://", "proxy_pass https://")
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""))
}

fn configuration(secure: &Secure, settings: &Settings, directory: &Path) -> String {
    let server = |port: u16| format!("server 127.0.0.1:{port};");
    let listen = format!("listen 127.0.0.1:{} ssl;", settings.gateway_port);
    let mut text = with_tls(CONFIGURATION, &listen, &secure.directory());
    for (from, to) in [
        // Without Docker's DNS.
        ("resolver 127.0.0.11 valid=2s ipv6=off;", String::new()),
        ("server patient-service:4000 resolve;", server(settings.patient_port)),
        ("server analytics-service:4002 resolve;", server(settings.analytics_port)),
        ("server auth-service:4005 resolve;", server(settings.auth_port)),
    ] {
        text = text.replace(from, &to);
    }
    // Paths of nginx's own files, which are below /tmp in a container.
    text.lines()
        .map(|line| match line.trim().trim_end_matches(';').split_once(" /tmp/") {
            Some((directive, name)) => format!("{directive} {};\n", quoted(&directory.join(name))),
            None => format!("{line}\n"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_containers_and_no_plaintext_is_left() {
        let home = Path::new("/home/a \"b\"");
        let settings = Settings::of(config::Environment::empty()).unwrap();
        let text = configuration(&Secure { home: home.to_owned() }, &settings, &home.join(GATEWAY));
        for left in ["http://", "resolver", "resolve;", "/tmp/", "patient-service:", "listen 4004;"] {
            assert!(!text.contains(left), "{left} in {text}");
        }
        assert_eq!(text.matches("proxy_pass https://").count(), CONFIGURATION.matches("proxy_pass http://").count());
        assert!(text.contains("pid \"/home/a \\\"b\\\"/gateway/nginx.pid\";"), "{text}");
    }
}
