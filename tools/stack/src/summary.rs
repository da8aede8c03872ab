//! The summary that `up` prints: the addresses of the system, and commands to try.

use crate::settings::Settings;

/// Prints the summary. In a scaled system, billing's replicas have no common HTTP address, and there are two analytics-services.
pub(crate) fn print(settings: &Settings, scaled: bool) {
    let (patient, analytics) = (settings.patient_address(), settings.analytics_address());
    let health = if scaled {
        format!("http://127.0.0.1:{}/actuator/health", settings.analytics_2_port)
    } else {
        format!("http://{}/actuator/health", settings.billing_address())
    };
    println!(
        "
The system runs.

  Patients      http://{patient}/patients
  API to try    http://{patient}/swagger-ui/index.html
  Analytics     http://{analytics}/analytics/summary
  Health        http://{patient}/actuator/health
                http://{analytics}/actuator/health
                {health}
  Billing       grpc://127.0.0.1:{grpc}  (reflection is on)
  Kafka         {kafka}  topic patient

  Register a patient:
    curl -i http://{patient}/patients -H 'content-type: application/json' \\
      -d '{{\"name\":\"Jane Doe\",\"email\":\"jane@example.org\",\"address\":\"1 Main Street\",\"dateOfBirth\":\"1990-12-31\"}}'
  Watch it being counted:
    curl -N http://{analytics}/analytics/stream

  just demo     send one patient through the system
  just logs -f  follow the logs
  just ps       what runs
  just down     stop; data stay

  See it at work: {console}",
        console = settings.console_url(),
        grpc = settings.billing_grpc_port,
        kafka = settings.kafka_address(),
    );
}
