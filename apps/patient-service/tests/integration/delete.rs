//! `DELETE /patients/{id}`.

use surf::http::Method;

use testbed::until;

use crate::{
    harness::{at_once, id, path, patient, with_service},
    test_billing::Behaviour,
};

#[test]
fn success() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let delete = format!("DELETE {} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", path(&jane));
        let response = service.raw_answer(delete.as_bytes()).await;
        assert!(response.starts_with("HTTP/1.1 204 ") && response.ends_with("\r\n\r\n"), "{response}");
        assert!(!response.contains("\r\ncontent-type") && !response.contains("content-length"), "{response}");
        assert_eq!(service.get(&path(&jane)).await.status, 404);
        assert_eq!(service.client.delete(&path(&jane)).await.unwrap().status, 404);
        until("the account is closed", async || service.billing.status(&id(&jane)).as_deref() == Some("CLOSED")).await;
        until("the task is done", async || service.number("SELECT count(*) FROM billing_tasks").await == 0).await;
        assert_eq!(service.number("SELECT count(*) FROM outbox WHERE event_type = 'PATIENT_DELETED'").await, 1);
        assert_eq!(service.post("/patients", &patient("Jane Doe")).await.status, 201, "the email is free again");
    });
}

#[test]
fn the_version_must_match_if_the_client_says_so() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        for (tags, status) in [("\"2\"", 412), ("\"1\"", 204)] {
            let headers = [("if-match", tags)];
            let response = service.client.send(Method::Delete, &path(&jane), &headers, None).await.unwrap();
            assert_eq!(response.status, status, "{tags}");
        }
    });
}

#[test]
fn an_account_that_was_never_opened_ends_closed() {
    with_service(|service| async move {
        service.billing.set(Behaviour::Unavailable);
        let jane = service.register("Jane Doe").await;
        assert_eq!(service.client.delete(&path(&jane)).await.unwrap().status, 204);
        service.billing.set(Behaviour::Normal);
        until("the account is closed", async || service.billing.status(&id(&jane)).as_deref() == Some("CLOSED")).await;
        until("the task is done", async || service.number("SELECT count(*) FROM billing_tasks").await == 0).await;
    });
}

#[test]
fn of_many_that_come_at_once_each_has_its_own_outcome_and_they_share_commits() {
    with_service(|service| async move {
        const PATIENTS: usize = 60;
        let mut patients = Vec::new();
        for n in 0..PATIENTS {
            patients.push(path(&service.register(&format!("Patient {n}")).await));
        }
        let (client, deleted) = (service.client.clone(), std::sync::Arc::new(patients.clone()));
        // Each twice, and the first again for a version that it never had.
        let responses = at_once(PATIENTS * 2 + 1, move |n| {
            let (client, patients) = (client.clone(), deleted.clone());
            async move {
                let headers = if n == PATIENTS * 2 { vec![("if-match", "\"99\"")] } else { Vec::new() };
                let path = &patients[n % PATIENTS];
                client.send(Method::Delete, path, &headers, None).await.unwrap().status
            }
        })
        .await;
        for n in 0..PATIENTS {
            let mut both = [responses[n], responses[n + PATIENTS]];
            both.sort_unstable();
            assert_eq!(both, [204, 404], "patient {n}");
        }
        assert!(matches!(responses[PATIENTS * 2], 404 | 412), "{}", responses[PATIENTS * 2]);
        assert_eq!(service.number("SELECT count(*) FROM patients").await, 0);
        let events = "SELECT count(*) FROM outbox WHERE event_type = 'PATIENT_DELETED'";
        assert_eq!(service.number(events).await, PATIENTS as i64);
        let commits = "SELECT count(DISTINCT xmin::text) FROM outbox WHERE event_type = 'PATIENT_DELETED'";
        let commits = service.number(commits).await;
        assert!(commits < PATIENTS as i64, "{commits} commits");
        until("the accounts are closed", async || service.number("SELECT count(*) FROM billing_tasks").await == 0)
            .await;
        for path in patients {
            let id = path.rsplit('/').next().unwrap_or_default();
            assert_eq!(service.billing.status(id).as_deref(), Some("CLOSED"));
        }
    });
}
