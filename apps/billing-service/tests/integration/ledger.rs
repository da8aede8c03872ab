//! Charges, payments, refunds and balances.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use billing_api::TransactionType::{Charge, Payment, Refund};
use grpc::Code;
use testbed::{sql, until};
use uuid::Uuid;

use crate::harness::{CHARGE_5_000, CHARGE_30_000, Harness, LedgerReader, with_service};

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
fn a_repeated_entry_is_made_once_and_another_with_its_id_is_rejected() {
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

/// Sets the balance of every account, with one entry.
async fn set_balance(billing: &Harness, balance: i64) {
    let kind = if balance < 0 { "PAYMENT" } else { "CHARGE" };
    let statement = format!(
        "WITH entry AS (
            INSERT INTO transactions (patient_id, transaction_id, type, amount, currency)
            SELECT patient_id, 'set', '{kind}', {amount}, 'EUR' FROM accounts
        )
        INSERT INTO balances (patient_id, currency, amount) SELECT patient_id, 'EUR', {balance} FROM accounts",
        amount = balance.abs()
    );
    sql::execute(&billing.database, statement.leak()).await.unwrap();
}

#[test]
fn an_entry_that_would_take_the_balance_out_of_its_range_is_rejected_and_nothing_is_written() {
    for (limit, further, back) in [(i64::MAX, Charge, Payment), (i64::MIN, Payment, Charge)] {
        with_service(|billing| async move {
            let patient = Uuid::now_v7();
            billing.create(patient, "Jane Doe").await.unwrap();
            let near = if limit > 0 { limit - 5 } else { limit + 5 };
            set_balance(&billing, near).await;
            let entries = billing.list(patient, 0, 0).await.unwrap();
            assert_eq!(billing.record(patient, "t-1", further, 6, "EUR").await, Err(Code::OutOfRange));
            assert_eq!(billing.record(patient, "t-1", further, 6, "EUR").await, Err(Code::OutOfRange), "again");
            assert_eq!(billing.list(patient, 0, 0).await.unwrap(), entries, "nothing was entered");
            assert_eq!(billing.balance(patient, "EUR").await, near);

            billing.record(patient, "t-2", further, 6, "USD").await.unwrap();
            let last = billing.record(patient, "t-1", further, 5, "EUR").await.unwrap();
            assert_eq!(billing.balance(patient, "EUR").await, limit, "up to the limit, with the id that was rejected");
            assert_eq!(billing.record(patient, "t-1", further, 5, "EUR").await.unwrap(), last, "a repetition");
            assert_eq!(billing.record(patient, "t-1", further, 6, "EUR").await, Err(Code::AlreadyExists));
            billing.record(patient, "t-3", back, 1, "EUR").await.unwrap();
            billing.record(patient, "t-4", further, 1, "EUR").await.unwrap();
            assert_eq!(billing.balance(patient, "EUR").await, limit);
        });
    }
}

#[test]
fn invalid_entries_are_rejected() {
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
        let kind = billing_api::TransactionType::Unspecified;
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
fn with_serializable_transactions_concurrent_calls_all_succeed() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let name = url.rsplit_once('/').unwrap().1.split_once('?').unwrap().0;
        let setting = format!("ALTER DATABASE {name} SET default_transaction_isolation = serializable");
        sql::execute(&url, Box::leak(setting.into_boxed_str())).await.unwrap();
        // Two replicas, so that no lock within one process serializes the charges.
        let replicas = [Arc::new(Harness::start(&url).await), Arc::new(Harness::start(&url).await)];
        for replica in &replicas {
            replica.until_serving().await;
        }
        let patients: Vec<_> = (0..4).map(|_| Uuid::now_v7()).collect();
        let calls: Vec<_> = (0..52)
            .map(|n| {
                let (billing, patient) = (replicas[n % 2].clone(), patients[n / 2 % 4]);
                runtime::spawn(async move {
                    billing.create(patient, "Jane Doe").await.unwrap();
                    billing.record(patient, &format!("t-{n}"), Charge, 10, "EUR").await.unwrap();
                })
            })
            .collect();
        for call in calls {
            call.await;
        }
        let mut charged = 0;
        for patient in patients {
            charged += replicas[0].balance(patient, "EUR").await;
        }
        assert_eq!(charged, 52 * 10);
        for replica in replicas {
            Arc::into_inner(replica).unwrap().stop().await;
        }
    });
}

