//! The query of `GET /patients`, with the routes of patient-service: either every parameter is valid and the database is
//! queried, or each invalid one is named.

use std::sync::{Arc, LazyLock};

use config::{Environment, Reader};
use form_urlencoded::parse;
use patient_service::{
    Settings,
    billing::Billing,
    completed_tasks::completed_tasks,
    http::{App, cursor, routes},
    registry::Registry,
    relay::RelayWaker,
    store::{Direction, Order, SortField, Store},
};
use postgres::Database;
use runtime::Notify;
use serde_json::Value as Json;
use tide::http::{Method, Request, Url};

const FIELDS: [(&str, SortField); 5] = [
    ("id", SortField::Id),
    ("name", SortField::Name),
    ("email", SortField::Email),
    ("dateOfBirth", SortField::DateOfBirth),
    ("registeredDate", SortField::RegisteredDate),
];

/// The service with an unreachable database: 503 means that the database would have been queried.
static SERVICE: LazyLock<web::App<App>> = LazyLock::new(|| {
    let environment = Environment::empty().with("DATABASE_URL", "postgres://x@localhost/x?host=/dev/null");
    let settings = Settings::read(&mut Reader::new(environment));
    let billing = Arc::new(Billing::new(settings.billing).expect("it has an address"));
    let store = Store::new(Database::new(settings.database));
    let (done, _) = completed_tasks();
    let registry = Registry::new(store, billing.clone(), done, RelayWaker::new(1), Arc::new(Notify::new()));
    let edge = web::Edge::new(&settings.http, auth::Authenticator::off());
    routes(App::new(registry, billing, settings.http.limits), edge).build()
});

/// Sends the request.
pub fn check(bytes: &[u8]) {
    let Ok(query) = std::str::from_utf8(bytes) else { return };
    let Ok(url) = Url::parse(&format!("http://localhost/patients?{query}")) else { return };
    let given = Given(parse(url.query().unwrap_or_default().as_bytes()).into_owned().collect());
    let (status, body) = runtime::block_on(1, async {
        let mut response = SERVICE.respond(Request::new(Method::Get, url)).await;
        (u16::from(response.status()), response.take_body().into_bytes().await.expect("it is in memory"))
    });
    let body: Json = serde_json::from_slice(&body).expect("every answer is JSON");
    let wrong = given.wrong();
    match status {
        // A search that can match nothing does not query the database.
        200 | 503 => assert!(wrong.is_empty(), "{wrong:?} should be rejected: {body}"),
        400 => {
            let reported: Vec<_> = body["errors"].as_object().expect("they are named").keys().collect();
            assert!(reported.iter().all(|name| wrong.contains(&name.as_str())), "{reported:?} should be {wrong:?}");
            assert_eq!(reported.len(), wrong.len(), "{reported:?} should be {wrong:?}");
        }
        _ => panic!("{status}: {body}"),
    }
}

/// The parameters, validated independently by the rules of the OpenAPI document.
struct Given(Vec<(String, String)>);

impl Given {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rfind(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The last value that is not empty.
    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().rfind(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// The sorted names of the invalid parameters.
    fn wrong(&self) -> Vec<&'static str> {
        let pages = self.get("page").is_some() || self.get("size").is_some();
        let number = |name, max: i64| {
            let Some(text) = self.get(name) else { return Some(None) };
            text.parse().ok().filter(|number| (1..=max).contains(number)).map(Some)
        };
        let (limit, page, size) = (number("limit", 1000), number("page", 100_001), number("size", 1000));
        let has_nul = |name| self.text(name).is_some_and(|text| text.contains('\0'));

        let unless_given = if pages { "name" } else { "id" };
        let field = field(self.text("sortField").unwrap_or(unless_given));
        let sort = self.text("sort");
        let order = match sort {
            None | Some("asc" | "desc") => Some(field),
            Some(sort) => self::field(sort.strip_prefix('-').unwrap_or(sort)).map(Some),
        };
        let is_descending = order.is_some() && sort.is_some_and(|sort| sort == "desc" || sort.starts_with('-'));
        let direction = if is_descending { Direction::Descending } else { Direction::Ascending };
        let wrong_cursor = |text| {
            let field = order.flatten().or(field).unwrap_or(if pages { SortField::Name } else { SortField::Id });
            !is_cursor(text, Order { field, direction })
        };
        let skip = page.flatten().unwrap_or(1).saturating_sub(1) * size.flatten().unwrap_or(10);
        [
            ("limit", limit.is_none()),
            ("page", pages && (page.is_none() || skip > 100_000)),
            ("size", pages && size.is_none()),
            ("sort", order.is_none()),
            ("sortField", field.is_none()),
            ("search", has_nul("search")),
            ("searchValue", has_nul("searchValue")),
            ("cursor", !pages && self.text("cursor").is_some_and(wrong_cursor)),
        ]
        .into_iter()
        .filter_map(|(name, is_wrong)| is_wrong.then_some(name))
        .collect()
    }
}

/// The field that patients are sorted by under this name.
pub(crate) fn field(name: &str) -> Option<SortField> {
    FIELDS.iter().find(|(field, _)| *field == name).map(|(_, field)| *field)
}

/// Whether it is a cursor of this order. Then its encoding is unique, and PostgreSQL accepts its values.
fn is_cursor(text: &str, order: Order) -> bool {
    let Ok(position) = cursor::decode(text, order) else { return false };
    assert_eq!(cursor::encode(&position, order), text);
    assert!(!position.sort_key.contains('\0'), "{position:?}");
    if matches!(order.field, SortField::DateOfBirth | SortField::RegisteredDate) {
        // PostgreSQL has no year 0.
        let year: Option<u16> = position.sort_key.get(..4).and_then(|year| year.parse().ok());
        assert!(position.sort_key.len() == 10 && year.is_some_and(|year| year > 0), "{position:?}");
    }
    true
}
