//! Billing tasks: retries, dead letters, and steps of the clock.

use patient_service::billing_tasks::BillingTasks;

use testbed::until;

use crate::{
    harness::{execute, id, path, with_service},
    test_billing::Behaviour,
};

/// PostgreSQL's clock was set back or forward after a reconciler had claimed them and died.
#[test]
fn tasks_are_claimed_whatever_the_clock_was() {
    with_service(|service| async move {
        service.billing.set(Behaviour::Unavailable);
        let mut patients = Vec::new();
        for name in ["Jane Doe", "John Doe", "Jim Doe", "Joan Doe"] {
            patients.push(id(&service.register(name).await));
        }
        // Due later than any task is postponed; the last one is within that time.
        let ahead = "UPDATE billing_tasks t SET next_attempt_at = CASE p.name
                WHEN 'Jane Doe' THEN now() + interval '59 minutes'
                WHEN 'John Doe' THEN 'infinity'
                WHEN 'Jim Doe' THEN now() - interval '3 days'
                ELSE now() + interval '25 seconds'
            END FROM patients p WHERE p.id = t.patient_id";
        execute(&service, ahead).await;
        service.billing.set(Behaviour::Normal);
        let is_open = async || patients[..3].iter().all(|id| service.billing.status(id).is_some());
        until("those that are due are done", is_open).await;
        assert_eq!(service.billing.status(&patients[3]), None, "it is postponed");
        let left = "SELECT count(*) FROM billing_tasks";
        until("they are forgotten", async || service.number(left).await == 1).await;
        execute(&service, "UPDATE billing_tasks SET next_attempt_at = now()").await;
        until("the last one is done", async || service.number(left).await == 0).await;
    });
}

/// An original's billing service only opens accounts.
#[test]
fn a_task_that_can_never_succeed_is_dead_lettered() {
    with_service(|service| async move {
        service.billing.set(Behaviour::Original);
        let jane = service.register("Jane Doe").await;
        assert_eq!(jane["billing"]["status"], "ACTIVE");
        assert_eq!(service.client.delete(&path(&jane)).await.unwrap().status, 204);
        let dead = "SELECT count(*) FROM billing_task_dead_letters
            WHERE action = 'CLOSE' AND attempts = 5 AND error LIKE '%unimplemented%' AND name = 'Jane Doe'";
        until("it is a dead letter", async || service.number(dead).await == 1).await;
        assert_eq!(service.number("SELECT count(*) FROM billing_tasks").await, 0, "and it is tried no more");
        let is_reported = async || service.get("/metrics").await.text().contains("\nbilling_task_dead_letters 1\n");
        until("it is reported", is_reported).await;
        // A peer without the method is not unavailable.
        let readiness = service.get("/actuator/health/readiness").await.json();
        assert_eq!(readiness["components"]["billing"]["status"], "UP", "{readiness}");
        assert_eq!(service.register("John Doe").await["billing"]["status"], "ACTIVE");

        // Once billing can do it.
        service.billing.set(Behaviour::Normal);
        BillingTasks::new(service.database.clone()).resend(&[id(&jane).parse().unwrap()]).await.unwrap();
        let is_closed = async || service.billing.status(&id(&jane)).as_deref() == Some("CLOSED");
        until("the account is closed", is_closed).await;
    });
}

#[test]
fn an_account_is_opened_however_often_a_proxy_has_no_route_to_billing() {
    with_service(|service| async move {
        service.billing.set(Behaviour::Unrouted);
        let jane = service.register("Jane Doe").await;
        assert_eq!(jane["billing"]["status"], "PENDING");
        let is_rejected_often = async || {
            execute(&service, "UPDATE billing_tasks SET next_attempt_at = now()").await;
            service.number("SELECT coalesce(max(rejections), 9)::bigint FROM billing_tasks").await > 6
        };
        until("billing has rejected it", is_rejected_often).await;
        assert_eq!(service.number("SELECT count(*) FROM billing_tasks WHERE action = 'OPEN'").await, 1);
        service.billing.set(Behaviour::Normal);
        execute(&service, "UPDATE billing_tasks SET next_attempt_at = now()").await;
        let is_open = async || service.billing.status(&id(&jane)).as_deref() == Some("ACTIVE");
        until("the account is open", is_open).await;
    });
}

#[test]
fn a_call_whose_answer_was_lost_is_done_if_billing_rejects_to_make_it_twice() {
    with_service(|service| async move {
        let has_tasks = "SELECT count(*) FROM billing_tasks";
        let are_done = async || {
            execute(&service, "UPDATE billing_tasks SET next_attempt_at = now()").await;
            service.number(has_tasks).await == 0
        };
        let dead_letters = "SELECT count(*) FROM billing_task_dead_letters";
        service.billing.set(Behaviour::HangsAfterExecution);
        let jane = service.register("Jane Doe").await;
        assert_eq!(jane["billing"]["status"], "PENDING");
        service.billing.set(Behaviour::Strict);
        until("the account is open", are_done).await;
        assert_eq!(service.number(dead_letters).await, 0);

        service.billing.set(Behaviour::HangsAfterExecution);
        service.client.delete(&path(&jane)).await.unwrap();
        let is_closed = async || service.billing.status(&id(&jane)).as_deref() == Some("CLOSED");
        until("the account is closed", is_closed).await;
        service.billing.set(Behaviour::Strict);
        until("that is known", are_done).await;
        assert_eq!(service.number(dead_letters).await, 0);

        // It may reject to close one that is open.
        let john = service.register("John Doe").await;
        let charge = serde_json::json!({"transactionId": "t-1", "type": "CHARGE", "amount": 1, "currency": "EUR"});
        assert_eq!(service.post(&format!("{}/billing/transactions", path(&john)), &charge).await.status, 201);
        service.client.delete(&path(&john)).await.unwrap();
        until("it is tried no more", are_done).await;
        assert_eq!(service.number(dead_letters).await, 1);
    });
}

#[test]
fn a_deletion_supersedes_a_task_that_billing_rejected() {
    with_service(|service| async move {
        service.billing.set(Behaviour::Unavailable);
        let jane = service.register("Jane Doe").await;
        // As if billing had rejected to open it.
        let reject = "WITH rejected AS (DELETE FROM billing_tasks RETURNING patient_id, action, traceparent)
            INSERT INTO billing_task_dead_letters (patient_id, action, traceparent, attempts, error)
            SELECT *, 5, 'simulated by the test' FROM rejected";
        execute(&service, reject).await;
        service.client.delete(&path(&jane)).await.unwrap();
        assert_eq!(service.number("SELECT count(*) FROM billing_task_dead_letters").await, 0);
        service.billing.set(Behaviour::Normal);
        let is_closed = async || service.billing.status(&id(&jane)).as_deref() == Some("CLOSED");
        until("its account is closed", is_closed).await;
    });
}
