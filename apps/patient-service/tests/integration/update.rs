//! `PUT /patients/{id}`.

use serde_json::json;
use surf::http::Method;
use testbed::http::Response;

use crate::harness::{at_once, path, patient, with_service};

#[test]
fn success() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let mut changed = patient("Jane Smith");
        changed.as_object_mut().unwrap().remove("registeredDate");
        let response = service.client.put(&path(&jane), &changed).await.unwrap();
        assert_eq!((response.status, response.header("etag")), (200, Some("\"2\"")));
        let body = response.json();
        assert_eq!((&body["id"], &body["name"]), (&jane["id"], &json!("Jane Smith")));
        assert_eq!(body["registeredDate"], "2024-02-29", "unchanged unless given");
        assert_eq!(service.get(&path(&jane)).await.json(), body);
        assert_eq!(service.number("SELECT count(*) FROM outbox WHERE event_type = 'PATIENT_UPDATED'").await, 1);
    });
}

#[test]
fn the_version_must_match_if_the_client_says_so() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        for (tags, status) in
            [("\"2\"", 412), ("W/\"1\"", 412), ("\"other\"", 412), ("nonsense", 400), ("\"9\", \"1\"", 200), ("*", 200)]
        {
            let headers = [("if-match", tags)];
            let response =
                service.client.send(Method::Put, &path(&jane), &headers, Some(&patient("Jane Smith"))).await.unwrap();
            assert_eq!(response.status, status, "{tags}");
        }
    });
}

#[test]
fn unmet_preconditions_change_nothing() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let unknown = "/patients/00000000-0000-7000-8000-000000000000".to_owned();
        for (headers, status) in [
            // Entity tags are strings: none of these is the patient's.
            (&[("if-match", "\"+1\"")][..], 412),
            (&[("if-match", "\"01\"")], 412),
            (&[("if-match", "\"1 \"")], 412),
            (&[("if-match", "\"18446744073709551617\"")], 412),
            // `If-None-Match: *` is not met by an existing patient.
            (&[("if-none-match", "*")], 412),
            (&[("if-match", "*"), ("if-none-match", "*")], 412),
            (&[("if-match", "\"1\""), ("if-none-match", "*")], 412),
            // Weakly for If-None-Match, strongly for If-Match.
            (&[("if-none-match", "\"1\"")], 412),
            (&[("if-none-match", "W/\"1\"")], 412),
            (&[("if-none-match", "\"7\", \"1\"")], 412),
            (&[("if-match", "\"1\""), ("if-none-match", "\"1\"")], 412),
            (&[("if-none-match", "1")], 400),
            (&[("if-match", "*, \"1\"")], 400),
            // There is no Last-Modified, so these are ignored.
            (&[("if-unmodified-since", "Mon, 01 Jan 1990 00:00:00 GMT"), ("if-none-match", "*")], 412),
        ] {
            for method in [Method::Put, Method::Delete] {
                let body = (method == Method::Put).then(|| patient("Jane Smith"));
                let response = service.client.send(method, &path(&jane), headers, body.as_ref()).await.unwrap();
                assert_eq!(response.status, status, "{method} {headers:?}: {}", response.text());
                // A patient that does not exist is 404, with or without them.
                if status == 412 {
                    let response = service.client.send(method, &unknown, headers, body.as_ref()).await.unwrap();
                    assert_eq!(response.status, 404, "{method} {headers:?}: {}", response.text());
                }
            }
        }
        assert_eq!(service.get(&path(&jane)).await.header("etag"), Some("\"1\""), "nothing was changed");
        let tags = [("if-match", "\"1\""), ("if-none-match", "\"2\", W/\"+1\"")];
        let met = service.client.send(Method::Put, &path(&jane), &tags, Some(&patient("Jane Smith"))).await.unwrap();
        assert_eq!((met.status, met.header("etag")), (200, Some("\"2\"")));
        // Bytes beyond ASCII are allowed in a tag, and no patient has one with them.
        let head = format!("DELETE {} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n", path(&jane));
        assert_eq!(service.raw(format!("{head}if-match: \"2é\"\r\n\r\n").as_bytes()).await, 412);
        // Several headers are one list.
        let lists = format!("{head}if-match: \"1\"\r\nif-match: \"2\"\r\nif-none-match: \"3\"\r\n\r\n");
        assert_eq!(service.raw(lists.as_bytes()).await, 204);
    });
}

#[test]
fn fifty_concurrent_changes_of_one_version_make_one() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let client = service.client.clone();
        let responses: Vec<Response> = at_once(50, |n| {
            let (client, path) = (client.clone(), path(&jane));
            async move {
                let headers = [("if-match", "\"1\"")];
                client.send(Method::Put, &path, &headers, Some(&patient(&format!("Jane {n}")))).await.unwrap()
            }
        })
        .await;
        assert_eq!(responses.iter().filter(|response| response.status == 200).count(), 1);
        assert_eq!(responses.iter().filter(|response| response.status == 412).count(), 49);
        assert_eq!(service.number("SELECT version FROM patients").await, 2);
        assert_eq!(service.number("SELECT count(*) FROM outbox").await, 2);
    });
}

