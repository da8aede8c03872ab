//! Health and metrics.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use testbed::proxy::{Mode, Proxy};

use crate::harness::{Harness, with_service};

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn serves_health_and_metrics_over_http() {
    with_service(|billing| async move {
        billing.create(uuid::Uuid::now_v7(), "Jane Doe").await.unwrap();
        let http = billing.http;
        let ready = smol::unblock(move || get(http, "/actuator/health/readiness")).await;
        assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("\"database\":{\"status\":\"UP\"}"), "{ready}");
        let metrics = smol::unblock(move || get(http, "/metrics")).await;
        assert!(
            metrics.contains("grpc_server_calls_total{code=\"ok\",method=\"BillingService/CreateBillingAccount\"}")
        );
        assert!(metrics.contains("db_pool_connections{pool=\"requests\",state=\"max\"} 16"), "{metrics}");
    });
}

#[test]
fn it_stops_in_order_while_the_database_does_not_answer_for_longer_than_a_stop_may_take() {
    runtime::block_on(2, async {
        let (proxy, url) = Proxy::to_postgres(&testbed::shared_database().await).await.unwrap();
        let billing = Harness::start_with_deadline(&url, "60s").await;
        billing.until_serving().await;
        proxy.set(Mode::Stall);
        // Until the database is asked again whether it is there.
        smol::Timer::after(Duration::from_secs(3)).await;
        billing.stop().await;
    });
}
