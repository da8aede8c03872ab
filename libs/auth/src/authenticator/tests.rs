use std::sync::{Mutex, atomic::AtomicUsize};

use serde_json::{Value as Json, json};
use testbed::tokens::{self, SigningKey, with};
use tide::{Response, StatusCode};
use web::{Problem, Router};

use super::*;
use crate::KeySource;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "patient-service";

/// An HTTP server with a JWK set that can be changed, and counts the requests.
#[derive(Clone)]
struct Issuer {
    answer: Arc<Mutex<(StatusCode, String)>>,
    requests: Arc<AtomicUsize>,
    address: std::net::SocketAddr,
    shutdown: Shutdown,
}

impl Issuer {
    fn start(keys: &[&SigningKey]) -> Self {
        let mut reader = config::Reader::new(config::Environment::empty().with("SERVER_PORT", "0"));
        let server = web::Server::bind(&web::Settings::read(&mut reader, "0")).unwrap();
        let issuer = Self {
            answer: Arc::new(Mutex::new((StatusCode::Ok, String::new()))),
            requests: Arc::default(),
            address: server.address(),
            shutdown: Shutdown::new(),
        };
        issuer.publish(keys);
        let app = Router::new(issuer.clone()).get("/keys", keys_page).get("/elsewhere", keys_page).build();
        runtime::spawn(server.serve(app, issuer.shutdown.clone())).detach();
        issuer
    }

    fn publish(&self, keys: &[&SigningKey]) {
        self.answer(StatusCode::Ok, tokens::jwk_set(keys.iter().copied()).to_string());
    }

