//! The OpenAPI document and Swagger UI.

use std::collections::BTreeSet;

use crate::harness::with_service;

#[test]
fn the_document_describes_every_route_and_no_other() {
    with_service(|service| async move {
        let response = service.get("/v3/api-docs").await;
        assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
        let document = response.json();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        let mut described = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                described.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
        let served: BTreeSet<_> = [
            "POST /patients",
            "GET /patients",
            "GET /patients/{id}",
            "PUT /patients/{id}",
            "DELETE /patients/{id}",
            "GET /patients/{id}/billing",
            "POST /patients/{id}/billing/transactions",
            "GET /patients/{id}/billing/transactions",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(described, served);
        for path in described {
            let (_, path) = path.split_once(' ').unwrap();
            let response =
                service.client.send(surf::http::Method::Options, &path.replace("{id}", "x"), &[], None).await.unwrap();
            assert_eq!(response.status, 204, "{path} is served");
        }
    });
}

#[test]
fn swagger_ui_is_served_from_the_binary() {
    with_service(|service| async move {
        let index = service.get("/swagger-ui/index.html").await;
        assert!(index.status == 200 && index.header("content-type").unwrap().starts_with("text/html"));
        assert!(!index.text().contains("://"), "works offline");
        assert!(!index.text().contains("<script>"), "the policy lets no script within the page run");
        assert!(index.header("content-security-policy").unwrap().contains("script-src 'self';"));
        let start = service.get("/swagger-ui/start.js").await;
        assert!(start.text().contains("/v3/api-docs"));
        assert_eq!(start.header("content-type"), Some("text/javascript; charset=utf-8"));
        for file in ["swagger-ui.css", "swagger-ui-bundle.js"] {
            let response = service.get(&format!("/swagger-ui/{file}")).await;
            assert_eq!((response.status, response.header("content-encoding")), (200, Some("gzip")));
            assert_eq!(response.body[..2], [0x1f, 0x8b], "the magic number of gzip");
        }
        assert_eq!(service.get("/swagger-ui/nothing.js").await.status, 404);
        for old in ["/swagger-ui", "/swagger-ui.html"] {
            let redirect = service.get(old).await;
            assert_eq!((redirect.status, redirect.header("location")), (308, Some("/swagger-ui/index.html")));
        }
    });
}
