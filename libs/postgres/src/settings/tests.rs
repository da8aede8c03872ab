use config::Environment;

use super::*;

fn read(environment: Environment) -> Result<Settings, String> {
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader, "postgres://localhost/patients", "test");
    reader.finish(settings).map(|(settings, _)| settings).map_err(|errors| errors.to_string())
}

fn read_url(url: &str) -> Result<Url, String> {
    let settings = read(Environment::empty().with("DATABASE_URL", url))?;
    Ok(settings.url.expose().clone())
}

#[test]
fn variables_of_spring_are_accepted() {
    let environment = Environment::empty()
        .with("SPRING_DATASOURCE_URL", "jdbc:postgresql://db.example:5433/patients")
        .with("SPRING_DATASOURCE_USERNAME", "admin")
        .with("SPRING_DATASOURCE_PASSWORD", "hunter2");
    let settings = read(environment).unwrap();
    let options = &settings.url.expose().options;
    assert_eq!((options.get_host(), options.get_port()), ("db.example", 5433));
    assert_eq!((options.get_username(), options.get_database()), ("admin", Some("patients")));
    assert!(!format!("{settings:?} {:?}", settings.url.expose()).contains("hunter2"));
}

#[test]
fn a_deadline_that_postgresql_cannot_have_is_rejected_by_name() {
    let read = |deadline| {
        read(Environment::empty().with("DATABASE_URL", "postgres://a@b/c").with("DATABASE_DEADLINE", deadline))
    };
    assert!(read("596h").is_ok());
    let error = read("600h").unwrap_err();
    assert!(error.contains("DATABASE_DEADLINE: expected at most 596h"), "{error}");
}

