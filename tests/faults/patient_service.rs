//! patient-service dies.

use testbed::{audit::Acknowledged, broker::Kind, sql, writers::Writers};

use crate::support::{TIMEOUT, any_instant, audit, metric, patients, register, stop_and_audit, system};

testbed::on_each_broker!(
    killed_at_any_instant_and_while_it_recovers_it_loses_nothing,
    killed_between_acknowledgement_and_deletion_it_repeats_an_event_that_counts_once,
);

fn killed_at_any_instant_and_while_it_recovers_it_loses_nothing(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 1, &[]).await;
        let writers = Writers::start(&[system.patients[0].address()], 8);
        for round in 0..8 {
            writers.until(writers.acknowledged().count() + 15, TIMEOUT).await.unwrap();
            any_instant(100).await;
            system.patients[0].process().kill().await;
            if round % 2 == 1 {
                system.revive(patients).unwrap();
                any_instant(150).await;
                system.patients[0].process().kill().await;
            }
            system.restart(patients).await.unwrap();
        }
        let (written, report) = stop_and_audit(writers, &system).await;
        assert!(written.unanswered > 0 && report.acknowledged > 100, "{written}\n{report}");
    });
}

fn killed_between_acknowledgement_and_deletion_it_repeats_an_event_that_counts_once(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 1, &[]).await;
        let database = system.ground().patients_database.clone();
        // Deletions from the outbox take for ever: what is published stays there.
        let hold = "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;
            CREATE TRIGGER hold BEFORE DELETE ON outbox FOR EACH STATEMENT EXECUTE FUNCTION hold()";
        sql::execute(&database, hold).await.unwrap();
        let acknowledged = Acknowledged::default();
        register(&system.patient_client(), &acknowledged).await;
        system.until_summary(TIMEOUT, |summary| summary["created"] == 1).await.unwrap();
        system.patients[0].process().kill().await;
        assert_eq!(sql::number(&database, "SELECT count(*) FROM outbox").await.unwrap(), 1, "it was killed before");
        sql::execute(&database, "DROP TRIGGER hold ON outbox").await.unwrap();
        system.restart(patients).await.unwrap();

        let report = audit(&system, &acknowledged).await;
        assert!(report.events == 1 && report.duplicates > 0, "{report}");
        let repeated = metric(&system.analytics, "events_duplicate_total").await.unwrap();
        assert_eq!(repeated, report.duplicates as f64);
    });
}