#[test]
fn a_locked_account_is_no_outage() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        billing.create(patient, "Jane Doe").await.unwrap();
        let mut session = sql::Session::open(&billing.database).await.unwrap();
        session.execute("BEGIN; SELECT 1 FROM accounts FOR UPDATE").await.unwrap();
        let charge = |n| {
            let billing = billing.clone();
            runtime::spawn(async move { billing.record(patient, &format!("t-{n}"), Charge, 10, "EUR").await })
        };
        // The first waits for the row, and the others for the first.
        let charges: Vec<_> = (0..4).map(charge).collect();
        assert_eq!(billing.close(patient).await.unwrap_err(), Code::Aborted);
        for charge in charges {
            assert_eq!(charge.await.unwrap_err(), Code::Aborted, "not a status that callers count as an outage");
        }
        session.execute("ROLLBACK").await.unwrap();
        billing.record(patient, "t-1", Charge, 10, "EUR").await.unwrap();
    });
}

#[test]
fn a_concurrent_charge_and_close_keep_the_balance_consistent() {
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
fn positions_go_on_when_their_sequence_is_behind() {
    with_service(|billing| async move {
        let [jane, john] = [Uuid::now_v7(), Uuid::now_v7()];
        for patient in [jane, john] {
            billing.create(patient, "Jane Doe").await.unwrap();
            for n in 0..3 {
                billing.record(patient, &format!("t-{n}"), Charge, 10, "EUR").await.unwrap();
            }
        }
        // As after a switchover by logical replication, which copies no sequences.
        sql::execute(&billing.database, "SELECT setval('transactions_position_seq', 1, false)").await.unwrap();
        for patient in [jane, john] {
            let seen = billing.list(patient, 0, 0).await.unwrap();
            let last = seen.last().unwrap().position;
            assert_eq!(billing.record(patient, "t-2", Charge, 10, "EUR").await.unwrap(), seen[2], "entered once");
            let entered = billing.record(patient, "t-3", Charge, 10, "EUR").await.unwrap();
            assert!(entered.position > last, "{} after {last}", entered.position);
            assert_eq!(billing.list(patient, last, 0).await.unwrap(), [entered]);
            assert_eq!(billing.balance(patient, "EUR").await, 40);
        }
    });
}

/// As right after a switchover, when several replicas find the sequence behind the positions of different accounts.
#[test]
fn the_sequence_of_positions_is_not_moved_back_behind_another_replica() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        billing.create(patient, "Jane Doe").await.unwrap();
        for n in 0..3 {
            billing.record(patient, &format!("t-{n}"), Charge, 10, "EUR").await.unwrap();
        }
        sql::execute(&billing.database, "SELECT setval('transactions_position_seq', 1, false)").await.unwrap();
        let mut other = sql::Session::open(&billing.database).await.unwrap();
        other.execute("SELECT pg_advisory_lock('transactions_position_seq'::regclass::oid::bigint)").await.unwrap();
        let one = billing.clone();
        let recording = runtime::spawn(async move {
            // It may be late.
            loop {
                if let Ok(entered) = one.record(patient, "t-3", Charge, 10, "EUR").await {
                    break entered;
                }
            }
        });
        until("it waits for the other one", async || {
            recording.is_finished() || sql::number(&billing.database, WAITING).await.unwrap() > 0
        })
        .await;
        other.execute("SELECT setval('transactions_position_seq', 5000)").await.unwrap();
        drop(other);
        let entered = recording.await;
        assert!(entered.position > 5000, "{}", entered.position);
    });
}

const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()";

