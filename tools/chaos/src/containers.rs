//! The system that `just up` runs in containers, with one replica of each service or scaled.

use smol::lock::Mutex;
use testbed::{Error, Scratch, http::Client};

use crate::{
    component::Component,
    docker::{self, Inspected},
    system::SystemUnderTest,
};

/// The system of this checkout.
///
/// # Errors
/// If no Docker engine responds, or the system does not run in containers.
pub(crate) async fn find() -> Result<SystemUnderTest, Error> {
    let all = docker::all().await?;
    if !all.iter().any(|container| container.service == "patient-service" && container.is_running) {
        return Err(Error::new("the system does not run in containers: just up --docker, or just up-scaled"));
    }
    let front =
        if all.iter().any(|container| container.service == "balancer") { "balancer" } else { "patient-service" };
    let clients = vec![Client::new(docker::address_of(&all, front, "4000/tcp")?)];
    let name = |container: &Inspected| {
        let is_one = all.iter().filter(|other| other.service == container.service).count() == 1;
        if is_one { container.service.clone() } else { format!("{} #{}", container.service, container.number) }
    };
    let components: Vec<_> = all
        .iter()
        .map(|container| (name(container), Mutex::new(Component::Container(container.container.clone()))))
        .collect();
    let description = format!("{} containers", components.len());
    Ok(SystemUnderTest {
        description,
        components,
        members: Vec::new(),
        clients,
        fixed_auditor: None,
        may_change_topic: false,
        clock: None,
        logs: None,
        scratch: Scratch::new()?,
        _service_scratch: None,
    })
}
