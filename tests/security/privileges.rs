//! What a service may do in its database: with `DATABASE_OWNER_URL`, read and write rows and nothing else.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use surf::http::Method;
use testbed::{
    Scratch,
    http::{Client, Response},
    patient::unique_body,
    ports, roles,
    service::{Launch, Service},
    sql, until,
};

/// Nobody listens there.
const UNREACHABLE: &str = "127.0.0.1:9";

/// A database that belongs to an owner, and the URLs of its roles.
struct Roles {
    admin: String,
    owner: String,
    service: String,
    role: String,
}

impl Roles {
    async fn new() -> Self {
        let admin = testbed::shared_database().await;
        let (_, rest) = admin.rsplit_once('/').unwrap();
        let name = rest.split('?').next().unwrap();
        let role = format!("{name}-service");
        let owner = roles::owner(&role);
        let url = |role: &str| admin.replace("postgres@", &format!("{role}@"));
        let new = Self { owner: url(&owner), service: url(&role), role, admin: admin.clone() };
        let statements = roles::statements(name, &new.role);
        // It can be repeated.
        for _ in 0..2 {
            execute(&admin, &statements).await.unwrap();
        }
        new
    }

    /// Executes a statement about the service's role, as a superuser.
    async fn execute(&self, statement: &str) {
        execute(&self.admin, &statement.replace("{role}", &format!("\"{}\"", self.role))).await.unwrap();
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![("DATABASE_URL", self.service.clone()), ("DATABASE_OWNER_URL", self.owner.clone())]
    }
}

async fn execute(url: &str, statements: &str) -> Result<(), testbed::Error> {
    sql::execute(url, Box::leak(statements.to_owned().into_boxed_str())).await
}

fn start(scratch: &Scratch, name: &'static str, settings: Vec<(&'static str, String)>) -> Service {
    Launch::new(name, scratch.path(), settings).start_guarded(scratch).unwrap()
}

/// The answer to a request that is repeated while the service cannot serve.
async fn answer(client: &Client, method: Method, path: &str, body: Option<&Json>) -> Response {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let response = client.send(method, path, &[], body).await.unwrap();
        if response.status != 503 || Instant::now() > end {
            return response;
        }
        smol::Timer::after(Duration::from_millis(50)).await;
    }
}

#[test]
fn services_work_with_roles_that_change_rows_alone_and_a_missing_privilege_loses_nothing() {
    runtime::block_on(2, async {
        let (patients, accounts) = (Roles::new().await, Roles::new().await);
        let scratch = Scratch::new().unwrap();
        let grpc = ports::free();
        let own = vec![("GRPC_SERVER_PORT", grpc.to_string())];
        let mut billing = start(&scratch, "billing-service", [accounts.settings(), own].concat());
        let own = vec![
            ("KAFKA_BOOTSTRAP_SERVERS", UNREACHABLE.to_owned()),
            ("BILLING_SERVICE_ADDRESS", format!("127.0.0.1:{grpc}")),
            ("BILLING_DEADLINE", "20s".to_owned()),
        ];
        let mut service = start(&scratch, "patient-service", [patients.settings(), own].concat());
        billing.until_ready().await.unwrap();
        service.until_ready().await.unwrap();
        let client = service.client();

        let registered = answer(&client, Method::Post, "/patients", Some(&unique_body("Ann"))).await;
        assert_eq!(registered.status, 201, "{}", registered.text());
        let path = format!("/patients/{}", registered.json()["id"].as_str().unwrap());
        let charge = json!({"transactionId": "t", "type": "CHARGE", "amount": 5, "currency": "EUR"});
        let charged = answer(&client, Method::Post, &format!("{path}/billing/transactions"), Some(&charge)).await;
        assert_eq!(charged.status, 201, "{}", charged.text());
        let changed = answer(&client, Method::Put, &path, Some(&unique_body("Ann Other"))).await;
        assert_eq!(changed.status, 200, "{}", changed.text());
        assert_eq!(answer(&client, Method::Get, "/patients?q=ann", None).await.status, 200);
        assert_eq!(answer(&client, Method::Delete, &path, None).await.status, 204);

        let denied = |service: &Service| service.log().contains("until a privilege is granted");
        assert!(!denied(&billing) && !denied(&service), "{}", service.log());
        for (roles, table) in [(&patients, "patients"), (&accounts, "accounts")] {
            execute(&roles.service, &format!("SELECT count(*) FROM {table}")).await.unwrap();
            for statement in [
                format!("DROP TABLE {table}"),
                format!("TRUNCATE {table}"),
                format!("ALTER TABLE {table} ADD COLUMN x text"),
                format!("CREATE INDEX ON {table} (id)"),
                "CREATE TABLE others (x text)".to_owned(),
                "CREATE TEMPORARY TABLE others (x text)".to_owned(),
                "SELECT * FROM _sqlx_migrations".to_owned(),
            ] {
                let error = execute(&roles.service, &statement).await.unwrap_err().to_string();
                assert!(error.contains("permission denied") || error.contains("must be owner"), "{statement}: {error}");
            }
        }

        // Billing's privilege: the account waits, and is opened once it is granted.
        accounts.execute("REVOKE INSERT ON accounts FROM {role}").await;
        let pending = answer(&client, Method::Post, "/patients", Some(&unique_body("Bob"))).await;
        assert!(pending.status == 201 && pending.text().contains("PENDING"), "{}", pending.text());
        until("billing says which privilege is missing", async || {
            let log = billing.log();
            log.contains("until a privilege is granted") && log.contains("permission denied for table accounts")
        })
        .await;
        accounts.execute("GRANT INSERT ON accounts TO {role}").await;
        let path = format!("/patients/{}/billing", pending.json()["id"].as_str().unwrap());
        until("the account is open", async || client.get(&path).await.unwrap().text().contains("ACTIVE")).await;
        let count = "SELECT count(*) FROM billing_task_dead_letters";
        assert_eq!(sql::number(&patients.admin, count).await.unwrap(), 0);

        // patient-service's own.
        patients.execute("REVOKE INSERT ON outbox FROM {role}").await;
        let refused = client.post("/patients", &unique_body("Cid")).await.unwrap();
        assert!(refused.status == 503 && refused.text().contains("database-unavailable"), "{}", refused.text());
        until("patient-service says it", async || service.log().contains("permission denied for table outbox")).await;
        patients.execute("GRANT INSERT ON outbox TO {role}").await;
        assert_eq!(answer(&client, Method::Post, "/patients", Some(&unique_body("Cid"))).await.status, 201);
    });
}
