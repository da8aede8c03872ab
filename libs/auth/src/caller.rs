use std::{
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What a call needs, such as `patients:read`. Each service names its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(&'static str);

impl Scope {
    /// The scope of this name.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Its name, as it stands in tokens.
    pub const fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Who makes a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Caller {
    /// Nobody was asked: `AUTH=off`. Everything is allowed.
    #[default]
    Unidentified,
    /// A person or a program with a valid token.
    Client(Arc<Identity>),
    /// Another service of the system, which has proved itself by its TLS certificate. It may do everything that the
    /// server offers: which services these are is decided where certificates are checked.
    Service(Arc<ServiceIdentity>),
}

/// What a valid token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `iss`.
    pub issuer: Box<str>,
    /// `sub`: the person or program, unique at its issuer.
    pub subject: Box<str>,
    /// `azp` or `client_id`: the application that the token was issued to.
    pub client: Option<Box<str>>,
    /// Names of the granted scopes and roles.
    pub scopes: BTreeSet<Box<str>>,
    /// `exp`, in seconds since 1970.
    pub expires: u64,
}

/// A service with a verified client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceIdentity {
    /// The subject alternative name by which it is known.
    pub name: Box<str>,
}

impl Caller {
    /// Whether it may do what needs `scope`.
    pub fn has(&self, scope: Scope) -> bool {
        match self {
            Self::Unidentified | Self::Service(_) => true,
            Self::Client(identity) => identity.scopes.contains(scope.name()),
        }
    }

    /// What tells this caller from every other, for what belongs to one caller, such as its idempotency keys. It is
    /// empty for [`Unidentified`](Self::Unidentified).
    pub fn owner(&self) -> String {
        match self {
            Self::Unidentified => String::new(),
            // The length keeps two pairs with the same concatenation apart.
            Self::Client(identity) => format!("{}:{}{}", identity.issuer.len(), identity.issuer, identity.subject),
            Self::Service(service) => format!("service:{}", service.name),
        }
    }

    /// For how long the caller stays who it is: until its token expires. `None` is without end.
    pub fn remaining(&self) -> Option<Duration> {
        let Self::Client(identity) = self else { return None };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Duration::from_secs(identity.expires).saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(issuer: &str, subject: &str, scopes: &[&str]) -> Caller {
        Caller::Client(Arc::new(Identity {
            issuer: issuer.into(),
            subject: subject.into(),
            client: None,
            scopes: scopes.iter().map(|scope| (*scope).into()).collect(),
            expires: 0,
        }))
    }

    #[test]
    fn a_client_has_the_scopes_of_its_token_and_no_other() {
        let caller = client("https://issuer", "a", &["patients:read"]);
        assert!(caller.has(Scope::new("patients:read")));
        assert!(!caller.has(Scope::new("patients")) && !caller.has(Scope::new("patients:write")));
        assert!(Caller::Unidentified.has(Scope::new("patients:write")));
    }

    #[test]
    fn owners_are_different_for_different_callers() {
        let owners = [
            Caller::Unidentified.owner(),
            client("https://issuer", "a", &[]).owner(),
            client("https://issuer", "b", &[]).owner(),
            client("https://issuera", "", &[]).owner(),
            Caller::Service(Arc::new(ServiceIdentity { name: "patient-service".into() })).owner(),
        ];
        assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), owners.len(), "{owners:?}");
    }
}
