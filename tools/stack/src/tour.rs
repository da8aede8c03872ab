//! The tour: ten short steps through a running system. Each runs a command, prints what it did, and says where that is in the
//! code and in the console.

use std::{
    env,
    io::{IsTerminal as _, Write as _, stdin, stdout},
    process::Command,
};

use anyhow::{Result, anyhow, bail};
use chrono::Utc;

use crate::{
    backend,
    secure::{self, Secure},
    service_settings, settings,
    settings::Settings,
};

mod console;

use console::Console;

/// Lines of a command's output that are shown.
const MAX_LINES: usize = 14;

/// One step. `{id}` and `{trace}` in its texts are those of the patient that was registered last.
struct Step {
    title: &'static str,
    /// A line of the shell; `just` in it is this program.
    command: String,
    /// What its output contains if it worked.
    expected: &'static str,
    explanation: &'static str,
    code: &'static str,
    /// The path in the console.
    console: &'static str,
    /// Whether the journey of the last request has to be delivered first: after the command, or before it.
    delivery: Delivery,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Delivery {
    NotAwaited,
    Before,
    After,
}

/// What a request was answered with.
#[derive(Default)]
struct Known {
    /// The id in the newest `Location`.
    id: String,
    /// The trace in the newest `traceparent`.
    trace: String,
}

impl Known {
    /// Reads the headers that `curl -i` prints.
    fn note(&mut self, output: &str) {
        let header = |wanted: &str| {
            let mut values = output.lines().filter_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case(wanted).then(|| value.trim())
            });
            values.next_back()
        };
        if let Some(id) = header("location").and_then(|location| location.strip_prefix("/patients/"))
            && !id.contains('/')
        {
            id.clone_into(&mut self.id);
        }
        if let Some(trace) = header("traceparent").and_then(|value| value.split('-').nth(1)) {
            trace.clone_into(&mut self.trace);
        }
    }

    fn fill(&self, text: &str) -> String {
        text.replace("{id}", &self.id).replace("{trace}", &self.trace)
    }
}

pub(crate) async fn run(settings: &Settings) -> Result<()> {
    // An error if nothing runs, also if the system of another checkout does.
    backend::addresses(settings).await?;
    let secure = Secure::of_checkout()?;
    let access = secure.as_ref().map(|secure| secure.access(settings, secure::DEVELOPER)).transpose()?;
    let console = Console::open(settings, secure.as_ref()).await?;
    if Command::new("curl").arg("--version").output().is_err() {
        bail!("The tour runs curl, which is not installed.");
    }
    let stops = stdin().is_terminal() && stdout().is_terminal();
    let steps = steps(settings, secure.as_ref(), Utc::now().timestamp_millis());
    let mut known = Known::default();
    for (number, step) in steps.iter().enumerate() {
        println!("\n{} of {}  {}", number + 1, steps.len(), step.title);
        if step.delivery == Delivery::Before {
            console.until_delivered(&known.trace).await?;
        }
        let command = known.fill(&step.command);
        println!("\n  $ {command}");
        let token = match &access {
            Some(access) => access.token().await?,
            None => None,
        };
        let output = shell(&command, token.as_deref())?;
        for line in shown(&output) {
            println!("  | {line}");
        }
        if !output.contains(step.expected) {
            bail!("This was expected to contain {:?}; see just logs.", step.expected);
        }
        known.note(&output);
        if step.delivery == Delivery::After {
            console.until_delivered(&known.trace).await?;
        }
        println!("\n  {}", step.explanation.replace('\n', "\n  "));
        println!("  Code     {}", step.code);
        println!("  Console  {}{}", settings.console_url(), known.fill(step.console));
        if stops && number + 1 < steps.len() {
            print!("\n  Enter for the next step ");
            stdout().flush()?;
            // Without more input, the rest goes on by itself.
            stdin().read_line(&mut String::new())?;
        }
    }
    println!(
        "\nGo on: break a part and watch it heal, {}lab; just demo has the times of each hop.",
        settings.console_url()
    );
    Ok(())
}

