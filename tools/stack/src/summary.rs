//! What to do with a running system.

use crate::settings::Settings;

/// Prints it. A scaled system does not publish billing's health at one address, and has two of analytics.
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

  just demo     one patient all the way, step by step
  just logs -f  follow the logs
  just ps       what runs
  just down     stop; data stay

  See it at work: {console}",
        console = settings.console_url(),
        grpc = settings.billing_grpc_port,
        kafka = settings.kafka_address(),
    );
}
