//! The command `patient-service dead-letters`, as the binary beside a service that runs.

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use patient_service::outbox::{Outbox, OutboxRow, PendingQuery};
use serde_json::Value as Json;

use crate::{
    harness::{Harness, execute, id, path, with_service},
    test_billing::Behaviour,
};

/// Two events of each patient and a task, as the relay and the reconciler dead-letter them.
const REJECTED: &str = "WITH event AS (
        INSERT INTO outbox_dead_letters (id, patient_id, key_hash, event_id, event_type, value, created_at, error)
        SELECT number, patients.id, 0, gen_random_uuid(), 'PATIENT_CREATED', '\\x0102', now(), 'MessageTooLarge'
        FROM patients, (VALUES (7), (8)) numbers (number)
    ), task AS (DELETE FROM billing_tasks RETURNING patient_id, action, traceparent)
    INSERT INTO billing_task_dead_letters (patient_id, action, traceparent, attempts, error)
    SELECT *, 5, 'the peer answered unimplemented' FROM task";

async fn run(database_url: &str, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_patient-service"));
    command.arg("dead-letters").args(words).env_clear();
    command.envs([
        ("DATABASE_URL", database_url),
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9"),
        ("DATABASE_DEADLINE", "1s"),
    ]);
    smol::unblock(move || testbed::output(&mut command)).await.unwrap()
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn objects(output: &Output) -> Vec<Json> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What waits in the outbox.
async fn pending(outbox: &Outbox) -> Vec<OutboxRow> {
    let query =
        PendingQuery { shard: (0, 1), from: 0, excluded_partitions: (&[], 1), excluded_events: &[], limit: 100 };
    outbox.pending(&query).await.unwrap().1
}

/// Takes what waits in the outbox as a relay does: the broker accepts it, or rejects it for good.
async fn relay(service: &Harness, accepts: bool) {
    let outbox = Outbox::new(service.database.clone());
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let events = pending(&outbox).await;
        for event in &events {
            match accepts {
                true => drop(outbox.delete(&[event.key()], false).await.unwrap()),
                false => outbox.dead_letter(event.key(), "MessageTooLarge").await.unwrap(),
            }
        }
        if !events.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "nothing is in the outbox");
        smol::Timer::after(Duration::from_millis(10)).await;
    }
}

#[test]
fn dead_letters_are_listed_and_resubmitted() {
    with_service(|service| async move {
        let url = service.database_url.clone();
        let none = run(&url, &[]).await;
        assert!(none.status.success() && printed(&none) == "There are no dead letters.\n", "{}", printed(&none));
        assert_eq!(objects(&run(&url, &["--json"]).await), [] as [Json; 0]);

        service.billing.set(Behaviour::Unavailable);
        let jane = id(&service.register("Jane Doe").await);
        execute(&service, "DELETE FROM outbox").await;
        execute(&service, REJECTED).await;
        let task = format!("billing-{jane}");
        let listed = run(&url, &[]).await;
        let lines: Vec<_> = String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect();
        assert!(listed.status.success() && lines.len() == 4 && lines[0].starts_with("id "), "{}", printed(&listed));
        assert!(lines[1].starts_with("outbox-7 ") && lines[1].ends_with(" MessageTooLarge"), "{}", lines[1]);
        assert!(lines[3].starts_with(&task) && lines[3].contains(" OPEN "), "{}", lines[3]);
        let objects_listed = objects(&run(&url, &["--json"]).await);
        assert_eq!(objects_listed[1]["id"], "outbox-8");
        assert_eq!(objects_listed[1]["type"], "PATIENT_CREATED");
        assert_eq!(objects_listed[1]["bytes"], 2);
        assert_eq!(objects_listed[2]["patientId"], *jane);
        assert!(!printed(&listed).contains("Jane"), "no personal data");

        let unknown = run(&url, &["--resend", "outbox-7", "outbox-9"]).await;
        assert_eq!(unknown.status.code(), Some(1));
        assert!(
            printed(&unknown).contains("no dead letter outbox-9; nothing was resubmitted"),
            "{}",
            printed(&unknown)
        );
        assert_eq!(service.number("SELECT count(*) FROM outbox_dead_letters").await, 2);

        let (some, ()) = smol::future::zip(run(&url, &["--resend", "outbox-7"]), relay(&service, true)).await;
        assert!(some.status.success(), "{}", printed(&some));
        assert_eq!(printed(&some), "1 resubmitted: 1 accepted, 0 pending, 0 dead-lettered again.\n");
        assert_eq!(service.number("SELECT count(*) FROM outbox_dead_letters").await, 1);

        let pending = run(&url, &["--resend", "--timeout", "0", "--json", "outbox-8"]).await;
        assert_eq!(pending.status.code(), Some(1), "{}", printed(&pending));
        assert_eq!(objects(&pending)[0]["outcome"], "pending");
        relay(&service, false).await;

        service.billing.set(Behaviour::Normal);
        let all = ["--resend", "--json"];
        let (all, ()) = smol::future::zip(run(&url, &all), relay(&service, false)).await;
        assert_eq!(all.status.code(), Some(1), "one is rejected again: {}", printed(&all));
        let outcomes: Vec<_> =
            objects(&all).iter().map(|letter| (letter["id"].clone(), letter["outcome"].clone())).collect();
        let event = service.number("SELECT id FROM outbox_dead_letters").await;
        assert_eq!(outcomes.len(), 2, "{outcomes:?}");
        assert!(outcomes.iter().any(|(id, outcome)| *id == *task && *outcome == "accepted"), "{outcomes:?}");
        assert!(outcomes.iter().any(|(_, outcome)| *outcome == "dead-lettered"), "{outcomes:?}");
        assert_eq!(service.billing.status(&jane).as_deref(), Some("ACTIVE"));

        let named = format!("outbox-{event}");
        let (last, ()) = smol::future::zip(run(&url, &["--resend", &named]), relay(&service, true)).await;
        assert!(last.status.success(), "{}", printed(&last));
        assert_eq!(printed(&run(&url, &["--resend"]).await), "There are no dead letters.\n");
    });
}