/// The steps. On a secure system, curl trusts its authority and brings a token, and `up` is told what it starts.
fn steps(settings: &Settings, secure: Option<&Secure>, now: i64) -> [Step; 10] {
    let (scheme, options) = match secure {
        Some(secure) => ("https://", secure.curl_options()),
        None => ("", String::new()),
    };
    let [patients, analytics] =
        [settings.patient_address(), settings.analytics_address()].map(|address| format!("{scheme}{address}"));
    let curl = |method: &str| format!("curl {method}{options}");
    let up = if secure.is_some() { "just up --secure --no-build" } else { "just up --no-build" };
    let json = "-H 'content-type: application/json'";
    let person = |name: &str, email: &str| {
        format!(
            r#"-d '{{"name":"{name}","email":"{email}.{now}@example.org","address":"1 Main Street","dateOfBirth":"1990-12-31"}}'"#
        )
    };
    let ann =
        format!("{} {patients}/patients {json} -H 'idempotency-key: tour-{now}' {}", curl("-si"), person("Ann", "ann"));
    let bob = format!("{} {patients}/patients {json} {}", curl("-si"), person("Bob", "bob"));
    let charge = r#"-d '{"transactionId":"visit-1","type":"CHARGE","amount":12000,"currency":"EUR"}'"#;
    [
        Step {
            title: "What runs",
            command: "just ps".to_owned(),
            expected: "patient-service",
            explanation: "PostgreSQL, a broker and three services of 9 to 14 MB each, and the console that shows them.",
            code: "tools/stack/src/native.rs, docker-compose.yaml",
            console: "",
            delivery: Delivery::NotAwaited,
        },
        Step {
            title: "Register a patient",
            command: ann.clone(),
            expected: " 201",
            explanation: "One commit stored the patient, its event and the task to open its account.\n\
                          Then the request opened the account over gRPC itself.",
            code: "apps/patient-service/src/registry.rs, store/insert.rs",
            console: "journeys/{trace}",
            delivery: Delivery::After,
        },
        Step {
            title: "The event has been counted",
            command: format!("{} {analytics}/analytics/summary", curl("-s")),
            expected: "activePatients",
            explanation: "The relay read the event from the outbox table and sent it to Kafka. analytics-service committed\n\
                          the count together with the offset of the next record.",
            code: "apps/patient-service/src/relay.rs, apps/analytics-service/src/ingest.rs",
            console: "journeys/{trace}",
            delivery: Delivery::Before,
        },
        Step {
            title: "Send the same request again",
            command: ann,
            expected: " 201",
            explanation: "The same Idempotency-Key: the same patient, and no second event. So a lost answer does no harm.",
            code: "apps/patient-service/src/store/keys.rs",
            console: "patients/{id}",
            delivery: Delivery::NotAwaited,
        },
        Step {
            title: "Change it with a version that is not the stored one",
            command: format!(
                "{} {patients}/patients/{{id}} {json} -H 'if-match: \"7\"' {}",
                curl("-si -X PUT"),
                person("Ann Other", "ann")
            ),
            expected: " 412",
            explanation: "If-Match names the version that may be replaced. Whoever has read an older one changes nothing.",
            code: "apps/patient-service/src/http/preconditions.rs",
            console: "patients/{id}?edit=1",
            delivery: Delivery::NotAwaited,
        },
        Step {
            title: "Charge it",
            command: format!("{} {patients}/patients/{{id}}/billing/transactions {json} {charge}", curl("-si")),
            expected: " 201",
            explanation: "billing-service wrote an entry into its ledger; sent again, the same transactionId adds nothing.",
            code: "apps/billing-service/src/ledger.rs, store.rs",
            console: "journeys/{trace}",
            delivery: Delivery::NotAwaited,
        },
        Step {
            title: "Read its balance",
            command: format!("{} {patients}/patients/{{id}}/billing", curl("-s")),
            expected: "12000",
            explanation: "The sum of the ledger, in minor units, asked for over gRPC.",
            code: "protos/billing_service.proto, apps/patient-service/src/billing.rs",
            console: "patients/{id}",
            delivery: Delivery::NotAwaited,
        },
        Step {
            title: "Kill analytics-service, and register another patient",
            command: format!("just kill analytics-service && {bob}"),
            expected: " 201",
            explanation: "A registration does not need analytics: its event waits in the topic.",
            code: "docs/failures.md",
            console: "?part=analytics-service",
            delivery: Delivery::NotAwaited,
        },
        Step {
            title: "Start it again",
            command: up.to_owned(),
            expected: "The system runs.",
            explanation: "It went on from the offset of its last commit: nothing was lost, and nothing was counted twice.",
            code: "apps/analytics-service/src/state.rs",
            console: "journeys/{trace}",
            delivery: Delivery::After,
        },
        Step {
            title: "Delete the patient",
            command: format!("{} {patients}/patients/{{id}}", curl("-si -X DELETE")),
            expected: " 204",
            explanation: "One commit deleted the row and stored an event and the task to close the account, which the\n\
                          reconciler has billing-service do.",
            code: "apps/patient-service/src/reconciler.rs",
            console: "journeys/{trace}",
            delivery: Delivery::After,
        },
    ]
}

