//! Opening and closing accounts.

use grpc::Code;
use uuid::Uuid;

use crate::harness::with_service;

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