/// Sent again later, one would be the last event of its key on a compacted topic, and bring the patient back.
#[test]
fn a_deletion_leaves_nothing_dead_lettered_of_its_patient_but_itself() {
    const REJECTED: &str = "INSERT INTO outbox_dead_letters
            (id, patient_id, key_hash, event_id, event_type, value, created_at, error)
        SELECT 7, id, 0, gen_random_uuid(), 'PATIENT_UPDATED', '\\x0102', now(), 'MessageTooLarge' FROM patients";
    const OF_A_DELETED_PATIENT: &str = "INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value)
        VALUES (gen_random_uuid(), 0, gen_random_uuid(), 'PATIENT_UPDATED', '\\x0102')";
    // As if another change came between the read and the write of the batch: then the deletion is a transaction of its own.
    const SKIP_THE_BATCH: &str = "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF nextval('deletions') = 1 THEN RETURN NULL; END IF; RETURN OLD; END $$";
    const SKIPPED: &str = "CREATE TRIGGER skip BEFORE DELETE ON patients FOR EACH ROW EXECUTE FUNCTION skip()";
    with_service(|service| async move {
        let dead_letters = async || service.number("SELECT count(*) FROM outbox_dead_letters").await;
        let outbox = Outbox::new(service.database.clone());
        for is_alone in [false, true] {
            let jane = service.register("Jane Doe").await;
            let john = service.register("John Doe").await;
            for statement in ["DELETE FROM outbox", "DELETE FROM outbox_dead_letters"] {
                execute(&service, statement).await;
            }
            execute(&service, REJECTED).await;
            if is_alone {
                for statement in ["CREATE SEQUENCE deletions", SKIP_THE_BATCH, SKIPPED] {
                    execute(&service, statement).await;
                }
            }
            assert_eq!(service.client.delete(&path(&jane)).await.unwrap().status, 204);
            assert_eq!(dead_letters().await, 1, "John's; alone: {is_alone}");
            if is_alone {
                assert_eq!(service.number("SELECT nextval('deletions')").await, 3, "the batch was skipped");
            }

            let deletion = pending(&outbox).await.remove(0);
            outbox.dead_letter(deletion.key(), "MessageTooLarge").await.unwrap();
            assert_eq!(dead_letters().await, 2, "the deletion itself is kept");
            // The relay learns of a rejection after the deletion.
            execute(&service, OF_A_DELETED_PATIENT).await;
            let late = pending(&outbox).await.remove(0);
            outbox.dead_letter(late.key(), "MessageTooLarge").await.unwrap();
            assert_eq!(dead_letters().await, 2);
            assert_eq!(service.client.delete(&path(&john)).await.unwrap().status, 204);
        }
    });
}

#[test]
fn without_a_database_or_with_wrong_arguments_the_command_says_so() {
    runtime::block_on(1, async {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("postgres://patients:hunter2@{nobody}/patients");
        for words in [&[][..], &["--resend"], &["--resend", "outbox-7"]] {
            let started = Instant::now();
            let unavailable = run(&url, words).await;
            assert_eq!(unavailable.status.code(), Some(1), "{words:?}");
            let text = printed(&unavailable);
            assert!(text.starts_with("patient-service dead-letters: the database cannot serve now"), "{text}");
            assert!(!text.contains("hunter2") && started.elapsed() < Duration::from_secs(20), "{text}");
        }
        for words in [&["outbox-7"][..], &["--resend", "7"], &["--all"]] {
            let wrong = run(&url, words).await;
            assert_eq!(wrong.status.code(), Some(64), "{words:?}");
            assert!(printed(&wrong).contains("Usage: patient-service dead-letters [--resend"), "{}", printed(&wrong));
        }
        assert_eq!(run("mysql://localhost/x", &[]).await.status.code(), Some(78));
    });
}
