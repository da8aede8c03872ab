//! The summary that `up` prints: the addresses of the system, and commands to try.

use crate::{
    secure::{DEVELOPER, Secure, quoted},
    settings::Settings,
};

/// Prints the summary; of a secure system also how to get a token, and its gateway if it has one. In a scaled system, billing's
/// replicas have no common HTTP address, and there are three analytics-services.
pub(crate) fn print(settings: &Settings, scaled: bool, secure: Option<(&Secure, bool)>) {
    let (patient, analytics) = (settings.patient_address(), settings.analytics_address());
    let scheme = if secure.is_some() { "https" } else { "http" };
    let billing = (!scaled).then(|| settings.billing_address());
    let health: Vec<_> = std::iter::once(patient.clone())
        .chain(settings.analytics_addresses(scaled))
        .chain(billing)
        .map(|address| format!("{scheme}://{address}/actuator/health"))
        .collect();
    let health = health.join("\n                ");
    let options = match secure {
        None => String::new(),
        Some((secure, _)) => secure.curl_options(),
    };
    let identity = match secure {
        None => "\n  Identities are off: whoever reaches this machine's loopback may do everything. With them: just up --secure\n"
            .to_owned(),
        Some((secure, has_gateway)) => identities(settings, secure, has_gateway),
    };
    let (grpc, kafka) = if secure.is_some() { ("grpcs", ", SASL_SSL") } else { ("grpc", "") };
    println!(
        "
The system runs.

  Patients      {scheme}://{patient}/patients
  API to try    {scheme}://{patient}/swagger-ui/index.html
  Analytics     {scheme}://{analytics}/analytics/summary
  Health        {health}
  Billing       {grpc}://127.0.0.1:{grpc_port}  (reflection is on)
  Kafka         {kafka_address}  topic patient{kafka}
{identity}
  Register a patient:
    curl -i{options} {scheme}://{patient}/patients -H 'content-type: application/json' \\
      -d '{{\"name\":\"Jane Doe\",\"email\":\"jane@example.org\",\"address\":\"1 Main Street\",\"dateOfBirth\":\"1990-12-31\"}}'
  Watch it being counted:
    curl -N{options} {scheme}://{analytics}/analytics/stream

  just demo     send one patient through the system
  just logs -f  follow the logs
  just ps       what runs
  just down     stop; data stay

  See it at work: {console}",
        console = settings.console_url(),
        grpc_port = settings.billing_grpc_port,
        kafka_address = settings.kafka_address(),
    );
}

/// How to get a token.
fn identities(settings: &Settings, secure: &Secure, has_gateway: bool) -> String {
    let gateway = if has_gateway {
        format!(
            "  Gateway       https://{}  /auth/login, /auth/validate, /api/patients, /api/analytics\n",
            settings.gateway_address()
        )
    } else {
        String::new()
    };
    format!(
        "
  Identities    https://{auth}/auth/login  a token is valid for 15 minutes
  Users         developer@example.org may do everything, reader@example.org may read;
                their passwords are in {users}
{gateway}  Authority     {authority}

  Log in (just token does this and prints the token alone):
    curl --cacert {authority} https://{auth}/auth/login -H 'content-type: application/json' -d @{user}
",
        auth = settings.auth_address(),
        users = quoted(secure.user_file(DEVELOPER).parent().unwrap_or(std::path::Path::new("."))),
        authority = quoted(&secure.authority()),
        user = quoted(&secure.user_file(DEVELOPER)),
    )
}
