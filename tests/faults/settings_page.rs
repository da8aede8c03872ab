//! Compares `docs/settings.md` with the `--help` of the binaries. `just settings` generates the tables.

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::Path, process::Command};

use testbed::{output, service::binaries};

const SERVICES: [&str; 4] = ["patient-service", "billing-service", "analytics-service", "auth-service"];

/// The lines before and after the generated tables.
const BEGIN: &str = "<!-- Generated from --help by `just settings`. -->";
const END: &str = "<!-- End of what is generated. -->";

/// A setting in the `--help` of one service.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    names: String,
    meaning: String,
    value: String,
    default: String,
}

/// A row of a table: a setting, and the services that have it.
struct Row {
    services: Vec<&'static str>,
    setting: Setting,
}

#[test]
fn the_settings_page_matches_every_help_text() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/settings.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page has no line before the tables");
    let (written, after) = rest.split_once(END).expect("the page has no line after the tables");
    let generated = format!("\n\n{}\n", tables());
    if env::var_os("WRITE_SETTINGS_PAGE").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{generated}{END}{after}")).unwrap();
        return;
    }
    let differs = written.lines().zip(generated.lines()).find(|(written, generated)| written != generated);
    assert!(written == generated, "docs/settings.md differs from --help; run `just settings`: {differs:?}");
}

/// One table for each set of services that share settings, and one for the settings of OpenTelemetry.
fn tables() -> String {
    let mut tables: Vec<(String, Vec<Row>)> = Vec::new();
    for row in rows() {
        let title = if row.setting.names.starts_with("OTEL_") {
            "Export to a collector of OpenTelemetry, in all services".to_owned()
        } else if row.services == SERVICES {
            "All services".to_owned()
        } else {
            row.services.join(" and ")
        };
        match tables.iter_mut().find(|(other, _)| *other == title) {
            Some((_, rows)) => rows.push(row),
            None => tables.push((title, vec![row])),
        }
    }
    // First the settings of most services; those of OpenTelemetry last.
    tables.sort_by_key(|(title, rows)| (title.starts_with("Export"), usize::MAX - rows[0].services.len()));
    let mut text = String::new();
    for (title, rows) in tables {
        write!(text, "### {title}\n\n| setting | default | value | meaning |\n|---|---|---|---|\n").unwrap();
        for Row { setting: Setting { names, meaning, value, default }, .. } in rows {
            let names = names.replace(", ", "`, `");
            writeln!(text, "| `{names}` | {default} | {} | {} |", cell(&value), cell(&meaning)).unwrap();
        }
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Every setting of every service, in the order of `--help`. Different defaults are listed side by side.
fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut defaults: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for service in SERVICES {
        let output = output(Command::new(binaries().unwrap().join(service)).arg("--help").env_clear()).unwrap();
        let settings = settings(&String::from_utf8(output.stdout).unwrap());
        assert!(!settings.is_empty(), "{service} --help lists no settings");
        for setting in settings {
            let known_defaults = defaults.entry(setting.names.clone()).or_default();
            if !known_defaults.contains(&setting.default) {
                known_defaults.push(setting.default.clone());
            }
            let same = |row: &&mut Row| row.setting.names == setting.names;
            match rows.iter_mut().find(same) {
                Some(row) => {
                    let (value, meaning) = (&row.setting.value, &row.setting.meaning);
                    assert!(*value == setting.value && *meaning == setting.meaning, "{service}: {setting:?}");
                    row.services.push(service);
                }
                None => rows.push(Row { services: vec![service], setting }),
            }
        }
    }
    for row in &mut rows {
        row.setting.default = defaults[&row.setting.names].join(", ");
    }
    rows
}

/// Parses the settings in `--help`: a line with the names, and a line below it with meaning, value and default.
fn settings(help: &str) -> Vec<Setting> {
    let (_, environment) = help.split_once("\nEnvironment:\n").unwrap_or_default();
    let lines: Vec<&str> = environment.lines().collect();
    let setting = |pair: &[&str]| {
        let (about, note) = pair[1].trim().strip_suffix(')')?.rsplit_once(" (")?;
        let (meaning, value) = about.rsplit_once(": ")?;
        let default = match note.split_once(' ') {
            Some(("default", default)) => format!("`{default}`"),
            _ if note.starts_with("required") => "required".to_owned(),
            _ => String::new(),
        };
        Some(Setting {
            names: pair[0].trim().to_owned(),
            meaning: meaning.to_owned(),
            value: value.to_owned(),
            default,
        })
    };
    lines.chunks_exact(2).map(|pair| setting(pair).unwrap_or_else(|| panic!("not a setting: {pair:?}"))).collect()
}

#[test]
fn settings_are_parsed_from_help() {
    let help = "a 1: b\n\nUsage: a\n\nEnvironment:\n  PORT, SERVER_PORT\n      the port: a number from 0 (any) to 9 (default 4)\n\
        \x20 URL\n      a database: postgres://host (required, e.g. postgres://x)\n  NAME\n      name: text (optional)\n";
    let setting = |names: &str, meaning: &str, value: &str, default: &str| Setting {
        names: names.to_owned(),
        meaning: meaning.to_owned(),
        value: value.to_owned(),
        default: default.to_owned(),
    };
    let expected = [
        setting("PORT, SERVER_PORT", "the port", "a number from 0 (any) to 9", "`4`"),
        setting("URL", "a database", "postgres://host", "required"),
        setting("NAME", "name", "text", ""),
    ];
    assert_eq!(settings(help), expected);
}
