//! The issuer's keys: when they are fetched, changed, and missing.

use serde_json::json;
use testbed::{
    tokens::{self, SigningKey, with},
    until,
};

use crate::support::{Issuer, Secured};

const PATH: &str = "/patients";

#[test]
fn unknown_key_ids_cost_one_fetch() {
    runtime::block_on(2, async {
        let (known, unknown) = (SigningKey::es256("known"), SigningKey::es256("unknown"));
        let issuer = Issuer::start([&known]);
        let service = Secured::start("patient-service", &issuer.url("keys"), &[]).await;
        service.until_ready().await;
        assert_eq!(issuer.requests(), 1, "at the start");
        for number in 0..1000 {
            let token = unknown.signed(
                &json!({"alg": "ES256", "kid": format!("unknown {number}")}),
                &service.claims("ann", "patients:read"),
            );
            assert_eq!(service.get(PATH, &token).await.status, 401);
        }
        assert_eq!(issuer.requests(), 2, "15: once more for all of them");
        assert_eq!(service.get(PATH, &known.token(&service.claims("ann", "patients:read"))).await.status, 200);
    });
}

#[test]
fn a_new_key_is_accepted_and_a_removed_one_is_not() {
    runtime::block_on(2, async {
        let (old, new) = (SigningKey::es256("old"), SigningKey::ed25519("new"));
        let issuer = Issuer::start([&old]);
        let service = Secured::start("patient-service", &issuer.url("keys"), &[]).await;
        service.until_ready().await;
        let claims = service.claims("ann", "patients:read");
        let (with_old, with_new) = (old.token(&claims), new.token(&claims));
        assert_eq!(service.get(PATH, &with_old).await.status, 200, "before");
        issuer.publish(&tokens::jwk_set([&new]));
        assert_eq!(service.get(PATH, &with_new).await.status, 200, "16: a token with a new key has it fetched");
        assert_eq!(service.get(PATH, &with_old).await.status, 401, "16: although it was verified before");
    });
}

#[test]
fn an_issuer_that_is_down_costs_a_cold_service_alone() {
    runtime::block_on(2, async {
        let key = SigningKey::es256("key");
        let issuer = Issuer::start([&key]);
        let warm = Secured::start("patient-service", &issuer.url("keys"), &[]).await;
        warm.until_ready().await;
        issuer.fail();
        let cold = Secured::start("patient-service", &issuer.url("keys"), &[]).await;
        let token = key.token(&warm.claims("ann", "patients:read"));
        assert_eq!(warm.get(PATH, &token).await.status, 200, "17: known keys are kept");
        let answer = cold.get(PATH, &token).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("2")), "17: {}", answer.text());
        until("17: readiness says so", async || {
            let readiness = cold.operations.get("/actuator/health/readiness").await.unwrap();
            readiness.status == 503 && readiness.json()["components"]["authentication"]["status"] == "DOWN"
        })
        .await;
        issuer.publish(&tokens::jwk_set([&key]));
        until("17: it recovers", async || cold.get(PATH, &token).await.status == 200).await;
    });
}

#[test]
fn a_bad_key_costs_no_good_one() {
    runtime::block_on(2, async {
        let (es, rs) = (SigningKey::es256("es"), SigningKey::rs256("rs"));
        let short = with(es.jwk(), &json!({"kid": "short", "x": "AA"}));
        let set = json!({"keys": [null, "text", {"kty": "oct", "k": "AAAA", "kid": "es"}, short, es.jwk(), rs.jwk()]});
        let service = Secured::with_keys("patient-service", &set).await;
        let claims = service.claims("ann", "patients:read");
        for key in [&es, &rs] {
            assert_eq!(service.get(PATH, &key.token(&claims)).await.status, 200, "18: {key:?}");
        }
        let token = es.signed(&json!({"alg": "ES256", "kid": "short"}), &claims);
        assert_eq!(service.get(PATH, &token).await.status, 401, "18");
    });
}
