//! Tokens that PyJWT and Authlib have signed, in the shape of Keycloak's too; `tokens/make.py` has made them.

use serde_json::Value as Json;

use crate::support::Secured;

#[test]
fn tokens_of_other_libraries_have_their_answer() {
    runtime::block_on(2, async {
        let keys: Json = serde_json::from_str(include_str!("tokens/keys.json")).unwrap();
        let tokens: Json = serde_json::from_str(include_str!("tokens/tokens.json")).unwrap();
        let service = Secured::with_keys("patient-service", &keys).await;
        let account = "/patients/01890a5d-ac96-774b-bcce-b302099a8057/billing";
        // Reading patients, and an account of nobody.
        let checks = [
            ("PyJWT RS256", 200, 403),
            ("PyJWT ES256", 200, 403),
            ("PyJWT EdDSA", 200, 403),
            ("Authlib RS256", 200, 403),
            ("Authlib ES256", 200, 403),
            ("Authlib EdDSA", 200, 403),
            ("Keycloak", 200, 404),
            ("Keycloak ID", 401, 401),
            ("Keycloak refresh", 401, 401),
            ("PyJWT HS256 with the name of the RSA key", 401, 401),
            ("PyJWT PS256", 401, 401),
        ];
        assert_eq!(checks.len(), tokens.as_object().unwrap().len(), "a token has no check");
        for (name, patients, billing) in checks {
            let token = tokens[name].as_str().unwrap_or_else(|| panic!("{name} is missing"));
            let (read, account) = (service.get("/patients", token).await, service.get(account, token).await);
            assert_eq!((read.status, account.status), (patients, billing), "{name}: {}", read.text());
        }
    });
}
