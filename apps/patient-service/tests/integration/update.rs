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
        let answer = service.client.put(&path(&jane), &changed).await.unwrap();
        assert_eq!((answer.status, answer.header("etag")), (200, Some("\"2\"")));
        let body = answer.json();
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
            let answer =
                service.client.send(Method::Put, &path(&jane), &headers, Some(&patient("Jane Smith"))).await.unwrap();
            assert_eq!(answer.status, status, "{tags}");
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
            // `*` is met by what there is, and forbids to overwrite it.
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
            // Its time of change is not told, so that these are ignored.
            (&[("if-unmodified-since", "Mon, 01 Jan 1990 00:00:00 GMT"), ("if-none-match", "*")], 412),
        ] {
            for method in [Method::Put, Method::Delete] {
                let body = (method == Method::Put).then(|| patient("Jane Smith"));
                let answer = service.client.send(method, &path(&jane), headers, body.as_ref()).await.unwrap();
                assert_eq!(answer.status, status, "{method} {headers:?}: {}", answer.text());
                // Without them it would be 404, which they do not change.
                if status == 412 {
                    let answer = service.client.send(method, &unknown, headers, body.as_ref()).await.unwrap();
                    assert_eq!(answer.status, 404, "{method} {headers:?}: {}", answer.text());
                }
            }
        }
        assert_eq!(service.get(&path(&jane)).await.header("etag"), Some("\"1\""), "nothing was changed");
        let tags = [("if-match", "\"1\""), ("if-none-match", "\"2\", W/\"+1\"")];
        let met = service.client.send(Method::Put, &path(&jane), &tags, Some(&patient("Jane Smith"))).await.unwrap();
        assert_eq!((met.status, met.header("etag")), (200, Some("\"2\"")));
        // Bytes beyond ASCII are allowed in a tag, and no patient has one with them.
        let head = format!("DELETE {} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n", path(&jane));
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
        let answers: Vec<Response> = at_once(50, |n| {
            let (client, path) = (client.clone(), path(&jane));
            async move {
                let headers = [("if-match", "\"1\"")];
                client.send(Method::Put, &path, &headers, Some(&patient(&format!("Jane {n}")))).await.unwrap()
            }
        })
        .await;
        assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
        assert_eq!(answers.iter().filter(|answer| answer.status == 412).count(), 49);
        assert_eq!(service.number("SELECT version FROM patients").await, 2);
        assert_eq!(service.number("SELECT count(*) FROM outbox").await, 2);
    });
}

#[test]
fn without_if_match_every_change_counts() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let client = service.client.clone();
        let answers: Vec<Response> = at_once(20, |n| {
            let (client, path) = (client.clone(), path(&jane));
            async move { client.put(&path, &patient(&format!("Jane {n}"))).await.unwrap() }
        })
        .await;
        assert!(answers.iter().all(|answer| answer.status == 200));
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
        let answer = service.client.send(Method::Put, unknown, &headers, Some(&patient("New One"))).await.unwrap();
        assert_eq!(answer.status, 404);
        // The connections on which these failed are well.
        for n in 0..20 {
            assert_eq!(service.client.put(&path(&jane), &patient(&format!("Jane {n}"))).await.unwrap().status, 200);
        }
    });
}
