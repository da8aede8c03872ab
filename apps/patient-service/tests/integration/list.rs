//! `GET /patients`.

use patient_service::{
    http::cursor,
    store::{Direction, Order, Position, SortField},
};
use serde_json::Value as Json;
use uuid::Uuid;

use crate::harness::{Harness, with_service};

/// The names on all parts of a list, one array a part.
async fn walk(service: &Harness, first: &str) -> Vec<Vec<String>> {
    let mut parts = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(path) = next {
        let response = service.get(&path).await;
        assert_eq!(response.status, 200, "{path}: {}", response.text());
        parts.push(names(&response.json()));
        next = response.next();
    }
    parts
}

fn names(list: &Json) -> Vec<String> {
    list.as_array().unwrap().iter().map(|patient| patient["name"].as_str().unwrap().to_owned()).collect()
}

async fn register(service: &Harness, names: &[&str]) {
    for name in names {
        service.register(name).await;
    }
}

#[test]
fn an_empty_registry_is_an_empty_array() {
    with_service(|service| async move {
        let response = service.get("/patients").await;
        assert_eq!((response.status, response.text()), (200, "[]".to_owned()));
        assert_eq!(response.header("link"), None);
    });
}

#[test]
fn parts_of_a_list_follow_each_other_in_every_order() {
    with_service(|service| async move {
        register(&service, &["Cora", "Abel", "Dora", "Bert", "Emil"]).await;
        assert_eq!(
            walk(&service, "/patients?limit=2").await,
            [vec!["Cora", "Abel"], vec!["Dora", "Bert"], vec!["Emil"]]
        );
        assert_eq!(walk(&service, "/patients?limit=5").await.len(), 1, "no link to an empty part");
        let ascending = ["Abel", "Bert", "Cora", "Dora", "Emil"];
        for sort in ["name", "email"] {
            assert_eq!(walk(&service, &format!("/patients?limit=2&sort={sort}")).await.concat(), ascending, "{sort}");
            let descending: Vec<_> = ascending.iter().rev().copied().collect();
            assert_eq!(
                walk(&service, &format!("/patients?limit=2&sort=-{sort}")).await.concat(),
                descending,
                "-{sort}"
            );
        }
        // All dates are equal: only the id distinguishes the patients, and each is listed once.
        for sort in ["dateOfBirth", "registeredDate", "id"] {
            let forward = walk(&service, &format!("/patients?limit=2&sort={sort}")).await.concat();
            assert_eq!(forward, ["Cora", "Abel", "Dora", "Bert", "Emil"], "{sort}");
            let mut backward = walk(&service, &format!("/patients?limit=2&sort=-{sort}")).await.concat();
            backward.reverse();
            assert_eq!(forward, backward, "{sort}");
        }
    });
}

#[test]
fn a_list_goes_on_after_its_last_patient_was_deleted() {
    with_service(|service| async move {
        register(&service, &["Abel", "Bert", "Cora"]).await;
        let first = service.get("/patients?limit=2&sort=name").await;
        let bert = first.json()[1]["id"].as_str().unwrap().to_owned();
        service.client.delete(&format!("/patients/{bert}")).await.unwrap();
        assert_eq!(names(&service.get(&first.next().unwrap()).await.json()), ["Cora"]);
    });
}

#[test]
fn search_finds_parts_of_names_and_emails() {
    with_service(|service| async move {
        register(&service, &["Jane Doe", "John Doe", "Zoë Müller", "100% Sure", "Under_Score"]).await;
        let all = 5;
        for (term, found) in [
            ("doe", vec!["Jane Doe", "John Doe"]),
            ("DOE", vec!["Jane Doe", "John Doe"]),
            ("ane.do", vec!["Jane Doe"]),
            ("zo%C3%AB", vec!["Zoë Müller"]),
            ("M%C3%9CLL", vec!["Zoë Müller"]),
            ("jo", vec!["John Doe"]),
            ("do", vec!["Jane Doe", "John Doe"]),
            ("oe", vec![]),
            ("100%25", vec!["100% Sure"]),
            ("00%25 sure", vec!["100% Sure"]),
            ("der_sc", vec!["Under_Score"]),
            ("der%25sc", vec![]),
            ("nobody", vec![]),
            ("%25", vec![]),
        ] {
            assert_eq!(walk(&service, &format!("/patients?search={term}")).await.concat(), found, "{term}");
        }
        assert_eq!(walk(&service, "/patients?search=example.org&limit=2").await.concat().len(), all);
        assert_eq!(
            walk(&service, "/patients?search=doe&sort=-name&limit=1").await,
            [vec!["John Doe"], vec!["Jane Doe"]]
        );
        assert_eq!(walk(&service, "/patients?search=").await.concat().len(), all);
    });
}

#[test]
fn crafted_cursors_are_rejected_before_postgresql() {
    with_service(|service| async move {
        service.register("Jane Doe").await;
        let id = Uuid::now_v7();
        let crafted = |order, sort_key: &str| cursor::encode(&Position { id, sort_key: sort_key.to_owned() }, order);
        let by = |field, direction| Order { field, direction };
        for (sort, order) in [
            ("dateOfBirth", by(SortField::DateOfBirth, Direction::Ascending)),
            ("registeredDate", by(SortField::RegisteredDate, Direction::Ascending)),
            ("-dateOfBirth", by(SortField::DateOfBirth, Direction::Descending)),
        ] {
            for date in ["0000-01-01", "-0044-03-15", "+10000-01-01", "+262142-12-31", "-262143-01-01", "2024-1-1"] {
                let response = service.get(&format!("/patients?sort={sort}&cursor={}", crafted(order, date))).await;
                assert_eq!(response.status, 400, "{sort} {date}: {}", response.text());
                assert!(response.json()["errors"]["cursor"].is_string());
            }
            for date in ["0001-01-01", "9999-12-31", "2024-02-29"] {
                let response = service.get(&format!("/patients?sort={sort}&cursor={}", crafted(order, date))).await;
                assert_eq!(response.status, 200, "{sort} {date}: {}", response.text());
            }
        }
        for text in ["", "\u{10ffff}", "\u{1f}%_\\", &"é".repeat(4_000)] {
            for (sort, order) in [
                ("name", by(SortField::Name, Direction::Ascending)),
                ("-email", by(SortField::Email, Direction::Descending)),
            ] {
                let response = service.get(&format!("/patients?sort={sort}&cursor={}", crafted(order, text))).await;
                assert_eq!(response.status, 200, "{sort} {text:?}: {}", response.text());
            }
        }
    });
}

#[test]
fn all_wrong_parameters_are_reported() {
    with_service(|service| async move {
        let response = service.get("/patients?limit=0&sort=age&cursor=abc&search=%00").await;
        assert_eq!(response.status, 400);
        let errors = response.json()["errors"].clone();
        let mut told: Vec<_> = errors.as_object().unwrap().keys().cloned().collect();
        told.sort();
        assert_eq!(told, ["cursor", "limit", "search", "sort"]);
        for wrong in ["limit=1001", "limit=x", "limit=-1", "sort=-", "sort=Name"] {
            assert_eq!(service.get(&format!("/patients?{wrong}")).await.status, 400, "{wrong}");
        }
        register(&service, &["Abel", "Bert"]).await;
        let next = service.get("/patients?limit=1&sort=name").await.next().unwrap();
        for other in ["dateOfBirth", "email", "-name", "id"] {
            let next = next.replace("sort=name", &format!("sort={other}"));
            assert_eq!(service.get(&next).await.status, 400, "{other}: a cursor belongs to its order");
        }
    });
}