    fn answer(&self, status: StatusCode, body: String) {
        *self.answer.lock().unwrap() = (status, body);
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn authenticator(&self, intervals: Intervals) -> Authenticator {
        let url = format!("http://{}/keys", self.address).parse().unwrap();
        Authenticator::with_intervals(settings(KeySource::Url(url, None)), intervals)
    }
}

async fn keys_page(request: tide::Request<Issuer>) -> Result<Response, Problem> {
    let issuer = request.state();
    issuer.requests.fetch_add(1, Ordering::SeqCst);
    let (status, body) = issuer.answer.lock().unwrap().clone();
    let mut response = web::text("application/json", body);
    response.set_status(status);
    if status.is_redirection() {
        response.insert_header("location", "/elsewhere");
    }
    Ok(response)
}

fn settings(keys: KeySource) -> JwtSettings {
    JwtSettings { issuer: ISSUER.to_owned(), audience: AUDIENCE.to_owned(), keys }
}

fn claims() -> Json {
    tokens::claims(ISSUER, AUDIENCE, "ann", "patients:read")
}

/// An authenticator with the keys of a file, fetched once.
async fn with_keys(keys: &Json) -> (testbed::Scratch, Authenticator) {
    let scratch = testbed::Scratch::new().unwrap();
    let file = scratch.path().join("keys.json");
    std::fs::write(&file, keys.to_string()).unwrap();
    let authenticator = Authenticator::with_intervals(settings(KeySource::File(file)), INTERVALS);
    authenticator.tokens.as_ref().unwrap().fetch().await;
    (scratch, authenticator)
}

async fn check(authenticator: &Authenticator, token: &str) -> Result<Caller, Rejection> {
    authenticator.caller([format!("Bearer {token}").as_str()]).await
}

/// 200 or 401, or 503.
async fn status(authenticator: &Authenticator, token: &str) -> u16 {
    match check(authenticator, token).await {
        Ok(_) => 200,
        Err(Rejection::NoKeys) => 503,
        Err(_) => 401,
    }
}

fn run<T>(work: impl Future<Output = T> + Send) -> T
where
    T: Send,
{
    runtime::block_on(1, work)
}

#[test]
fn tokens_of_each_algorithm_are_valid_and_name_their_caller() {
    run(async {
        let keys = [SigningKey::es256("e"), SigningKey::ed25519("d"), SigningKey::rs256("r")];
        let (_scratch, authenticator) = with_keys(&tokens::jwk_set(&keys)).await;
        for key in &keys {
            let token = key.token(&with(claims(), &json!({"azp": "app"})));
            for _ in 0..2 {
                let Ok(Caller::Client(identity)) = check(&authenticator, &token).await else { panic!("{key:?}") };
                assert_eq!((&*identity.issuer, &*identity.subject), (ISSUER, "ann"));
                assert_eq!(identity.client.as_deref(), Some("app"));
            }
        }
    });
}

#[test]
fn forged_and_foreign_tokens_are_rejected() {
    run(async {
        let (es, rs, foreign) = (SigningKey::es256("e"), SigningKey::rs256("r"), SigningKey::es256("e"));
        let (_scratch, authenticator) = with_keys(&tokens::jwk_set([&es, &rs])).await;
        let valid = es.token(&claims());
        assert_eq!(status(&authenticator, &valid).await, 200);
        let (message, signature) = valid.rsplit_once('.').unwrap();
        let (header, payload) = message.split_once('.').unwrap();
        let flipped = if signature.starts_with('A') { "B" } else { "A" };
        let unsigned = es.signed(&json!({"alg": "none"}), &claims());
        let now = tokens::now();
        let rejected = [
            ("signed by another key with the same id", foreign.token(&claims())),
            ("flipped signature", format!("{message}.{flipped}{}", &signature[1..])),
            ("no signature", format!("{message}.")),
            ("other claims", format!("{header}.{payload}A.{signature}")),
            ("alg none", format!("{}.", unsigned.rsplit_once('.').unwrap().0)),
            ("alg none with a signature", unsigned),
            ("HS256", es.signed(&json!({"alg": "HS256", "kid": "e"}), &claims())),
            ("RS256 with the EC key's id", es.signed(&json!({"alg": "RS256", "kid": "e"}), &claims())),
            ("ES256 with the RSA key's id", es.signed(&json!({"alg": "ES256", "kid": "r"}), &claims())),
            ("RS512", rs.signed(&json!({"alg": "RS512", "kid": "r"}), &claims())),
            ("crit", es.signed(&json!({"alg": "ES256", "kid": "e", "crit": ["x"], "x": 1}), &claims())),
            ("jwk", foreign.signed(&json!({"alg": "ES256", "kid": "e", "jwk": foreign.jwk()}), &claims())),
            ("expired", es.token(&with(claims(), &json!({"exp": now - LEEWAY - 5})))),
            ("not valid yet", es.token(&with(claims(), &json!({"nbf": now + LEEWAY + 60})))),
            ("nbf is a text", es.token(&with(claims(), &json!({"nbf": "0"})))),
            ("no exp", es.token(&with(claims(), &json!({"exp": null})))),
            ("exp is a text", es.token(&with(claims(), &json!({"exp": "9999999999"})))),
            ("exp below 0", es.token(&with(claims(), &json!({"exp": -1})))),
            ("other issuer", es.token(&with(claims(), &json!({"iss": "https://other"})))),
            ("no issuer", es.token(&with(claims(), &json!({"iss": null})))),
            ("list of issuers", es.token(&with(claims(), &json!({"iss": [ISSUER]})))),
            ("other audience", es.token(&with(claims(), &json!({"aud": "billing-service"})))),
            ("no audience", es.token(&with(claims(), &json!({"aud": null})))),
            ("empty list of audiences", es.token(&with(claims(), &json!({"aud": []})))),
            ("no subject", es.token(&with(claims(), &json!({"sub": null})))),
            ("ID token", es.token(&with(claims(), &json!({"at_hash": "x"})))),
            ("too long", es.token(&with(claims(), &json!({"x": "y".repeat(MAX_TOKEN)})))),
            ("two parts", message.to_owned()),
            ("four parts", format!("{valid}.x")),
            ("empty parts", "..".to_owned()),
        ];
        for (what, token) in rejected {
            assert_eq!(status(&authenticator, &token).await, 401, "{what}");
        }
        let accepted = [
            ("expired within the leeway", es.token(&with(claims(), &json!({"exp": now - LEEWAY + 10})))),
            ("valid within the leeway", es.token(&with(claims(), &json!({"nbf": now + LEEWAY - 10})))),
            ("audience in a list", es.token(&with(claims(), &json!({"aud": ["account", AUDIENCE]})))),
            ("exp with a fraction", es.token(&with(claims(), &json!({"exp": now as f64 + 60.5})))),
            ("the only key of its algorithm", es.signed(&json!({"alg": "ES256"}), &claims())),
            ("jku and x5u", es.signed(&json!({"alg": "ES256", "kid": "e", "jku": "x", "x5u": "y"}), &claims())),
        ];
        for (what, token) in accepted {
            assert_eq!(status(&authenticator, &token).await, 200, "{what}");
        }
    });
}

#[test]
fn only_one_bearer_token_is_a_token() {
    run(async {
        let key = SigningKey::es256("e");
        let (_scratch, authenticator) = with_keys(&tokens::jwk_set([&key])).await;
        let token = key.token(&claims());
        let good = [format!("Bearer {token}"), format!("bearer   {token}")];
        for value in &good {
            assert!(authenticator.caller([value.as_str()]).await.is_ok(), "{value}");
        }
        for value in ["", "Bearer", "Basic YTpi", "Bearer a b", "Bearer ", &token, &format!("Bearer {token} x")] {
            assert!(authenticator.caller([value]).await.is_err(), "{value}");
        }
        assert_eq!(authenticator.caller([]).await, Err(Rejection::Missing));
        assert!(authenticator.caller([good[0].as_str(), good[0].as_str()]).await.is_err(), "twice");
    });
}

#[test]
fn a_remembered_token_ends_with_its_time_and_with_its_key() {
    run(async {
        let (old, new) = (SigningKey::es256("old"), SigningKey::es256("new"));
        let issuer = Issuer::start(&[&old]);
        let authenticator = issuer.authenticator(INTERVALS);
        let tokens = authenticator.tokens.clone().unwrap();
        tokens.fetch().await;
        let ending = old.token(&with(claims(), &json!({"exp": tokens::now() - LEEWAY + 1})));
        let lasting = old.token(&claims());
        assert_eq!((status(&authenticator, &ending).await, status(&authenticator, &lasting).await), (200, 200));
        let deadline = Instant::now() + Duration::from_secs(10);
        while status(&authenticator, &ending).await == 200 {
            assert!(Instant::now() < deadline, "a remembered token does not expire");
            smol::Timer::after(Duration::from_millis(50)).await;
        }
        issuer.publish(&[&new]);
        assert_eq!(
            status(&authenticator, &new.token(&claims())).await,
            200,
            "the new key is fetched at its first token"
        );
        assert_eq!(status(&authenticator, &lasting).await, 401, "the key was removed");
        issuer.shutdown.trigger();
    });
}

#[test]
fn many_tokens_with_unknown_keys_cost_one_fetch() {
    run(async {
        let (known, unknown) = (SigningKey::es256("known"), SigningKey::es256("unknown"));
        let issuer = Issuer::start(&[&known]);
        let authenticator = issuer.authenticator(INTERVALS);
        authenticator.tokens.as_ref().unwrap().fetch().await;
        let calls: Vec<_> = (0..100)
            .map(|number| {
                let claims = with(claims(), &json!({"sub": format!("s{number}")}));
                let header = json!({"alg": "ES256", "kid": format!("k{number}")});
                let (authenticator, token) = (authenticator.clone(), unknown.signed(&header, &claims));
                runtime::spawn(async move { status(&authenticator, &token).await })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await, 401);
        }
        assert_eq!(issuer.requests(), 2, "at the start, and once for all of them");
        issuer.shutdown.trigger();
    });
}

#[test]
fn a_client_that_disconnects_does_not_cancel_the_fetch_for_others() {
    run(async {
        let (old, new) = (SigningKey::es256("old"), SigningKey::es256("new"));
        let issuer = Issuer::start(&[&old]);
        let authenticator = issuer.authenticator(INTERVALS);
        authenticator.tokens.as_ref().unwrap().fetch().await;
        issuer.publish(&[&new]);
        let token = new.token(&claims());
        assert_eq!(smol::future::poll_once(check(&authenticator, &token)).await, None, "it waits for the keys");
        assert_eq!(status(&authenticator, &token).await, 200);
        assert_eq!(issuer.requests(), 2, "at the start, and once for both");
        issuer.shutdown.trigger();
    });
}

#[test]
fn an_issuer_that_is_down_costs_new_keys_alone_for_as_long_as_the_old_are_kept() {
    run(async {
        let key = SigningKey::es256("e");
        let issuer = Issuer::start(&[&key]);
        let cold = issuer.authenticator(INTERVALS);
        issuer.answer(StatusCode::InternalServerError, String::new());
        assert!(!cold.tokens.as_ref().unwrap().fetch().await);
        assert_eq!(status(&cold, &key.token(&claims())).await, 503);
        assert!(cold.trouble().unwrap().contains("500"), "{:?}", cold.trouble());

        issuer.publish(&[&key]);
        let warm = issuer.authenticator(Intervals { keep: Duration::from_millis(300), ..INTERVALS });
        warm.tokens.as_ref().unwrap().fetch().await;
        issuer.answer(StatusCode::Ok, "no JWK set".to_owned());
        assert!(warm.tokens.as_ref().unwrap().fetch().await, "the good keys are kept");
        let token = key.token(&claims());
        assert_eq!((status(&warm, &token).await, warm.trouble()), (200, None));
        let deadline = Instant::now() + Duration::from_secs(10);
        while status(&warm, &token).await == 200 {
            assert!(Instant::now() < deadline, "old keys are used without end");
            smol::Timer::after(Duration::from_millis(20)).await;
        }
        assert_eq!(status(&warm, &token).await, 503);
        issuer.shutdown.trigger();
    });
}

#[test]
fn keys_are_fetched_again_at_intervals_and_at_once_after_failures() {
    run(async {
        let (old, new) = (SigningKey::ed25519("old"), SigningKey::ed25519("new"));
        let issuer = Issuer::start(&[&old]);
        issuer.answer(StatusCode::NotFound, String::new());
        let short = Duration::from_millis(5);
        let intervals =
            Intervals { refresh: short, on_demand: Duration::from_secs(3600), retry: (short, short), ..INTERVALS };
        let authenticator = issuer.authenticator(intervals);
        let (fetching, shutdown) = (authenticator.clone(), Shutdown::new());
        let running = runtime::spawn(fetching.run(shutdown.clone()));
        let deadline = Instant::now() + Duration::from_secs(10);
        let wait_for = async |key: &SigningKey, expected: u16| {
            let token = key.token(&claims());
            while status(&authenticator, &token).await != expected {
                assert!(Instant::now() < deadline, "{key:?} is not {expected}");
                smol::Timer::after(Duration::from_millis(5)).await;
            }
        };
        wait_for(&old, 503).await;
        issuer.publish(&[&old]);
        wait_for(&old, 200).await;
        issuer.publish(&[&new]);
        wait_for(&old, 401).await;
        wait_for(&new, 200).await;
        shutdown.trigger();
        running.await;
        issuer.shutdown.trigger();
    });
}

#[test]
fn a_redirect_and_a_set_that_is_too_long_are_no_keys() {
    run(async {
        let key = SigningKey::es256("e");
        let issuer = Issuer::start(&[&key]);
        let authenticator = issuer.authenticator(INTERVALS);
        let tokens = authenticator.tokens.clone().unwrap();
        let set = tokens::jwk_set([&key]).to_string();
        issuer.answer(StatusCode::Found, set.clone());
        assert!(!tokens.fetch().await, "a redirect");
        assert_eq!(issuer.requests(), 1, "it is not followed");
        issuer.answer(StatusCode::Ok, format!("{set}{}", " ".repeat(64 * 1024)));
        assert!(!tokens.fetch().await, "more than 64 KiB");
        issuer.answer(StatusCode::Ok, set);
        assert!(tokens.fetch().await);
        issuer.shutdown.trigger();
    });
}

#[test]
fn keys_that_cannot_be_used_cost_no_other_key() {
    run(async {
        let good = SigningKey::es256("good");
        let change = |others: Json| with(good.jwk(), &others);
        let keys = json!({"keys": [
            7,
            {"kty": "oct", "k": "c2VjcmV0", "kid": "good", "alg": "HS256"},
            {"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "small"},
            {"kty": "unknown"},
            change(json!({"kid": "encryption", "use": "enc"})),
            change(json!({"kid": "signing", "use": null, "key_ops": ["sign"]})),
            change(json!({"kid": "curve", "crv": "P-384", "alg": "ES384"})),
            change(json!({"kid": "mismatch", "alg": "RS256"})),
            change(json!({"kid": "short", "x": "AAAA"})),
            change(json!({})),
        ]});
        let (_scratch, authenticator) = with_keys(&keys).await;
        assert_eq!(authenticator.tokens.as_ref().unwrap().current().unwrap().set.skipped, 9);
        assert_eq!(status(&authenticator, &good.token(&claims())).await, 200);
        for id in ["encryption", "signing", "curve", "mismatch", "short"] {
            let token = good.signed(&json!({"alg": "ES256", "kid": id}), &claims());
            assert_eq!(status(&authenticator, &token).await, 401, "{id}");
        }
    });
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}", parts in "[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,90}") {
        let key = SigningKey::es256("e");
        let set = KeySet::parse(tokens::jwk_set([&key]).to_string().as_bytes(), &settings(KeySource::File("".into()))).unwrap();
        let authenticator = Authenticator::with_intervals(settings(KeySource::File("".into())), INTERVALS);
        authenticator.tokens.as_ref().unwrap().replace(set);
        for token in [text, parts] {
            proptest::prop_assert!(smol::block_on(check(&authenticator, &token)).is_err());
        }
    }
}