#[test]
fn without_if_match_every_change_counts() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let client = service.client.clone();
        let responses: Vec<Response> = at_once(20, |n| {
            let (client, path) = (client.clone(), path(&jane));
            async move { client.put(&path, &patient(&format!("Jane {n}"))).await.unwrap() }
        })
        .await;
        assert!(responses.iter().all(|response| response.status == 200));
        assert_eq!(service.number("SELECT version FROM patients").await, 21);
    });
}

#[test]
fn errors() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        service.register("John Doe").await;
        let taken = service.client.put(&path(&jane), &patient("John Doe")).await.unwrap();
        assert_eq!(taken.status, 409);
        let invalid = service.client.put(&path(&jane), &json!({})).await.unwrap();
        assert_eq!(invalid.status, 400);
        let unknown = "/patients/00000000-0000-7000-8000-000000000000";
        assert_eq!(service.client.put(unknown, &patient("New One")).await.unwrap().status, 404);
        let headers = [("if-match", "\"1\"")];
        let response = service.client.send(Method::Put, unknown, &headers, Some(&patient("New One"))).await.unwrap();
        assert_eq!(response.status, 404);
        // The connections on which these failed are still usable.
        for n in 0..20 {
            assert_eq!(service.client.put(&path(&jane), &patient(&format!("Jane {n}"))).await.unwrap().status, 200);
        }
    });
}

/// Those that come together share a statement; each still has its own outcome, and one that fails or waits harms no other.
#[test]
fn of_many_that_come_at_once_each_has_its_own_outcome_and_they_share_commits() {
    with_service(|service| async move {
        const PATIENTS: usize = 60;
        const OF_JANE: usize = 20;
        let jane = service.register("Jane Doe").await;
        let held = service.register("Held Email").await;
        let mut patients = Vec::new();
        for n in 0..PATIENTS {
            patients.push(service.register(&format!("Patient {n}")).await);
        }
        let (client, patients) = (service.client.clone(), std::sync::Arc::new(patients));
        let (jane_path, held_email) = (path(&jane), held["email"].clone());
        let responses = at_once(PATIENTS + OF_JANE + 3, move |n| {
            let (client, patients, jane_path, held_email) =
                (client.clone(), patients.clone(), jane_path.clone(), held_email.clone());
            async move {
                let put = async |path: &str, headers: &[(&str, &str)], body| {
                    client.send(Method::Put, path, headers, Some(&body)).await.unwrap().status
                };
                let other = n.checked_sub(PATIENTS + OF_JANE);
                match other {
                    None if n < PATIENTS => {
                        put(&path(&patients[n]), &[("if-match", "\"1\"")], patient(&format!("Changed {n}"))).await
                    }
                    None => put(&jane_path, &[], patient("Jane Smith")).await,
                    Some(0) => put(&jane_path, &[("if-match", "\"99\"")], patient("Jane Smith")).await,
                    Some(1) => {
                        put("/patients/00000000-0000-7000-8000-000000000000", &[], patient("Nobody Smith")).await
                    }
                    Some(_) => {
                        let mut taken = patient("Jane Smith");
                        taken["email"] = held_email;
                        put(&jane_path, &[], taken).await
                    }
                }
            }
        })
        .await;
        let expected = [vec![200; PATIENTS + OF_JANE], vec![412, 404, 409]].concat();
        assert_eq!(responses, expected);
        let versions = service.number("SELECT version FROM patients WHERE name = 'Jane Smith'").await;
        assert_eq!(versions, 1 + OF_JANE as i64);
        let changed = "SELECT count(*) FROM patients WHERE name LIKE 'Changed %' AND version = 2";
        assert_eq!(service.number(changed).await, PATIENTS as i64);
        let events = "SELECT count(*) FROM outbox WHERE event_type = 'PATIENT_UPDATED'";
        assert_eq!(service.number(events).await, (PATIENTS + OF_JANE) as i64);
        let commits = "SELECT count(DISTINCT xmin::text) FROM outbox WHERE event_type = 'PATIENT_UPDATED'";
        let commits = service.number(commits).await;
        assert!(commits < (PATIENTS + OF_JANE) as i64, "{commits} commits");
    });
}

/// Another replica, or somebody by SQL, changes a patient between our read and our write.
#[test]
fn a_change_in_between_is_built_upon_and_not_lost() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let changing = {
            let database = service.database.clone();
            runtime::spawn(async move {
                for _ in 0..100 {
                    let change = async |connection: &mut postgres::PgConnection| {
                        let statement = "UPDATE patients SET version = version + 1 WHERE name LIKE 'Jane%'";
                        postgres::query(statement).execute(connection).await
                    };
                    database.run(change).await.unwrap();
                }
            })
        };
        let (client, jane_path) = (service.client.clone(), path(&jane));
        let responses = at_once(100, move |_| {
            let (client, jane_path) = (client.clone(), jane_path.clone());
            async move { client.put(&jane_path, &patient("Jane Smith")).await.unwrap() }
        })
        .await;
        changing.await;
        let mut versions: Vec<_> =
            responses.iter().map(|response| response.header("etag").map(str::to_owned)).collect();
        versions.sort();
        versions.dedup();
        assert!(responses.iter().all(|response| response.status == 200));
        assert_eq!(versions.len(), 100, "each made a version of its own");
        assert_eq!(service.number("SELECT version FROM patients").await, 201);
        assert_eq!(service.number("SELECT count(*) FROM outbox").await, 101);
    });
}
