//! schemathesis with our OpenAPI document. `just contract` downloads schemathesis and runs these tests.

use std::{env, path::Path};

use testbed::broker::Kind;

use crate::fresh_system::system;

mod on_kafka {
    #[test]
    #[ignore = "needs schemathesis: just contract"]
    fn the_service_conforms_to_its_openapi_document() {
        super::the_service_conforms_to_its_openapi_document(testbed::broker::Kind::Kafka);
    }
}

mod on_nisshi {
    #[test]
    #[ignore = "needs schemathesis: just contract"]
    fn the_service_conforms_to_its_openapi_document() {
        super::the_service_conforms_to_its_openapi_document(testbed::broker::Kind::Nisshi);
    }
}

fn the_service_conforms_to_its_openapi_document(kind: Kind) {
    runtime::block_on(2, async {
        let program =
            env::var_os("SCHEMATHESIS").expect("SCHEMATHESIS is the path of the program: just contract sets it");
        let system = system(kind, &[]).await;
        let document = format!("{}/v3/api-docs", system.patient_client().base());
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contract");
        let status = smol::unblock(move || {
            testbed::command(program)
                .unwrap()
                .args(["--config-file", "schemathesis.toml", "run", &document])
                .args([
                    "--max-examples",
                    "25",
                    "--continue-on-failure",
                    "--no-color",
                    "--generation-database",
                    "none",
                    "--seed",
                    "1",
                ])
                // Seconds for the random phases.
                .args(["--max-time", "40"])
                .current_dir(folder)
                .envs([("SCHEMATHESIS_HOOKS", "hooks"), ("PYTHONPATH", "."), ("PYTHONDONTWRITEBYTECODE", "1")])
                .status()
        });
        assert!(status.await.unwrap().success(), "see the report above");
    });
}
