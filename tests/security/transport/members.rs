//! Instances of analytics-service that ask each other, with TLS and tokens.

use kafka::Producer;
use serde_json::{Value as Json, json};
use testbed::{
    broker, ports,
    service::Service,
    tokens::{self, SigningKey},
    until,
};

use super::pki::{Pki, curl, http_tls, text};
use crate::support::ISSUER;

/// The summary of an instance for a caller with this token.
async fn summary(pki: &Pki, service: &Service, token: &str) -> Json {
    let (ca, bearer) = (pki.ca().display().to_string(), format!("authorization: Bearer {token}"));
    let url = format!("https://localhost:{}/analytics/summary", service.launch().port);
    serde_json::from_str(&text(&curl(&["--cacert", &ca, "-H", &bearer, &url]).await)).unwrap_or_default()
}

#[test]
fn instances_show_each_other_the_callers_token_and_one_that_rejects_it_is_missing() {
    runtime::block_on(2, async {
        let kafka = testbed::shared_broker(broker::Kind::Nisshi).await;
        let topic = format!("patient-{:016x}", fastrand::u64(..));
        kafka::create_topic(&kafka, &topic, 3).await.unwrap();
        let mut producer = Producer::new(kafka.clone(), &topic);
        for partition in 0..3 {
            let event = format!("\n\u{24}{}\"\u{f}PATIENT_CREATED", uuid::Uuid::now_v7());
            let record = kafka::Record {
                key: None,
                value: Some(event.into_bytes()),
                headers: Vec::new(),
                timestamp: chrono::Utc::now(),
            };
            for (_, sent) in producer.send([(partition, vec![record])].into()).await {
                sent.unwrap();
            }
        }
        let pki = Pki::new();
        let (server, key) = (pki.issue("server", &["localhost"]), SigningKey::es256("key"));
        let ports = [(); 3].map(|()| ports::free());
        let members = ports.map(|port| format!("localhost:{port}")).join(",");
        let mut services = Vec::new();
        for (partition, (port, audience)) in
            ports.into_iter().zip(["analytics-service", "analytics-service", "another"]).enumerate()
        {
            let settings = [
                ("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap.0[0].to_string()),
                ("KAFKA_TOPIC", topic.clone()),
                ("KAFKA_CONSUMER_GROUP", "none".to_owned()),
                ("PARTITIONS", partition.to_string()),
                ("ANALYTICS_MEMBERS", members.clone()),
                ("ANALYTICS_MEMBERS_TLS_CA", pki.ca().display().to_string()),
                ("STATE_FILE", pki.path().join(format!("state-{partition}.sqlite")).display().to_string()),
            ];
            let settings = [&http_tls(&server)[..], &settings, &pki.jwt(&key, audience)].concat();
            services.push(pki.start_on("analytics-service", port, &settings));
        }
        let token = key.token(&tokens::claims(ISSUER, "analytics-service", "ann", "analytics:read"));
        for service in &services[..2] {
            let mut last = Json::Null;
            until("two of three answer", async || {
                last = summary(&pki, service, &token).await;
                last["created"] == 2 && last["partial"] == true && last["missingPartitions"] == json!([2])
            })
            .await;
            until("it says why", async || {
                let log = service.log();
                log.contains("another analytics-service rejects calls") && log.contains("it answers 401")
            })
            .await;
            assert!(!service.log().contains(&token), "no token is in a log");
        }
        // A caller whom all accept gets the whole, whoever else calls.
        let claims = tokens::claims(ISSUER, "analytics-service", "ann", "analytics:read");
        let both = json!(["analytics-service", "another"]);
        let mut claims = claims;
        claims["aud"] = both;
        let accepted = key.token(&claims);
        for service in &services {
            until("all answer", async || {
                summary(&pki, service, &token).await;
                let summary = summary(&pki, service, &accepted).await;
                summary["created"] == 3 && summary.get("partial").is_none()
            })
            .await;
        }
    });
}