/// The stdout of a line of the shell; the error has its stderr. `token` is what `just token` prints in it.
fn shell(line: &str, token: Option<&str>) -> Result<String> {
    let own = env::current_exe()?;
    // `just` is this program here. It gets the settings of the system that runs, because `up` reads its environment.
    // One login serves all steps: auth-service limits how often one address may log in.
    let script =
        format!("just() {{ if [ \"$1\" = token ]; then echo \"$TOKEN\"; else \"$STACK\" \"$@\"; fi; }}; {line}");
    let output = Command::new("sh")
        .args(["-euc", &script])
        .env("STACK", own)
        .env("TOKEN", token.unwrap_or_default())
        .envs(service_settings::as_environment()?)
        .envs(settings::saved()?.unwrap_or_default())
        .output()?;
    let stdout = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    if output.status.success() {
        return Ok(stdout);
    }
    Err(anyhow!("{stdout}{}\nThis failed ({}).", String::from_utf8_lossy(&output.stderr), output.status))
}

/// The first lines of a command's output, without empty ones.
fn shown(output: &str) -> Vec<String> {
    let lines: Vec<_> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut shown: Vec<_> = lines.iter().take(MAX_LINES).map(|line| (*line).to_owned()).collect();
    if lines.len() > MAX_LINES {
        shown.push(format!("... {} more lines", lines.len() - MAX_LINES));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_what_curl_prints() {
        let mut known = Known::default();
        known.note(
            "HTTP/1.1 201 Created\nLocation: /patients/p1\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n\n{}",
        );
        assert_eq!(known.fill("{id} {trace}"), "p1 4bf92f3577b34da6a3ce929d0e0e4736");
        known.note("HTTP/1.1 201 Created\nlocation: /patients/p1/billing/transactions/t\n");
        assert_eq!(known.id, "p1", "a transaction is no patient");
    }

    #[test]
    fn every_place_in_the_code_exists() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let settings = Settings::of(config::Environment::empty()).unwrap();
        for step in steps(&settings, None, 0) {
            let mut folder = String::new();
            for place in step.code.split(", ") {
                // A name without a folder is beside the one before it.
                let path = if place.contains("src/") || !place.contains(".rs") {
                    place.to_owned()
                } else {
                    format!("{folder}/{place}")
                };
                assert!(std::path::Path::new(root).join(&path).exists(), "{path}");
                folder = path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
            }
        }
    }
}
