//! billing-service is killed, slow or unreachable.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::Row as _;
use testbed::{
    Signal,
    audit::Acknowledged,
    proxy::{Mode, Proxy, Target},
    sql, until,
    writers::Writers,
};

use crate::support::{
    TIMEOUT, any_broker, audit, billing, id, is_unavailable, logged, metric, patient, random_pause, register,
    register_many, stop_and_audit, system, until_metric, until_readiness,
};

/// `BILLING_DEADLINE`, and the time for the rest of a request on a busy machine.
const DEADLINE: Duration = Duration::from_secs(1);
const MARGIN: Duration = Duration::from_millis(1500);

#[test]
fn each_account_is_opened_once_when_billing_is_killed_at_any_instant() {
    runtime::block_on(2, async {
        let mut system = system(any_broker(), 1, &[]).await;
        let writers = Writers::start(&[system.patients[0].address()], 8);
        for _ in 0..6 {
            writers.until(writers.acknowledged().count() + 10, TIMEOUT).await.unwrap();
            random_pause(100).await;
            system.billing.process().kill().await;
            // Patients are registered meanwhile.
            writers.until(writers.acknowledged().count() + 5, TIMEOUT).await.unwrap();
            system.restart(billing).await.unwrap();
        }
        let (written, report) = stop_and_audit(writers, &system).await;
        assert_eq!(written.unanswered, 0, "{written}");
        assert!(report.acknowledged > 60, "{report}");
    });
}

#[test]
fn a_patient_has_one_account_when_billing_is_killed_after_its_commit() {
    runtime::block_on(2, async {
        let mut system = system(any_broker(), 1, &[]).await;
        let database = system.backing_services().billing_database.clone();
        // PostgreSQL commits a second later, whether or not its client still runs.
        let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
            CREATE TRIGGER slow AFTER INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION slow()";
        sql::execute(&database, slow).await.unwrap();
        let acknowledged = Acknowledged::default();
        let (client, noted) = (system.patient_client(), acknowledged.clone());
        let registering = runtime::spawn(async move { register(&client, &noted).await });
        // Only once the statement executes: while it is prepared, nothing would be inserted after the kill.
        let opening =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '-- open account%' AND wait_event = 'PgSleep'
            AND datname = current_database()";
        until("billing opens the account", async || sql::number(&database, opening).await.unwrap() == 1).await;
        system.billing.process().kill().await;
        let jane = registering.await;
        assert_eq!(jane["billing"]["status"], "PENDING");

        let accounts = "SELECT count(*) FROM accounts";
        until("the account is there", async || sql::number(&database, accounts).await.unwrap() == 1).await;
        sql::execute(&database, "DROP TRIGGER slow ON accounts").await.unwrap();
        let first =
            sql::rows(&database, "SELECT id::text FROM accounts", |row| row.try_get::<String, _>(0)).await.unwrap();
        system.restart(billing).await.unwrap();
        audit(&system, &acknowledged).await;
        let account = system.patient_client().get(&format!("/patients/{}/billing", id(&jane))).await.unwrap();
        assert_eq!(
            (&account.json()["accountId"], &account.json()["status"]),
            (&first[0].clone().into(), &"ACTIVE".into())
        );
    });
}

#[test]
fn accounts_are_opened_after_billing_was_unavailable_slow_or_reset() {
    runtime::block_on(2, async {
        let proxy = Proxy::start().await.unwrap();
        let port = proxy.port().to_string();
        let mut system = system(any_broker(), 1, &[("BILLING_SERVICE_GRPC_PORT", &port)]).await;
        proxy.set_target(Target::Port(system.billing.setting("GRPC_SERVER_PORT").unwrap().parse().unwrap()));
        let (client, acknowledged) = (system.patient_client(), Acknowledged::default());
        // The first calls may have failed while the proxy had no target.
        until("billing is reached", async || register(&client, &acknowledged).await["billing"]["status"] == "ACTIVE")
            .await;
        let open = "grpc_client_breaker_open{peer=\"billing-service\"}";
        let away = "peer unavailable; calls to it fail at once until a probe succeeds";
        let outages_before = logged(&system.patients[0], away);
        let faults = [Some(Mode::Stall), Some(Mode::StallResponses), Some(Mode::Reset), None];
        for (outages, fault) in (outages_before + 1..).zip(faults) {
            match fault {
                Some(mode) => proxy.set(mode),
                None => system.billing.process().signal(Signal::STOP),
            }
            let mut pending = Vec::new();
            until("calls fail at once", async || {
                let started = Instant::now();
                pending.push(register(&client, &acknowledged).await);
                assert!(started.elapsed() < DEADLINE + MARGIN, "{fault:?}: {:?}", started.elapsed());
                metric(&system.patients[0], open).await == Some(1.0)
            })
            .await;
            // The circuit breaker lets one call through at intervals, which takes the whole deadline.
            let times = register_many(&client, &acknowledged, 5).await;
            assert!(times[2] < DEADLINE / 2, "{fault:?}: {times:?}");
            assert!(pending.iter().all(|patient| patient["billing"]["status"] == "PENDING"), "{fault:?}: {pending:?}");
            let account = format!("/patients/{}/billing", id(&pending[0]));
            assert!(is_unavailable(&client.get(&account).await.unwrap()), "{fault:?}");
            until_readiness(&system.patients[0], "billing", 200, "DEGRADED").await;
            assert_eq!(logged(&system.patients[0], away), outages, "{fault:?}: an outage is logged once");
            let log = system.patients[0].log();
            let line = log.lines().rfind(|line| line.contains(away)).unwrap();
            assert!(line.contains(&format!("\"127.0.0.1:{port}\"")), "the line has the address: {line}");

            proxy.set(Mode::Pass);
            system.billing.process().signal(Signal::CONT);
            audit(&system, &acknowledged).await;
            until_metric(&system.patients[0], open, |value| value == 0.0).await;
            assert_eq!(client.get(&account).await.unwrap().json()["status"], "ACTIVE", "{fault:?}");
            let again = || logged(&system.patients[0], "peer available again");
            until("the end of the outage is logged", async || again() >= outages).await;
            assert_eq!(again(), outages, "{fault:?}");
            until_readiness(&system.patients[0], "billing", 200, "UP").await;
        }
    });
}

