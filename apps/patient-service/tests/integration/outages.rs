//! Outages of the database, and requests that use all its connections.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use testbed::{
    Scratch, Signal,
    postgres::{Cluster, Durability},
    sql::{self, Session},
    until,
};

use crate::harness::{Harness, at_once, path, patient, with_service};

#[test]
fn without_its_database_it_says_503_in_time_and_recovers_by_itself() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        let service = Harness::start(&cluster.url("postgres"), &[]).await;
        service.register("Jane Doe").await;

        cluster.process().signal_all(Signal::STOP);
        for path in ["/patients", "/patients/00000000-0000-7000-8000-000000000000"] {
            let started = Instant::now();
            let response = service.get(path).await;
            assert_eq!((response.status, response.header("retry-after")), (503, Some("2")), "{}", response.text());
            assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        }
        assert_eq!(service.post("/patients", &patient("John Doe")).await.status, 503);
        let readiness = service.get("/actuator/health/readiness").await;
        assert_eq!((readiness.status, readiness.json()["status"].as_str()), (503, Some("DOWN")));
        assert_eq!(service.get("/actuator/health/liveness").await.status, 200);
        cluster.process().signal_all(Signal::CONT);
        until("it is thawed", async || service.get("/patients").await.status == 200).await;

        cluster.process().signal_all(Signal::KILL);
        cluster.process().kill().await;
        assert_eq!(service.get("/patients").await.status, 503);
        cluster.restart().await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        until("it is back", async || service.get("/patients").await.status == 200).await;
        assert_eq!(service.get("/patients?search=jane").await.json().as_array().unwrap().len(), 1);
        service.stop().await;
    });
}

#[test]
fn requests_that_use_every_connection_block_neither_leases_nor_tasks_nor_readiness() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        // A request keeps its connection for longer than the lease.
        let settings = [("DATABASE_CONNECTIONS", "4"), ("DATABASE_DEADLINE", "8s"), ("RELAY_LEASE", "4s")];
        let service = Harness::start(&url, &settings).await;
        let patients = [service.register("Jane Doe").await, service.register("John Doe").await].map(|body| path(&body));
        let held = "SELECT count(*) FROM relay_leases WHERE expires_at > now()";
        until("it has the lease", async || sql::number(&url, held).await.unwrap() == 1).await;
        // Each kind of change has two statements at a time; they take as long as the server lets them.
        let slow =
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NEW; END';
            CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON patients FOR EACH ROW EXECUTE FUNCTION slow()";
        sql::execute(&url, slow).await.unwrap();
        // Three times as many as connections, and each is repeated after a 503.
        let change = |n: usize| {
            let (client, patients) = (service.client.clone(), patients.clone());
            runtime::spawn(async move {
                loop {
                    let body = patient(&format!("Jane {n}"));
                    let response = match n % 3 {
                        0 => client.post("/patients", &body).await,
                        _ => client.put(&patients[n % 3 - 1], &body).await,
                    };
                    let response = response.unwrap();
                    assert_eq!(response.status, 503, "{}", response.text());
                }
            })
        };
        let changing: Vec<_> = (0..12).map(change).collect();
        let busy =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
        until("every connection is in use", async || sql::number(&url, busy).await.unwrap() >= 4).await;
        let task = "INSERT INTO billing_tasks (patient_id, action, name, email, next_attempt_at)
            VALUES (gen_random_uuid(), 'CLOSE', 'John Doe', 'john@example.org', now())";
        sql::execute(&url, task).await.unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(8) {
            assert_eq!(sql::number(&url, held).await.unwrap(), 1, "the lease has run out");
            let asked = Instant::now();
            assert_eq!(service.get("/actuator/health/readiness").await.status, 200);
            assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
            smol::Timer::after(Duration::from_millis(50)).await;
        }
        let closing = "SELECT count(*) FROM billing_tasks WHERE action = 'CLOSE'";
        assert_eq!(sql::number(&url, closing).await.unwrap(), 0, "the task is done");
        for change in changing {
            change.cancel().await;
        }
        service.stop().await;
    });
}

