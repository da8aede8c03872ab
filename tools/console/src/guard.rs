//! Which requests are let through. The console listens on loopback, where every page of every site can send requests through a
//! browser of this machine; these rules keep such pages out.
//!
//! - `Host` must be loopback: a foreign name that leads here (DNS rebinding) gets nothing;
//! - a write must come from a page of ours: equal `Origin`, `Sec-Fetch-Site: same-origin`, JSON and [`HEADER`], which a
//!   form cannot send, and a script of another origin only after a preflight that is never answered;
//! - requests of programs (OTLP, the agent's polls) must not come from a browser at all.

use tide::{Request, StatusCode, http::Method};
use web::Problem;

/// A header that a write of the page must have.
pub(crate) const HEADER: &str = "x-console";

/// The headers of every response.
pub(crate) const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];

/// The paths of requests that programs send. Their `Host` may be any name: in containers it is that of the service.
const PROGRAM_PATHS: [&str; 2] = ["/v1/", "/agent/"];

/// Lets a request through.
///
/// # Errors
/// 403 with the rule that it breaks.
pub(crate) fn check<S>(request: &Request<S>) -> Result<(), Problem> {
    let path = request.url().path();
    if PROGRAM_PATHS.iter().any(|prefix| path.starts_with(prefix)) {
        let from_browser =
            ["origin", "sec-fetch-site", "sec-fetch-mode"].iter().any(|name| request.header(*name).is_some());
        return if from_browser { Err(forbidden("A browser may not send this.")) } else { Ok(()) };
    }
    let host = single_header(request, "host").filter(|host| is_loopback(host));
    let host = host.ok_or_else(|| forbidden("The Host of the request must be this machine's loopback."))?;
    let site = single_header(request, "sec-fetch-site");
    if matches!(request.method(), Method::Get | Method::Head) {
        let foreign = path.starts_with("/api/") && site.is_some_and(|site| !["same-origin", "none"].contains(&site));
        return if foreign { Err(forbidden("Another site may not read this.")) } else { Ok(()) };
    }
    let same_origin =
        single_header(request, "origin").is_some_and(|origin| origin.eq_ignore_ascii_case(&format!("http://{host}")));
    let media_type = single_header(request, "content-type").and_then(|value| value.split(';').next()).map(str::trim);
    let rules = [
        (same_origin, "A write must come from the console's own page: its Origin is another one."),
        (site == Some("same-origin"), "A write must have Sec-Fetch-Site: same-origin."),
        (
            media_type.is_some_and(|value| value.eq_ignore_ascii_case("application/json")),
            "A write must be application/json.",
        ),
        (single_header(request, HEADER).is_some(), "A write must have the header x-console."),
    ];
    match rules.iter().find(|(is_kept, _)| !is_kept) {
        Some((_, why)) => Err(forbidden(why)),
        None => Ok(()),
    }
}

fn forbidden(why: &str) -> Problem {
    Problem::new(StatusCode::Forbidden, why).kind("cross-origin")
}

/// The value of a header that occurs exactly once.
pub(crate) fn single_header<'a, S>(request: &'a Request<S>, name: &str) -> Option<&'a str> {
    let mut values = request.header(name)?.iter();
    let value = values.next()?.as_str();
    values.next().is_none().then_some(value)
}

/// Whether a `Host` names the loopback of the machine that the browser is on.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|loopback| name.eq_ignore_ascii_case(loopback))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_from_other_hosts() {
        for host in ["127.0.0.1", "127.0.0.1:4010", "localhost:4010", "LOCALHOST", "[::1]:4010", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "console:4010",
            "127.0.0.1.example.org",
            "localhost.example.org:4010",
            "10.0.0.1:4010",
            "::1",
            "127.0.0.1:x",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
