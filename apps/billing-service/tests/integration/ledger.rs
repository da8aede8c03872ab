//! Charges, payments, refunds and what they add up to.

use codec::billing::TransactionType::{Charge, Payment, Refund};
use grpc::Code;
use uuid::Uuid;

use crate::harness::with_service;

#[test]
fn entries_add_up_by_currency() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        billing.create(patient, "Jane Doe").await.unwrap();
        billing.record(patient, "t-1", Charge, 10_000, "EUR").await.unwrap();
        billing.record(patient, "t-2", Payment, 4_000, "EUR").await.unwrap();
        billing.record(patient, "t-3", Refund, 500, "EUR").await.unwrap();
        billing.record(patient, "t-4", Charge, 7, "JPY").await.unwrap();
        assert_eq!(billing.balance(patient, "EUR").await, 6_500);
        assert_eq!(billing.balance(patient, "JPY").await, 7);
    });
}

#[test]
fn a_repeated_entry_is_made_once_and_another_one_is_refused() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        billing.create(patient, "Jane Doe").await.unwrap();
        let first = billing.record(patient, "t-1", Charge, 100, "EUR").await.unwrap();
        assert_eq!(billing.record(patient, "t-1", Charge, 100, "EUR").await.unwrap(), first);
        assert_eq!(billing.record(patient, "t-1", Charge, 101, "EUR").await, Err(Code::AlreadyExists));
        assert_eq!(billing.record(patient, "t-1", Payment, 100, "EUR").await, Err(Code::AlreadyExists));
        assert_eq!(billing.record(patient, "t-1", Charge, 100, "USD").await, Err(Code::AlreadyExists));
        assert_eq!(billing.balance(patient, "EUR").await, 100);

        let other = Uuid::now_v7();
        billing.create(other, "John Doe").await.unwrap();
        billing.record(other, "t-1", Charge, 5, "EUR").await.unwrap();
        assert_eq!(billing.balance(other, "EUR").await, 5);
    });
}

#[test]
fn a_closed_account_takes_no_charges_and_is_settled() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        billing.create(patient, "Jane Doe").await.unwrap();
        let charge = billing.record(patient, "t-1", Charge, 100, "EUR").await.unwrap();
        billing.close(patient).await.unwrap();
        assert_eq!(billing.record(patient, "t-2", Charge, 1, "EUR").await, Err(Code::FailedPrecondition));
        assert_eq!(billing.record(patient, "t-1", Charge, 100, "EUR").await.unwrap(), charge, "made before");
        billing.record(patient, "t-3", Payment, 100, "EUR").await.unwrap();
        assert_eq!(billing.balance(patient, "EUR").await, 0);
    });
}

#[test]
fn wrong_entries_are_told() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        assert_eq!(billing.record(patient, "t-1", Charge, 1, "EUR").await, Err(Code::NotFound));
        billing.create(patient, "Jane Doe").await.unwrap();
        for (transaction_id, amount, currency) in
            [("", 1, "EUR"), ("t", 0, "EUR"), ("t", -1, "EUR"), ("t", i64::MAX, "EUR"), ("t", 1, "euro"), ("t", 1, "")]
        {
            let result = billing.record(patient, transaction_id, Charge, amount, currency).await;
            assert_eq!(result, Err(Code::InvalidArgument), "{transaction_id:?} {amount} {currency:?}");
        }
        let kind = codec::billing::TransactionType::Unspecified;
        assert_eq!(billing.record(patient, "t", kind, 1, "EUR").await, Err(Code::InvalidArgument));
    });
}

#[test]
fn concurrent_entries_and_their_repetitions_add_up() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        billing.create(patient, "Jane Doe").await.unwrap();
        // 25 charges of 10, 25 payments of 4, each sent three times at once.
        let calls: Vec<_> = (0..150)
            .map(|n| {
                let (billing, n) = (billing.clone(), n % 50);
                let (kind, amount) = if n % 2 == 0 { (Charge, 10) } else { (Payment, 4) };
                runtime::spawn(async move {
                    billing.record(patient, &format!("t-{n}"), kind, amount, "EUR").await.unwrap();
                })
            })
            .collect();
        for call in calls {
            call.await;
        }
        assert_eq!(billing.balance(patient, "EUR").await, 25 * 10 - 25 * 4);
        assert_eq!(billing.list(patient, 0, 0).await.unwrap().len(), 50);
    });
}

#[test]
fn a_charge_and_a_close_at_once_leave_the_books_right() {
    with_service(|billing| async move {
        for _ in 0..20 {
            let patient = Uuid::now_v7();
            billing.create(patient, "Jane Doe").await.unwrap();
            let (one, other) = (billing.clone(), billing.clone());
            let charge = runtime::spawn(async move { one.record(patient, "t-1", Charge, 100, "EUR").await });
            let close = runtime::spawn(async move { other.close(patient).await.unwrap() });
            close.await;
            let charged = match charge.await {
                Ok(_) => 100,
                Err(code) => {
                    assert_eq!(code, Code::FailedPrecondition);
                    0
                }
            };
            assert_eq!(billing.balance(patient, "EUR").await, charged);
        }
    });
}

#[test]
fn a_long_ledger_is_listed_whole_and_in_parts() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        billing.create(patient, "Jane Doe").await.unwrap();
        for n in 0..1_203 {
            billing.record(patient, &format!("t-{n}"), Charge, 1, "EUR").await.unwrap();
        }
        let all = billing.list(patient, 0, 0).await.unwrap();
        assert_eq!(all.len(), 1_203);
        assert!(all.is_sorted_by(|a, b| a.position < b.position));
        assert!(all.iter().enumerate().all(|(n, entry)| entry.transaction_id == format!("t-{n}")));
        assert_eq!(billing.list(patient, all[700].position, 5).await.unwrap(), all[701..706]);
        assert_eq!(billing.list(patient, all[1_202].position, 0).await.unwrap(), []);
    });
}
