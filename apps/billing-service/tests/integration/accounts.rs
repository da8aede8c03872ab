//! Opening and closing accounts.

use grpc::Code;
use testbed::{sql, until};
use uuid::Uuid;

use crate::harness::{with_deadline, with_service};

#[test]
fn an_account_is_opened_once() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        let first = billing.create(patient, "Jane Doe").await.unwrap();
        assert_eq!(first.status, "ACTIVE");
        assert!(first.account_id.parse::<Uuid>().is_ok());
        assert_eq!(billing.create(patient, "Jane Smith").await.unwrap(), first);
        let found = billing.get(patient).await.unwrap();
        assert_eq!((found.account_id, found.status, found.balances), (first.account_id, first.status, vec![]));
    });
}

#[test]
fn fifty_concurrent_calls_open_one_account() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        let calls: Vec<_> = (0..50)
            .map(|_| {
                let billing = billing.clone();
                runtime::spawn(async move { billing.create(patient, "Jane Doe").await.unwrap() })
            })
            .collect();
        let mut accounts = Vec::new();
        for call in calls {
            accounts.push(call.await.account_id);
        }
        accounts.dedup();
        assert_eq!(accounts.len(), 1);
    });
}

#[test]
fn invalid_requests_are_rejected() {
    with_service(|billing| async move {
        assert_eq!(billing.create("42", "Jane").await, Err(Code::InvalidArgument));
        assert_eq!(billing.create(Uuid::now_v7(), "").await, Err(Code::InvalidArgument));
        assert_eq!(billing.create(Uuid::now_v7(), "Ja\0ne").await, Err(Code::InvalidArgument));
        assert_eq!(billing.get("").await, Err(Code::InvalidArgument));
        assert_eq!(billing.close("x").await, Err(Code::InvalidArgument));
    });
}

#[test]
fn an_unknown_account_is_not_found() {
    with_service(|billing| async move {
        assert_eq!(billing.get(Uuid::now_v7()).await, Err(Code::NotFound));
        assert_eq!(billing.close(Uuid::now_v7()).await, Err(Code::NotFound));
        assert_eq!(billing.list(Uuid::now_v7(), 0, 0).await, Err(Code::NotFound));
    });
}

#[test]
fn a_closed_account_stays_closed() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        let opened = billing.create(patient, "Jane Doe").await.unwrap();
        for _ in 0..2 {
            let closed = billing.close(patient).await.unwrap();
            assert_eq!((closed.account_id, closed.status.as_str()), (opened.account_id.clone(), "CLOSED"));
        }
        assert_eq!(billing.create(patient, "Jane Doe").await.unwrap().status, "CLOSED");
    });
}

#[test]
fn accounts_that_a_transaction_holds_block_no_other_account() {
    // Longer than a call may wait for the calls before it.
    with_deadline("4s", |billing| async move {
        // As many as there are statements of a kind at a time.
        let held = ["00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002"];
        let mut session = sql::Session::open(&billing.database).await.unwrap();
        let opening = "BEGIN; INSERT INTO accounts (patient_id, id, name, email)
            SELECT ('00000000-0000-7000-8000-00000000000' || n)::uuid, gen_random_uuid(), 'x', 'x' FROM generate_series(1, 2) n";
        session.execute(opening).await.unwrap();
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        let until_waiting =
            async || until("it waits", async || sql::number(&billing.database, waiting).await.unwrap() > 0).await;
        let call = |held: &'static str, closes: bool| {
            let billing = billing.clone();
            runtime::spawn(async move {
                if closes { billing.close(held).await.map(drop) } else { billing.create(held, "Jane").await.map(drop) }
            })
        };
        let other = Uuid::now_v7();
        let mut held_calls = Vec::new();
        for held in held {
            held_calls.push(call(held, false));
            until_waiting().await;
        }
        billing.create(other, "Jane Doe").await.unwrap();
        session.execute("COMMIT").await.unwrap();
        for call in held_calls {
            call.await.unwrap();
        }
        session.execute("BEGIN; SELECT FROM accounts WHERE name = 'x' FOR UPDATE").await.unwrap();
        let mut held_calls = Vec::new();
        for held in held {
            held_calls.push(call(held, true));
            until_waiting().await;
        }
        billing.close(other).await.unwrap();
        session.execute("COMMIT").await.unwrap();
        for call in held_calls {
            call.await.unwrap();
        }
    });
}
