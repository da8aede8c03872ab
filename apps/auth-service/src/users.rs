//! The users: a JSON file, read at the start.
//!
//! ```json
//! {"users": [{"email": "ann@example.org", "passwordHash": "$argon2id$...", "subject": "ann", "scopes": ["patients:read"]}]}
//! ```

use std::{
    collections::HashMap,
    fs,
    io::BufRead as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::{
        PasswordHasher as _,
        phc::{Output, PasswordHash},
    },
};
use runtime::{Command, Failure, RunCommand, timeout};
use serde::Deserialize;
use smol::lock::Semaphore;

use crate::Settings;

/// `auth-service hash-password`.
pub const COMMAND: Command<Settings> = Command {
    name: "hash-password",
    arguments: "",
    about: "reads a password from stdin and prints its argon2id hash for the file of the users",
    parse: |arguments| match arguments {
        [] => Ok(hash_password()),
        _ => Err("it takes no arguments: the password would be in the list of processes".to_owned()),
    },
};

/// Passwords that are checked at once. Each takes [`MAX_MEMORY`] at most, and a core for some 20 ms.
const MAX_CHECKS: usize = 2;
/// Time for a check, with the wait for others.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Memory of a check in KiB: the default of argon2id is 19 MiB.
const MAX_MEMORY: u32 = 20 * 1024;
/// The longest password, in bytes.
pub const MAX_PASSWORD: usize = 1024;

/// The users, by their email addresses.
pub struct Users {
    by_email: HashMap<String, User>,
    /// What the password of an unknown user is compared with, so that the answer takes as long.
    nobodys_hash: String,
    checks: Arc<Semaphore>,
    memory: Memory,
}

/// Memory of checks that have ended, for the next ones. The allocator would keep a share for each thread that has ever checked
/// a password.
type Memory = Arc<Mutex<Vec<Vec<Block>>>>;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// `sub` of its tokens.
    pub subject: String,
    /// Scopes of its tokens.
    pub scopes: Vec<String>,
    hash: String,
}

/// Why a password could not be checked: too many others are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many passwords are being checked")]
pub struct Busy;

impl Users {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it; a hash is not quoted.
    pub fn read(file: &Path) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Content {
            users: Vec<Row>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Row {
            email: String,
            password_hash: String,
            subject: String,
            scopes: Vec<String>,
        }
        let wrong = |why: String| format!("USERS_FILE {}: {why}", file.display());
        let bytes = fs::read(file).map_err(|error| wrong(error.to_string()))?;
        let Content { users } = serde_json::from_slice(&bytes).map_err(|error| {
            // Its own message can quote the content.
            wrong(format!("it does not have the expected form, at line {}, column {}", error.line(), error.column()))
        })?;
        let mut by_email = HashMap::new();
        for (number, row) in users.into_iter().enumerate() {
            let wrong = |why: &str| wrong(format!("user {}: {why}", number + 1));
            check_hash(&row.password_hash).map_err(wrong)?;
            if row.subject.is_empty() || row.scopes.iter().any(|scope| scope.is_empty() || scope.contains(' ')) {
                return Err(wrong("its subject or one of its scopes is empty or has a space"));
            }
            let user = User { subject: row.subject, scopes: row.scopes, hash: row.password_hash };
            if by_email.insert(key(&row.email), user).is_some() {
                return Err(wrong("its email is that of another user"));
            }
        }
        let nobodys_hash = hash(b"nobody's")?;
        Ok(Self { by_email, nobodys_hash, checks: Arc::new(Semaphore::new(MAX_CHECKS)), memory: Memory::default() })
    }

    /// The user with this email and password, if there is one. It takes as long if there is none. `begins` is called when the
    /// password is checked, after the wait for others.
    ///
    /// # Errors
    /// If too many passwords are being checked.
    pub async fn check(&self, email: &str, password: String, begins: impl FnOnce()) -> Result<Option<User>, Busy> {
        let user = self.by_email.get(&key(email)).cloned();
        let hash = user.as_ref().map_or(&self.nobodys_hash, |user| &user.hash).clone();
        let memory = self.memory.clone();
        let check = unblock(&self.checks, begins, move || is_password(&password, &hash, &memory));
        let is_right = timeout(CHECK_TIMEOUT, check).await.map_err(|_| Busy)?;
        Ok(user.filter(|_| is_right))
    }
}

/// Runs blocking work on a thread of its own, with a permit that the work itself holds. If the client disconnects, or its time
/// is over, this future is dropped and the work goes on: the next one must not begin before it has ended.
async fn unblock<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    begins: impl FnOnce(),
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let permit = permits.acquire_arc().await;
    begins();
    smol::unblock(move || {
        let result = work();
        drop(permit);
        result
    })
    .await
}

/// Email addresses are compared without regard to case.
pub(crate) fn key(email: &str) -> String {
    email.trim().to_lowercase()
}

fn is_password(password: &str, hash: &str, memory: &Memory) -> bool {
    let mut blocks = memory.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
    // The outputs are compared in constant time.
    let is_right = PasswordHash::new(hash)
        .is_ok_and(|hash| argon2id(password, &hash, &mut blocks).is_some_and(|output| Some(output) == hash.hash));
    memory.lock().unwrap_or_else(PoisonError::into_inner).push(blocks);
    is_right
}

