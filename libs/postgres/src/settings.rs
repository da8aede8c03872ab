use std::{fmt, time::Duration};

use config::{Bounded, Reader, Secret, Value};
use sqlx::postgres::PgConnectOptions;

/// Where the database is, and how it is used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to connect.
    pub url: Secret<Url>,
    /// Connections at most.
    pub connections: usize,
    /// Time for one piece of work on a connection, as the client measures it. The server gives up a little earlier.
    pub deadline: Duration,
    /// Time to wait for a free connection.
    pub acquire: Duration,
}

impl Settings {
    /// Reads `DATABASE_URL`, `DATABASE_CONNECTIONS` and the deadlines, under our names or the originals'.
    pub fn read(reader: &mut Reader, example: &'static str, application: &'static str) -> Self {
        let names: &[&str] = &["DATABASE_URL", "SPRING_DATASOURCE_URL"];
        let url: Secret<Url> = reader.variable(names, "the database").required(example);
        let user: Option<String> =
            reader.variable(&["SPRING_DATASOURCE_USERNAME"], "user, instead of the URL's").optional();
        let password: Option<Secret<String>> =
            reader.variable(&["SPRING_DATASOURCE_PASSWORD"], "password, instead of the URL's").optional();
        let connections: Bounded<1, 1000> =
            reader.variable(&["DATABASE_CONNECTIONS"], "connections to the database").or("16");
        let deadline = reader.variable(&["DATABASE_DEADLINE"], "time for a query").or("2s");
        let acquire = reader.variable(&["DATABASE_ACQUIRE_DEADLINE"], "time to wait for a connection").or("1s");
        let mut options = url.expose().0.clone().application_name(application);
        if let Some(user) = user {
            options = options.username(&user);
        }
        if let Some(password) = password {
            options = options.password(password.expose());
        }
        Self { url: Secret::new(Url(options)), connections: connections.size(), deadline, acquire }
    }
}

/// The URL of a PostgreSQL database. The `jdbc:` that Spring puts before it is accepted.
#[derive(Clone)]
pub struct Url(pub(crate) PgConnectOptions);

impl Value for Url {
    const EXPECTED: &'static str = "postgres://user:password@host:port/database";
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix("jdbc:").unwrap_or(text);
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err("it does not begin with postgres:// or jdbc:postgresql://".to_owned());
        }
        // The parser's message can quote parts of the URL.
        text.parse().map(Self).map_err(|_| "it is no URL of a database".to_owned())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Url(***)")
    }
}

#[cfg(test)]
mod tests {
    use config::Environment;

    use super::*;

    fn read(environment: Environment) -> Result<Settings, String> {
        let mut reader = Reader::new(environment);
        let settings = Settings::read(&mut reader, "postgres://localhost/patients", "test");
        reader.finish(settings).map(|(settings, _)| settings).map_err(|errors| errors.to_string())
    }

    #[test]
    fn accepts_springs_variables() {
        let environment = Environment::empty()
            .with("SPRING_DATASOURCE_URL", "jdbc:postgresql://db.example:5433/patients")
            .with("SPRING_DATASOURCE_USERNAME", "admin")
            .with("SPRING_DATASOURCE_PASSWORD", "hunter2");
        let settings = read(environment).unwrap();
        let options = &settings.url.expose().0;
        assert_eq!((options.get_host(), options.get_port()), ("db.example", 5433));
        assert_eq!((options.get_username(), options.get_database()), ("admin", Some("patients")));
        assert!(!format!("{settings:?} {:?}", settings.url.expose()).contains("hunter2"));
    }

    #[test]
    fn a_wrong_url_is_refused_without_being_shown() {
        for wrong in ["mysql://root:hunter2@localhost/db", "jdbc:hunter2", "postgres://u:hunter2@host:port/db"] {
            let error = read(Environment::empty().with("DATABASE_URL", wrong)).unwrap_err();
            assert!(error.contains("DATABASE_URL") && !error.contains("hunter2"), "{error}");
        }
    }
}
