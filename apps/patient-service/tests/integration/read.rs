//! `GET /patients/{id}`.

use futures_util::future::join_all;
use surf::http::Method;

use crate::harness::{path, patient, with_service};

#[test]
fn success() {
    with_service(|service| async move {
        let mut jane = service.register("Jane Doe").await;
        let response = service.get(&path(&jane)).await;
        jane.as_object_mut().unwrap().remove("billing");
        assert_eq!((response.status, response.json()), (200, jane));
        assert_eq!(response.header("etag"), Some("\"1\""));
    });
}

#[test]
fn a_client_with_this_version_gets_304() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        for (tags, status) in [
            ("\"1\"", 304),
            ("W/\"1\"", 304),
            ("\"7\", \"1\"", 304),
            ("*", 304),
            ("\"2\"", 200),
            ("\"other\"", 200),
            ("1", 400),
        ] {
            let headers = [("if-none-match", tags)];
            let response = service.client.send(Method::Get, &path(&jane), &headers, None).await.unwrap();
            assert_eq!(response.status, status, "{tags}");
            if status == 304 {
                assert_eq!((response.header("etag"), response.body.len()), (Some("\"1\""), 0));
            }
        }
    });
}

#[test]
fn if_match_on_a_read_gives_the_version_or_412() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let unknown = "/patients/00000000-0000-7000-8000-000000000000".to_owned();
        for (headers, status) in [
            (&[("if-match", "\"1\"")][..], 200),
            (&[("if-match", "*")], 200),
            (&[("if-match", "\"+1\"")], 412),
            (&[("if-match", "W/\"1\"")], 412),
            (&[("if-match", "\"2\"")], 412),
            (&[("if-match", "nonsense")], 400),
            (&[("if-none-match", "\"+1\"")], 200),
            (&[("if-match", "\"1\""), ("if-none-match", "\"1\"")], 304),
            (&[("if-match", "\"2\""), ("if-none-match", "\"1\"")], 412),
        ] {
            let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            for method in ["GET", "HEAD"] {
                for (path, status) in [(path(&jane), status), (unknown.clone(), 404)] {
                    let head =
                        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{lines}\r\n");
                    assert_eq!(service.raw(head.as_bytes()).await, status, "{method} {path} {headers:?}");
                }
            }
        }
        // What has no entity tag matches none.
        let list = service.client.send(Method::Get, "/patients", &[("if-match", "\"1\"")], None).await.unwrap();
        assert_eq!(list.status, 412);
    });
}

#[test]
fn unknown_and_malformed_ids() {
    with_service(|service| async move {
        let unknown = service.get("/patients/00000000-0000-7000-8000-000000000000").await;
        assert_eq!((unknown.status, unknown.header("content-type")), (404, Some("application/problem+json")));
        for malformed in
            ["42", "{00000000-0000-7000-8000-000000000000}", "00000000000070008000000000000000", "%00", "%ff", "%"]
        {
            let response = service.get(&format!("/patients/{malformed}")).await;
            assert_eq!(response.status, 400, "{malformed}");
            assert_eq!(response.json()["errors"]["id"], "must be a UUID");
        }
    });
}

#[test]
fn a_percent_encoded_id_is_the_same_id() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let id = jane["id"].as_str().unwrap();
        let hyphens_encoded = id.replace('-', "%2D");
        let all_encoded: String = id.bytes().map(|byte| format!("%{byte:02x}")).collect();
        for encoded in [hyphens_encoded, all_encoded] {
            let response = service.get(&format!("/patients/{encoded}")).await;
            assert_eq!((response.status, &response.json()["id"]), (200, &jane["id"]), "{encoded}");
        }
    });
}

#[test]
fn concurrent_reads_get_the_right_patients() {
    with_service(|service| async move {
        let names = (0..20).map(|number| format!("Patient {number}"));
        let patients: Vec<_> = join_all(names.map(async |name| service.register(&name).await)).await;
        // Each is read several times, between reads of patients that do not exist.
        let reads = (0..300).map(async |number| {
            let Some(patient) = patients.get(number % (patients.len() + 1)) else {
                assert_eq!(service.get(&format!("/patients/{}", uuid::Uuid::now_v7())).await.status, 404);
                return;
            };
            let response = service.get(&path(patient)).await;
            assert_eq!((response.status, &response.json()["id"]), (200, &patient["id"]), "{}", response.text());
            assert_eq!(response.json()["name"], patient["name"]);
        });
        join_all(reads).await;
    });
}

#[test]
fn a_read_sees_changes_that_were_answered_before() {
    with_service(|service| async move {
        let jane = service.register("Jane Doe").await;
        let noise = join_all((0..50).map(async |_| service.get(&path(&jane)).await));
        let writes = async {
            for number in 0..20 {
                let name = format!("Jane {number}");
                let written = service.client.put(&path(&jane), &patient(&name)).await.unwrap();
                assert_eq!(written.status, 200, "{}", written.text());
                assert_eq!(service.get(&path(&jane)).await.json()["name"], name.as_str());
            }
        };
        futures_lite::future::zip(noise, writes).await;
    });
}