/// The hash of a password with the salt and the parameters of another hash, if these are valid.
fn argon2id(password: &str, hash: &PasswordHash, blocks: &mut Vec<Block>) -> Option<Output> {
    let parameters = Params::try_from(hash).ok()?;
    let version = hash.version.map_or(Ok(Version::default()), Version::try_from).ok()?;
    blocks.resize(parameters.block_count(), Block::default());
    let argon2 = Argon2::new(Algorithm::Argon2id, version, parameters);
    let (salt, length) = (hash.salt.as_ref()?, hash.hash.as_ref()?.len());
    let mut output = [0; Output::MAX_LENGTH];
    let output = output.get_mut(..length)?;
    argon2.hash_password_into_with_memory(password.as_bytes(), salt, output, blocks).ok()?;
    Output::new(output).ok()
}

fn check_hash(text: &str) -> Result<(), &'static str> {
    let hash = PasswordHash::new(text)
        .map_err(|_| "its passwordHash is not a hash of argon2id; `auth-service hash-password` makes one")?;
    let parameters = Params::try_from(&hash).map_err(|_| "the parameters of its passwordHash are not valid")?;
    if Algorithm::try_from(hash.algorithm.as_str()) != Ok(Algorithm::Argon2id) {
        return Err("its passwordHash is not one of argon2id");
    }
    if parameters.m_cost() > MAX_MEMORY { Err("its passwordHash takes more than 20 MiB to check") } else { Ok(()) }
}

fn hash(password: &[u8]) -> Result<String, String> {
    Argon2::default().hash_password(password).map(|hash| hash.to_string()).map_err(|error| error.to_string())
}

fn hash_password() -> RunCommand<Settings> {
    Box::new(|_| {
        Box::pin(async {
            let mut password = String::new();
            std::io::stdin().lock().read_line(&mut password).map_err(|error| Failure::from(error.to_string()))?;
            let password = password.trim_end_matches(['\r', '\n']);
            if password.is_empty() || password.len() > MAX_PASSWORD {
                return Err(Failure::from(format!("a password has 1 to {MAX_PASSWORD} bytes")));
            }
            println!("{}", hash(password.as_bytes())?);
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::json;
    use smol::{channel, future::poll_once};

    use super::*;

    fn users(content: &serde_json::Value) -> Result<Users, String> {
        let scratch = testbed::Scratch::new().unwrap();
        let file = scratch.path().join("users.json");
        fs::write(&file, content.to_string()).unwrap();
        Users::read(&file)
    }

    #[test]
    fn the_right_password_is_accepted_and_no_other() {
        let hash = hash(b"correct horse").unwrap();
        let ann =
            json!({"email": "Ann@Example.org", "passwordHash": hash, "subject": "ann", "scopes": ["patients:read"]});
        let users = users(&json!({"users": [ann]})).unwrap();
        let check = |email: &str, password: &str| {
            smol::block_on(users.check(email, password.to_owned(), || {})).unwrap().map(|user| user.subject)
        };
        assert_eq!(check(" ann@example.ORG", "correct horse").as_deref(), Some("ann"));
        for (email, password) in
            [("ann@example.org", "wrong"), ("ann@example.org", ""), ("bob@example.org", "nobody's"), ("", "")]
        {
            assert_eq!(check(email, password), None, "{email} {password}");
        }
    }

    #[test]
    fn a_check_that_nobody_waits_for_keeps_its_permit_until_it_ends() {
        smol::block_on(async {
            let permits = Arc::new(Semaphore::new(1));
            let ((begin, begun), (end, ended)) = (channel::bounded(1), channel::bounded::<()>(1));
            let mut check = Box::pin(unblock(
                &permits,
                || {},
                move || {
                    begin.send_blocking(()).unwrap();
                    ended.recv_blocking().unwrap();
                },
            ));
            assert!(poll_once(&mut check).await.is_none());
            begun.recv().await.unwrap();
            drop(check);
            assert!(permits.try_acquire().is_none(), "the check goes on");
            end.send(()).await.unwrap();
            permits.acquire().await;
        });
    }

    #[test]
    fn a_check_begins_when_it_need_not_wait_for_others_any_more() {
        smol::block_on(async {
            let permits = Arc::new(Semaphore::new(1));
            let permit = permits.acquire().await;
            let begun = Cell::new(false);
            let mut check = Box::pin(unblock(&permits, || begun.set(true), || {}));
            assert!(poll_once(&mut check).await.is_none());
            assert!(!begun.get());
            drop(permit);
            check.await;
            assert!(begun.get());
        });
    }

    #[test]
    fn a_wrong_file_is_an_error_that_quotes_no_hash() {
        let hash = hash(b"x").unwrap();
        let row = |hash: &str, subject: &str| json!({"email": "a@b.c", "passwordHash": hash, "subject": subject, "scopes": []});
        let large = hash.replace("m=19456", "m=1048576");
        assert_ne!(large, hash);
        for (content, expected) in [
            (json!([]), "expected form"),
            (json!({"users": [row("plain", "a")]}), "hash-password"),
            (json!({"users": [row(&hash.replace("argon2id", "argon2d"), "a")]}), "argon2id"),
            (json!({"users": [row(&large, "a")]}), "20 MiB"),
            (json!({"users": [row(&hash, "")]}), "subject"),
            (json!({"users": [row(&hash, "a"), row(&hash, "b")]}), "another user"),
        ] {
            let error = users(&content).err().unwrap();
            assert!(error.contains(expected) && !error.contains("$argon2"), "{error}");
        }
    }
}