#[test]
fn a_wrong_url_is_rejected_without_being_shown() {
    for wrong in [
        "mysql://root:hunter2@localhost/db",
        "jdbc:hunter2",
        "postgres://u:hunter2@host:port/db",
        "postgres://u:hunter2#@host/db",
        "postgres://u@host/db?password=a&hunter2",
        "postgres://u@host,hunter2/db",
    ] {
        let error = read(Environment::empty().with("DATABASE_URL", wrong)).unwrap_err();
        assert!(error.contains("DATABASE_URL") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn every_url_parameter_is_applied_or_rejected_by_name() {
    let url = "postgres://jane:p%40ss@[::1]:5433/patients?application_name=mine&sslmode=prefer&ssl=false\
               &currentSchema=app&options=-c%20geqo%3Doff%20--synchronous-commit%3Dlocal&options[work_mem]=8MB";
    let url = read_url(url).unwrap();
    let options = &url.options;
    assert_eq!((options.get_host(), options.get_port()), ("::1", 5433));
    assert_eq!((options.get_username(), options.get_database()), ("jane", Some("patients")));
    assert_eq!(options.get_application_name(), Some("mine"));
    assert_eq!(url.password.as_deref(), Some("p@ss"));
    let session = [("search_path", "app"), ("geqo", "off"), ("synchronous_commit", "local"), ("work_mem", "8MB")];
    assert_eq!(url.session, session.map(|(name, value)| (name.to_owned(), value.to_owned())));

    let url = read_url("postgres:///x?host=%2Frun%2Fpostgresql&port=1&user=jane&dbname=y&password=z").unwrap();
    assert_eq!(url.options.get_socket().unwrap().to_str(), Some("/run/postgresql"));
    assert_eq!((url.options.get_username(), url.options.get_database()), ("jane", Some("y")));
    let url = read_url("postgres://jane@localhost/x?host=%2Frun%2Fst%C3%A4ck%2C%20%22%2B%22").unwrap();
    assert_eq!(url.options.get_socket().unwrap().to_str(), Some("/run/stäck, \"+\""));
    assert!(read_url("postgres://jane@localhost/x?host=%2Frun%2Fone%2C%2Frun%2Ftwo").is_err());

    for (parameter, named) in [
        ("ssl=yes", "ssl:"),
        ("sslmode=of+course", "sslmode:"),
        ("sslrootcert=ca.pem", "files for TLS"),
        ("sslmode=require&sslrootcert=/no/ca.pem", "/no/ca.pem"),
        ("sslmode=require&sslcert=client.crt", "sslkey"),
        ("sslmode=require&sslpassword=hunter2", "sslpassword:"),
        ("host=%2Frun&sslmode=require", "socket"),
        ("currentschema=app", "currentschema"),
        ("prepareThreshold=0", "prepareThreshold"),
        ("connect_timeout=3", "DATABASE_ACQUIRE_DEADLINE"),
        ("options=-c%20statement_timeout%3D0", "DATABASE_DEADLINE"),
        ("options=fast", "options"),
        ("options[a%27b]=1", "options"),
        ("target_session_attrs=read-write", "target_session_attrs"),
        ("statement-cache-capacity=0", "statement-cache-capacity"),
        ("gssencmode=require", "gssencmode"),
        ("port=x", "port"),
    ] {
        let error = read_url(&format!("postgres://jane@localhost/x?{parameter}")).unwrap_err();
        assert!(error.contains("DATABASE_URL") && error.contains(named), "{parameter}: {error}");
    }
}

#[test]
fn a_database_on_another_host_is_verified_unless_the_url_says_otherwise() {
    use PgSslMode::{Disable, Prefer, Require, VerifyCa, VerifyFull};
    for (url, expected) in [
        ("localhost/x", Disable),
        ("127.0.0.2/x", Disable),
        ("[::1]/x", Disable),
        ("localhost/x?host=%2Frun%2Fpostgresql", Disable),
        ("db/x", VerifyFull),
        ("10.0.0.7/x", VerifyFull),
        ("localhost/x?host=db", VerifyFull),
        ("db/x?sslmode=disable", Disable),
        ("db/x?sslmode=allow", Disable),
        ("db/x?sslmode=prefer", Prefer),
        ("db/x?sslmode=require", Require),
        ("db/x?sslmode=verify-ca", VerifyCa),
        ("localhost/x?sslmode=verify-full", VerifyFull),
        ("localhost/x?ssl=true", VerifyFull),
        ("db/x?ssl=false", Disable),
        ("db/x?ssl=true&sslmode=require", Require),
        ("db/x?sslmode=require&ssl=true", Require),
    ] {
        let mode = read_url(&format!("postgres://jane@{url}")).unwrap().options().get_ssl_mode();
        assert_eq!(format!("{mode:?}"), format!("{expected:?}"), "{url}");
    }
}

#[test]
fn the_settings_page_lists_every_url_parameter() {
    let page = include_str!("../../../../docs/settings.md");
    for (names, what) in URL_PARAMETERS {
        let names: Vec<_> = names.split(", ").map(|name| format!("`{name}`")).collect();
        let row = format!("| {} | {what} |\n", names.join(", "));
        assert!(page.contains(&row), "{row}");
    }
}

#[test]
fn the_owner_has_a_url_of_its_own_with_the_same_checks() {
    let base = || Environment::empty().with("DATABASE_URL", "postgres://jane@localhost/x");
    assert!(read(base()).unwrap().owner.is_none());
    let settings = read(base().with(OWNER_URL, "postgres://owner:hunter2@localhost/x?currentSchema=app")).unwrap();
    let owner = settings.owner.as_ref().unwrap().expose();
    assert_eq!((owner.options.get_username(), owner.session.len()), ("owner", 1));
    assert_eq!(settings.url.expose().options.get_username(), "jane");
    assert!(!format!("{settings:?}").contains("hunter2"));
    for (url, named) in
        [("mysql://root:hunter2@localhost/x", ""), ("postgres://o@h/x?sslrootcert=/no/ca.pem", "/no/ca.pem")]
    {
        let error = read(base().with(OWNER_URL, url)).unwrap_err();
        assert!(error.contains(OWNER_URL) && error.contains(named) && !error.contains("hunter2"), "{error}");
    }
    let error = read(base().with(OWNER_URL, "postgres://localhost/x").with("PGUSER", "john")).unwrap_err();
    assert!(error.contains("DATABASE_OWNER_URL names no user"), "{error}");
}

#[test]
fn libpq_variables_are_ignored_or_rejected_where_they_would_matter() {
    let base = || Environment::empty().with("DATABASE_URL", "postgres://jane@localhost/x");
    for (name, value) in [("PGSSLMODE", "require"), ("PGSSLMODE", "verify-full"), ("PGOPTIONS", "-c geqo=off")] {
        let error = read(base().with(name, value)).unwrap_err();
        assert!(error.contains(name), "{error}");
    }
    let away = || Environment::empty().with("DATABASE_URL", "postgres://jane@db/x");
    read(away().with("PGSSLMODE", "require")).unwrap();
    read(base().with("PGSSLROOTCERT", "ca.pem")).unwrap();
    let error = read(away().with("PGSSLROOTCERT", "ca.pem")).unwrap_err();
    assert!(error.contains("PGSSLROOTCERT"), "{error}");
    read(base().with("PGSSLMODE", "prefer").with("PGUSER", "john").with("PGPORT", "1")).unwrap();
    let error =
        read(Environment::empty().with("DATABASE_URL", "postgres://localhost/x").with("PGUSER", "john")).unwrap_err();
    assert!(error.contains("PGUSER"), "{error}");
}