#[test]
fn a_locked_patient_is_no_outage_of_the_database() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let service = Harness::start(&url, &[]).await;
        let jane = path(&service.register("Jane Doe").await);
        let mut session = Session::open(&url).await.unwrap();
        session.execute("BEGIN; SELECT id FROM patients FOR UPDATE").await.unwrap();
        let response = service.client.put(&jane, &patient("Jane Roe")).await.unwrap();
        assert_eq!((response.status, response.header("retry-after")), (503, Some("2")), "{}", response.text());
        let kind = response.json()["type"].as_str().unwrap().to_owned();
        assert!(kind.ends_with("database-busy"), "{kind}");
        assert_eq!(service.get("/actuator/health/readiness").await.status, 200);
        assert!(service.get("/metrics").await.text().contains("db_timeouts_total{kind=\"lock\"} "));
        session.execute("ROLLBACK").await.unwrap();
        assert_eq!(service.client.put(&jane, &patient("Jane Roe")).await.unwrap().status, 200);
        service.stop().await;
    });
}

#[test]
fn reads_go_on_while_a_column_changes_its_type() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let service = Harness::start(&url, &[("DATABASE_DEADLINE", "10s")]).await;
        let jane = path(&service.register("Jane Doe").await);
        let mut session = Session::open(&url).await.unwrap();
        for (n, kind) in ["varchar(200)", "text", "varchar(200)"].into_iter().enumerate() {
            // Each way to read has its own statements, and twice as many requests as connections make every connection prepare
            // them.
            for path in [&*jane, "/patients", "/patients?search=jane&sort=name", "/patients?search=ja"] {
                let (client, asked) = (service.client.clone(), path.to_owned());
                let responses = at_once(8, move |_| {
                    let (client, asked) = (client.clone(), asked.clone());
                    async move { client.get(&asked).await.unwrap().status }
                });
                assert_eq!(responses.await, [200; 8], "{path}");
            }
            service.register(&format!("John {n}")).await;
            assert_eq!(service.client.put(&jane, &patient("Jane Doe")).await.unwrap().status, 200, "{kind}");
            let alter = match kind {
                "text" => "ALTER TABLE patients ALTER COLUMN name TYPE text",
                _ => "ALTER TABLE patients ALTER COLUMN name TYPE varchar(200)",
            };
            session.execute(alter).await.unwrap();
        }
        assert_eq!(service.get(&jane).await.status, 200);
        service.stop().await;
    });
}

#[test]
fn without_broker_and_billing_it_is_degraded_and_ready() {
    with_service(|service| async move {
        service.register("Jane Doe").await;
        let degraded = async || {
            let readiness = service.get("/actuator/health/readiness").await;
            let body = readiness.json();
            readiness.status == 200
                && body["status"] == "DEGRADED"
                && body["components"]["kafka"]["status"] == "DEGRADED"
                && body["components"]["database"]["status"] == "UP"
        };
        until("the missing broker is told", degraded).await;
        let pending = async || service.get("/metrics").await.text().contains("outbox_pending{shard=\"0\"} 1\n");
        until("the outbox is told", pending).await;
    });
}

/// Each attempt costs a name lookup, a connection, and perhaps a handshake and a login, on the thread that serves requests.
#[test]
fn registrations_do_not_shorten_the_pauses_between_attempts_to_reach_the_broker() {
    const REGISTRATIONS: usize = 300;
    // A broker that ends each connection at once, as one that rejects the TLS or SASL of a client.
    let broker = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = broker.local_addr().unwrap().to_string();
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = attempts.clone();
    // It ends with the test's process.
    std::thread::spawn(move || {
        for _ in broker.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    runtime::block_on(2, async {
        let settings = [("KAFKA_BOOTSTRAP_SERVERS", &*address)];
        let service = Harness::start(&testbed::shared_database().await, &settings).await;
        until("the broker was tried", async || attempts.load(Ordering::Relaxed) > 0).await;
        let (started, before) = (Instant::now(), attempts.load(Ordering::Relaxed));
        for n in 0..REGISTRATIONS {
            service.register(&format!("Patient {n}")).await;
        }
        let (lasted, after) = (started.elapsed(), attempts.load(Ordering::Relaxed));
        // A pause is 50 ms at least, and there are 20 of them in a second at most, besides the service's other questions.
        let most = 20 + lasted.as_millis() as usize / 50;
        assert!(after - before < most.min(REGISTRATIONS / 2), "{} attempts in {lasted:?}", after - before);
        service.stop().await;
    });
}
