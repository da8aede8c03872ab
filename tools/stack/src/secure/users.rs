//! The users of auth-service and of the broker. Their passwords are random, and made at the first start.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, anyhow};
use serde_json::{Value as Json, json};
use testbed::service::binaries;

use crate::private_file;

/// May do everything.
pub(crate) const DEVELOPER: &str = "developer";
/// May read.
pub(crate) const READER: &str = "reader";
/// The console itself, apart from the person who looks at it.
pub(crate) const CONSOLE: &str = "console";

/// Each with the scopes of its tokens.
const USERS: [(&str, &[&str]); 3] = [
    (
        DEVELOPER,
        &["patients:read", "patients:write", "patients:erase", "billing:read", "billing:write", "analytics:read"],
    ),
    (READER, &["patients:read", "analytics:read"]),
    (CONSOLE, &["analytics:read"]),
];
/// The users of the broker, the first of which is the broker's own and that of the stack.
const USERS_OF_BROKER: [&str; 3] = ["stack", "patient-service", "analytics-service"];

/// A user of auth-service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) email: String,
    pub(crate) password: String,
}

fn directory(home: &Path) -> PathBuf {
    home.join("users")
}

/// The file with the email and the password of a user.
pub(super) fn file(home: &Path, name: &str) -> PathBuf {
    directory(home).join(format!("{name}.json"))
}

/// The file that auth-service reads.
pub(super) fn services_file(home: &Path) -> PathBuf {
    directory(home).join("auth-service.json")
}

fn broker_file(home: &Path) -> PathBuf {
    directory(home).join("kafka.json")
}

pub(super) fn read(home: &Path, name: &str) -> Result<User> {
    let file = file(home, name);
    let missing = || anyhow!("The user {name} is missing ({}): just up --secure", file.display());
    let user: Json = serde_json::from_str(&fs::read_to_string(&file).map_err(|_| missing())?)?;
    let text = |field: &str| user[field].as_str().map(str::to_owned).ok_or_else(missing);
    Ok(User { email: text("email")?, password: text("password")? })
}

/// The users of the broker with their passwords.
pub(super) fn of_broker(home: &Path) -> Result<Vec<(String, String)>> {
    let users: BTreeMap<String, String> = serde_json::from_str(&fs::read_to_string(broker_file(home))?)?;
    let user = |name: &str| Some((name.to_owned(), users.get(name)?.clone()));
    Ok(USERS_OF_BROKER.iter().filter_map(|name| user(name)).collect())
}

/// The password of a user of the broker; none if there is no such user.
pub(super) fn password_of_broker(home: &Path, user: &str) -> Result<Option<String>> {
    Ok(of_broker(home)?.into_iter().find(|(name, _)| name == user).map(|(_, password)| password))
}

/// Makes the files that are missing. Passwords that are there stay: the broker has stored what belongs to them.
pub(super) async fn make_missing(home: &Path) -> Result<()> {
    fs::create_dir_all(directory(home))?;
    if !broker_file(home).is_file() {
        let users = USERS_OF_BROKER.iter().map(|name| Ok((*name, password()?))).collect::<Result<BTreeMap<_, _>>>()?;
        private_file::write(&broker_file(home), &serde_json::to_string_pretty(&users)?)?;
    }
    let mut rows = Vec::new();
    let mut changed = !services_file(home).is_file();
    for (name, scopes) in USERS {
        if !file(home, name).is_file() {
            let user = json!({ "email": format!("{name}@example.org"), "password": password()? });
            private_file::write(&file(home, name), &format!("{user}\n"))?;
            changed = true;
        }
        rows.push((name, read(home, name)?, scopes));
    }
    if !changed {
        return Ok(());
    }
    let mut users = Vec::new();
    for (subject, User { email, password }, scopes) in rows {
        let hash = smol::unblock(move || hash(&password)).await?;
        users.push(json!({ "email": email, "passwordHash": hash, "subject": subject, "scopes": scopes }));
    }
    private_file::write(&services_file(home), &serde_json::to_string_pretty(&json!({ "users": users }))?)
}

/// 128 random bits of the operating system.
fn password() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The hash of a password, by auth-service itself.
fn hash(password: &str) -> Result<String> {
    let program = binaries()?.join(super::AUTH_SERVICE);
    let failed = |why: String| anyhow!("{}: {why}", program.display());
    let mut child = Command::new(&program)
        .arg("hash-password")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        writeln!(stdin, "{password}")?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
