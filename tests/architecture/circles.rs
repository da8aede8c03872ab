//! The modules of a crate have no cyclic dependencies.
//!
//! A module and its submodules may use each other, as `http.rs` and `http/patients.rs` do. Dependencies are found as text, by
//! paths with `crate::` and `super::`, also by names that another module re-exports; those in macro expansions are not found.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::{members, sources};

/// The path of a module in its crate; empty for the root.
type Module = Vec<String>;

#[test]
fn modules_of_a_crate_use_each_other_in_one_direction() {
    let members = members();
    let found = members.iter().map(|(name, (directory, _))| (name, circles(&uses(&directory.join("src")))));
    let found: Vec<_> = found.filter(|(_, circles)| !circles.is_empty()).collect();
    assert!(found.is_empty(), "circles between modules: {found:?}");
}

#[test]
fn a_circle_is_found() {
    let scratch = std::env::temp_dir().join(format!("circles-{}", std::process::id()));
    for folder in ["http", "timer"] {
        fs::create_dir_all(scratch.join(folder)).unwrap();
    }
    let files = [
        (
            "lib.rs",
            "mod http; mod store; mod domain;\npub use store::Store;\npub use timer::Timer;\npub use tracing::Level;",
        ),
        ("http.rs", "mod patients; use crate::Store;"),
        ("http/patients.rs", "use super::App; // crate::nowhere\nuse crate::{domain::{self, Patient}, store};"),
        ("store.rs", "use crate::{\n    domain::Patient,\n};"),
        ("clock.rs", "use crate::Timer; pub struct Clock;"),
        ("timer.rs", "pub(crate) use self::wheel::{Wheel, Timer};"),
        ("timer/wheel.rs", "use crate::clock::Clock; pub struct Timer;"),
        (
            "domain.rs",
            "fn f() { crate::http::patients::page(crate::Level) }\n#[cfg(test)]\nmod tests { use crate::store; }",
        ),
    ];
    for (file, text) in files {
        fs::write(scratch.join(file), text).unwrap();
    }
    let found = circles(&uses(&scratch));
    fs::remove_dir_all(&scratch).unwrap();
    let circle = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(found, [circle(&["clock", "timer::wheel"]), circle(&["domain", "http::patients", "store"])]);
}

/// The modules that each module of the crate in `source` uses, without its ancestors and descendants.
fn uses(source: &Path) -> BTreeMap<Module, BTreeSet<Module>> {
    if !source.is_dir() {
        return BTreeMap::new();
    }
    let files: BTreeMap<Module, String> = sources(source)
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
        .map(|file| (module(file.strip_prefix(source).unwrap()), fs::read_to_string(&file).unwrap()))
        .collect();
    let is_related = |one: &Module, other: &Module| one.starts_with(other) || other.starts_with(one);
    let exports: BTreeMap<Module, Module> =
        files.iter().flat_map(|(own, text)| exports(own, &code(text), &files)).collect();
    let used = |own: &Module, text: &str| {
        let paths = paths(text).into_iter().filter_map(|path| absolute(own, &path));
        let paths = paths.map(|path| place(path, &exports));
        let modules = paths.filter_map(|path| {
            (0..=path.len()).rev().map(|n| path[..n].to_vec()).find(|module| files.contains_key(module))
        });
        modules.filter(|module| !is_related(own, module)).collect::<BTreeSet<_>>()
    };
    files.iter().map(|(own, text)| (own.clone(), used(own, &code(text)))).collect()
}

/// What a module re-exports from other modules of the crate: the path of each name in the module, and where it is.
fn exports(own: &Module, code: &str, files: &BTreeMap<Module, String>) -> Vec<(Module, Module)> {
    let mut found = Vec::new();
    for start in ["pub use ", "pub(crate) use ", "pub(super) use "] {
        for (at, _) in code.match_indices(start) {
            let mut paths = Vec::new();
            expand(&code[at + start.len()..], String::new(), &mut paths);
            found.extend(paths.iter().filter_map(|path| {
                let place = absolute(own, path)?;
                let (name, module) = place.split_last()?;
                let exported = [own.as_slice(), std::slice::from_ref(name)].concat();
                // A function may have the name of its module.
                (files.contains_key(module) && !place.starts_with(&exported)).then_some((exported, place))
            }));
        }
    }
    found
}

/// Where what has this path is, past re-exports.
fn place(path: Module, exports: &BTreeMap<Module, Module>) -> Module {
    match (1..=path.len()).rev().find_map(|n| Some((exports.get(&path[..n])?, n))) {
        Some((exported, n)) => place([exported, &path[n..]].concat(), exports),
        None => path,
    }
}

fn module(file: &Path) -> Module {
    let path = file.with_extension("");
    let names: Module = path.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    match names.last().map(String::as_str) {
        Some("lib" | "main") if names.len() == 1 => Vec::new(),
        Some("mod") => names[..names.len() - 1].to_vec(),
        _ => names,
    }
}

/// The text without comments and without the unit tests at its end.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every path that starts with `crate::` or `super::`, with the braces of `use` expanded.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '_' | ':')) {
                expand(&code[at..], String::new(), &mut found);
            }
        }
    }
    found
}

/// Adds the paths of the use tree at the start of `text` to `found`; returns the rest of the text.
fn expand<'a>(text: &'a str, before: String, found: &mut Vec<String>) -> &'a str {
    let end = text.find(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | ':')).unwrap_or(text.len());
    let path = before + &text[..end];
    let Some(mut rest) = text[end..].strip_prefix('{').filter(|_| path.ends_with("::")) else {
        found.push(path);
        return &text[end..];
    };
    loop {
        rest = rest.trim_start_matches([' ', '\n', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return after;
        }
        let after = expand(rest, path.clone(), found);
        // `as`, a glob, or the end of a text that is not a use tree.
        rest = after.trim_start_matches(|c: char| !matches!(c, ',' | '}' | ';'));
        if rest.is_empty() || rest.starts_with(';') {
            return rest;
        }
    }
}

/// The absolute path in the crate; none for a path that leaves it.
fn absolute(own: &Module, path: &str) -> Option<Module> {
    let mut place = own.clone();
    let mut names = Vec::new();
    for name in path.split("::").filter(|name| !name.is_empty()) {
        match name {
            "crate" => place.clear(),
            "super" => drop(place.pop()?),
            "self" => {}
            name => names.push(name.to_owned()),
        }
    }
    Some(place.into_iter().chain(names).collect())
}

/// The sets of modules that depend on each other cyclically.
fn circles(uses: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<BTreeSet<String>> {
    let reached = |from: &Module| {
        let (mut reached, mut waiting) = (BTreeSet::new(), vec![from]);
        while let Some(module) = waiting.pop() {
            waiting.extend(uses.get(module).into_iter().flatten().filter(|next| reached.insert((*next).clone())));
        }
        reached
    };
    let all: BTreeMap<_, _> = uses.keys().map(|module| (module, reached(module))).collect();
    let circle = |module: &Module| {
        let others = all[module].iter().filter(|other| all.get(other).is_some_and(|back| back.contains(module)));
        others.map(|module| module.join("::")).collect::<BTreeSet<_>>()
    };
    let found: BTreeSet<_> = uses.keys().map(circle).filter(|circle| !circle.is_empty()).collect();
    found.into_iter().collect()
}
