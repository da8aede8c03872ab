//! The system that `just up` runs in containers, with one replica of each service or scaled.

use smol::lock::Mutex;
use testbed::{Scratch, StartError, http::Client};

use crate::{
    docker::{self, Inspected},
    parts::Part,
    system::SystemUnderTest,
};

/// The system of this checkout.
///
/// # Errors
/// If no engine answers, or it does not run there.
pub(crate) async fn find() -> Result<SystemUnderTest, StartError> {
    let all = docker::all().await?;
    if !all.iter().any(|container| container.service == "patient-service" && container.is_running) {
        return Err(StartError::new("the system does not run in containers: just up --docker, or just up-scaled"));
    }
    let front =
        if all.iter().any(|container| container.service == "balancer") { "balancer" } else { "patient-service" };
    let clients = vec![Client::new(docker::address_of(&all, front, "4000/tcp")?)];
    let name = |container: &Inspected| {
        let is_one = all.iter().filter(|other| other.service == container.service).count() == 1;
        if is_one { container.service.clone() } else { format!("{} #{}", container.service, container.number) }
    };
    let parts: Vec<_> = all
        .iter()
        .map(|container| (name(container), Mutex::new(Part::Container(container.container.clone()))))
        .collect();
    let description = format!("{} containers", parts.len());
    Ok(SystemUnderTest {
        description,
        parts,
        clients,
        fixed: None,
        topic_is_ours: false,
        clock: None,
        logs: None,
        scratch: Scratch::new()?,
        _kept: None,
    })
}
