//! Plausible patients whose address and email mark them as samples.

use serde::Serialize;
use uuid::Uuid;

const FIRST: [&str; 24] = [
    "Ada", "Amir", "Anna", "Carlos", "Chen", "Chloé", "Daniel", "Elif", "Emma", "Fatima", "Grace", "Hiroshi", "Ines",
    "Ivan", "Jonas", "Kwame", "Leila", "Luca", "Maria", "Noah", "Olga", "Priya", "Sofia", "Yusuf",
];
const LAST: [&str; 24] = [
    "Abadi", "Almeida", "Bauer", "Costa", "Dubois", "Fischer", "García", "Hansen", "Ito", "Jansen", "Kaya", "Kowalski",
    "Li", "Mensah", "Moreau", "Nakamura", "Novak", "O'Brien", "Okafor", "Patel", "Rossi", "Silva", "Svensson", "Weber",
];
const STREETS: [&str; 8] = [
    "Main Street",
    "Station Road",
    "Church Lane",
    "Park Avenue",
    "Mill Road",
    "High Street",
    "Garden Close",
    "Harbour View",
];
const TOWNS: [&str; 8] =
    ["Springfield", "Riverton", "Lakeside", "Ashford", "Milltown", "Fairview", "Oakdale", "Newport"];

/// A patient's data as patient-service takes them.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    name: String,
    email: String,
    address: String,
    date_of_birth: String,
}

/// A sample with this prefix to its name, for what programs register.
pub(crate) fn with_prefix(prefix: &str) -> Sample {
    let sample = patient();
    Sample { name: format!("{prefix} {}", sample.name), ..sample }
}

/// Another patient each time. The address and the email say that it is a sample; the email is unique.
pub fn patient() -> Sample {
    let one = |of: &[&'static str]| of[fastrand::usize(..of.len())];
    let (first, last) = (one(&FIRST), one(&LAST));
    let plain = |text: &str| text.to_lowercase().chars().filter(char::is_ascii_alphabetic).collect::<String>();
    let unique = Uuid::now_v7().simple().to_string();
    Sample {
        name: format!("{first} {last}"),
        email: format!("{}.{}.{}@sample.example", plain(first), plain(last), &unique[12..]),
        address: format!("Sample: {} {}, {}", fastrand::u8(1..120), one(&STREETS), one(&TOWNS)),
        date_of_birth: format!("{}-{:02}-{:02}", fastrand::u16(1935..2020), fastrand::u8(1..=12), fastrand::u8(1..=28)),
    }
}
