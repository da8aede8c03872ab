//! patient-service is killed.

use testbed::{audit::Acknowledged, broker::Kind, sql, writers::Writers};

use crate::support::{TIMEOUT, audit, metric, patients, random_pause, register, stop_and_audit, system};

testbed::on_each_broker!(
    nothing_is_lost_when_patient_service_is_killed_at_any_instant,
    an_event_that_is_published_twice_after_a_kill_counts_once,
);

fn nothing_is_lost_when_patient_service_is_killed_at_any_instant(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 1, &[]).await;
        let writers = Writers::start(&[system.patients[0].address()], 8);
        for round in 0..8 {
            writers.until(writers.acknowledged().count() + 15, TIMEOUT).await.unwrap();
            random_pause(100).await;
            system.patients[0].process().kill().await;
            if round % 2 == 1 {
                system.restart_without_waiting(patients).unwrap();
                random_pause(150).await;
                system.patients[0].process().kill().await;
            }
            system.restart(patients).await.unwrap();
        }
        let (written, report) = stop_and_audit(writers, &system).await;
        assert!(written.unanswered > 0 && report.acknowledged > 100, "{written}\n{report}");
    });
}

fn an_event_that_is_published_twice_after_a_kill_counts_once(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 1, &[]).await;
        let database = system.backing_services().patients_database.clone();
        // Deletions from the outbox block, so published events stay there.
        let block_deletes = "CREATE FUNCTION block_deletes() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;
            CREATE TRIGGER block_deletes BEFORE DELETE ON outbox FOR EACH STATEMENT EXECUTE FUNCTION block_deletes()";
        sql::execute(&database, block_deletes).await.unwrap();
        let acknowledged = Acknowledged::default();
        register(&system.patient_client(), &acknowledged).await;
        system.until_summary(TIMEOUT, |summary| summary["created"] == 1).await.unwrap();
        system.patients[0].process().kill().await;
        assert_eq!(
            sql::number(&database, "SELECT count(*) FROM outbox").await.unwrap(),
            1,
            "it was killed before the deletion"
        );
        sql::execute(&database, "DROP TRIGGER block_deletes ON outbox").await.unwrap();
        system.restart(patients).await.unwrap();

        let report = audit(&system, &acknowledged).await;
        assert!(report.events == 1 && report.duplicates > 0, "{report}");
        let repeated = metric(&system.analytics, "events_duplicate_total").await.unwrap();
        assert_eq!(repeated, report.duplicates as f64);
    });
}