#[test]
fn a_long_ledger_is_listed_completely_and_in_parts() {
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

/// Delays the transaction of the entry `slow` after it has taken its position, before the commit.
const SLOW: &str = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.transaction_id = 'slow' THEN PERFORM pg_sleep(0.3); END IF; RETURN NULL; END $$;
    CREATE TRIGGER slow AFTER INSERT ON transactions FOR EACH ROW EXECUTE FUNCTION slow()";
const SLEEPING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";

/// Waits until the slow entry has its position.
async fn until_slow_has_its_position(database: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    while sql::number(database, SLEEPING).await.unwrap() == 0 {
        assert!(Instant::now() < end, "the slow entry is not made");
    }
}

#[test]
fn a_client_that_follows_a_ledger_skips_no_entry_of_concurrent_transactions() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        billing.create(patient, "Jane Doe").await.unwrap();
        sql::execute(&billing.database, SLOW).await.unwrap();
        // Two replicas, because a lock within one process would hide a missing row lock.
        let other = Harness::start(&billing.database).await;
        other.until_serving().await;

        let one = billing.clone();
        let slow = runtime::spawn(async move { one.record(patient, "slow", Charge, 1, "EUR").await.unwrap() });
        until_slow_has_its_position(&billing.database).await;
        let fast = async {
            // In another currency, so that the two share no balance.
            other.record(patient, "fast", Charge, 1, "USD").await.unwrap();
        };
        let mut followed = Vec::new();
        let follow = async {
            let end = Instant::now() + Duration::from_secs(10);
            while followed.len() < 2 && Instant::now() < end {
                let after = followed.last().map_or(0, |entry: &billing_api::Transaction| entry.position);
                followed.extend(billing.list(patient, after, 0).await.unwrap());
            }
        };
        smol::future::zip(fast, follow).await;
        slow.await;
        let ids: Vec<_> = followed.iter().map(|entry| &*entry.transaction_id).collect();
        assert_eq!(ids, ["slow", "fast"], "a position is passed only when all before it are there");
        other.stop().await;
    });
}

#[test]
fn entries_of_one_account_block_no_other_account() {
    with_service(|billing| async move {
        // Two accounts may share a lock within the service, by the last byte of the patient's id.
        let busy = Uuid::now_v7();
        let quiet = std::iter::repeat_with(Uuid::now_v7).find(|id| id.as_bytes()[15] != busy.as_bytes()[15]).unwrap();
        for patient in [busy, quiet] {
            billing.create(patient, "Jane Doe").await.unwrap();
        }
        sql::execute(&billing.database, SLOW).await.unwrap();
        let one = billing.clone();
        let slow = runtime::spawn(async move { one.record(busy, "slow", Charge, 1, "EUR").await });
        until_slow_has_its_position(&billing.database).await;
        // More than connections wait for the account's lock.
        let waiting: Vec<_> = (0..20)
            .map(|n| {
                let billing = billing.clone();
                runtime::spawn(async move { billing.record(busy, &format!("w-{n}"), Charge, 1, "EUR").await })
            })
            .collect();
        let started = Instant::now();
        billing.record(quiet, "t-1", Charge, 1, "EUR").await.unwrap();
        assert!(!slow.is_finished(), "the other account waited: {:?}", started.elapsed());
        slow.await.unwrap();
        for entry in waiting {
            entry.await.unwrap();
        }
        assert_eq!(billing.balance(busy, "EUR").await, 21);
    });
}

#[test]
fn a_client_that_pauses_gets_the_whole_ledger() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        billing.create(patient, "Jane Doe").await.unwrap();
        sql::execute(&billing.database, CHARGE_30_000).await.unwrap();
        let mut reader = LedgerReader::open(billing.grpc, patient, 65_535).await;
        reader.begin().await;
        // Longer than the deadline of other calls.
        smol::Timer::after(Duration::from_secs(12)).await;
        assert_eq!((reader.read_all().await, reader.entries), (Some(Code::Ok), 30_000));
        for limit in [0, 30_001, u32::MAX] {
            assert_eq!(billing.list(patient, 0, limit).await.map(|all| all.len()), Ok(30_000), "{limit}");
        }
        assert_eq!(billing.list(patient, 0, 201).await.map(|all| all.len()), Ok(201));
        assert_eq!(billing.list(patient, i64::MAX, 0).await.map(|all| all.len()), Ok(0));
    });
}

#[test]
fn clients_that_pause_hold_no_database_connection() {
    with_service(|billing| async move {
        let patient = Uuid::now_v7();
        billing.create(patient, "Jane Doe").await.unwrap();
        sql::execute(&billing.database, CHARGE_5_000).await.unwrap();
        // Many more than connections.
        let mut readers = Vec::new();
        for _ in 0..60 {
            let mut reader = LedgerReader::open(billing.grpc, patient, 1_000).await;
            reader.begin().await;
            readers.push(reader);
        }
        assert_eq!(billing.list(patient, 0, 0).await.map(|all| all.len()), Ok(5_000));
        for mut reader in readers {
            assert_eq!((reader.read_all().await, reader.entries), (Some(Code::Ok), 5_000));
        }
    });
}