#[test]
fn accounts_are_opened_after_calls_were_reset() {
    runtime::block_on(2, async {
        let proxy = Proxy::start().await.unwrap();
        let port = proxy.port().to_string();
        let system = system(any_broker(), 1, &[("BILLING_SERVICE_GRPC_PORT", &port)]).await;
        proxy.set_target(Target::Port(system.billing.setting("GRPC_SERVER_PORT").unwrap().parse().unwrap()));
        let acknowledged = Acknowledged::default();
        for _ in 0..8 {
            let calls: Vec<_> = (0..8)
                .map(|_| {
                    let client = system.patient_client();
                    runtime::spawn(async move {
                        let started = Instant::now();
                        (client.post("/patients", &patient()).await.unwrap(), started.elapsed())
                    })
                })
                .collect();
            random_pause(30).await;
            proxy.set(Mode::Reset);
            random_pause(30).await;
            proxy.set(Mode::Pass);
            for call in calls {
                let (response, took) = call.await;
                assert!(response.status == 201 && took < DEADLINE + MARGIN, "{took:?}: {}", response.text());
                acknowledged.stored(id(&response.json()), 1);
            }
        }
        audit(&system, &acknowledged).await;
    });
}

#[test]
fn locked_accounts_are_no_outage_of_billing() {
    runtime::block_on(2, async {
        let system = system(any_broker(), 1, &[]).await;
        let (acknowledged, client) = (Acknowledged::default(), system.patient_client());
        let mut paths = Vec::new();
        for _ in 0..4 {
            let patient = register(&client, &acknowledged).await;
            assert_eq!(patient["billing"]["status"], "ACTIVE");
            paths.push(format!("/patients/{}", patient["id"].as_str().unwrap()));
        }
        let mut session = sql::Session::open(&system.backing_services().billing_database).await.unwrap();
        session.execute("BEGIN; SELECT 1 FROM accounts FOR UPDATE").await.unwrap();
        // With the defaults of both services: more calls than open the circuit breaker, some of which wait for each other.
        for _ in 0..2 {
            let charge = |path: &String| {
                let (client, path) = (client.clone(), format!("{path}/billing/transactions"));
                let charge = json!({"transactionId": format!("t-{}", fastrand::u64(..)), "type": "CHARGE", "amount": 100, "currency": "EUR"});
                runtime::spawn(async move { client.post(&path, &charge).await.unwrap() })
            };
            for charge in paths.iter().chain(&paths).map(charge).collect::<Vec<_>>() {
                let response = charge.await;
                assert!(is_unavailable(&response), "{} {}", response.status, response.text());
            }
        }
        for path in &paths {
            assert_eq!(client.delete(path).await.unwrap().status, 204);
        }
        let closing = "grpc_client_calls_total{method=\"CloseBillingAccount\",outcome=\"aborted\"}";
        until_metric(&system.patients[0], closing, |calls| calls >= 8.0).await;
        let breaker = metric(&system.patients[0], "grpc_client_breaker_open{peer=\"billing-service\"}").await;
        assert_eq!(breaker, Some(0.0));
        assert_eq!(logged(&system.patients[0], "peer unavailable; calls to it fail at once until a probe succeeds"), 0);
        assert_eq!(register(&client, &acknowledged).await["billing"]["status"], "ACTIVE");
        session.execute("ROLLBACK").await.unwrap();
        let open = "SELECT count(*) FROM accounts WHERE status = 'ACTIVE'";
        let database = &system.backing_services().billing_database;
        until("the accounts are closed", async || sql::number(database, open).await.unwrap() == 1).await;
    });
}
