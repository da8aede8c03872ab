//! The build context of `docker build`, by `.dockerignore`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use globset::{GlobBuilder, GlobMatcher};
use testbed::Scratch;

use crate::files::{root, text};

/// The patterns of `.dockerignore`; true if a pattern includes files again.
struct Ignored(Vec<(GlobMatcher, bool)>);

impl Ignored {
    fn read() -> Self {
        let text = text(".dockerignore");
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let pattern = |line: &str| {
            let pattern = line.trim_start_matches('!');
            let glob = GlobBuilder::new(pattern).literal_separator(true).build().unwrap();
            (glob.compile_matcher(), line.starts_with('!'))
        };
        Self(lines.map(pattern).collect())
    }

    /// Whether a file is excluded: by the last pattern that matches it or one of its folders.
    fn contains(&self, file: &Path) -> bool {
        let is_meant = |pattern: &GlobMatcher| file.ancestors().any(|path| pattern.is_match(path));
        self.0.iter().rfind(|(pattern, _)| is_meant(pattern)).is_some_and(|(_, taken_back)| !taken_back)
    }
}

/// Copies the files that are not ignored; returns their number.
fn copy(from: &Path, to: &Path, below: &Path, ignored: &Ignored) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(from.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        // Not searched, because they have many files.
        if path == Path::new("target") || path == Path::new(".git") {
            assert!(ignored.contains(&path), "{} is sent to Docker", path.display());
        } else if entry.file_type().unwrap().is_dir() {
            count += copy(from, to, &path, ignored);
        } else if !ignored.contains(&path) {
            fs::create_dir_all(to.join(below)).unwrap();
            fs::copy(from.join(&path), to.join(&path)).unwrap();
            count += 1;
        }
    }
    count
}

/// The libraries that have build scripts.
fn with_build_scripts() -> Vec<String> {
    let libraries = fs::read_dir(root().join("libs")).unwrap().map(Result::unwrap);
    let with_script = libraries.filter(|library| library.path().join("build.rs").is_file());
    let names: Vec<_> = with_script.map(|library| library.file_name().into_string().unwrap()).collect();
    assert!(!names.is_empty());
    names
}

/// The build script of a crate, as cargo compiled it last.
fn build_script(crate_name: &str) -> PathBuf {
    let profile = env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let folders = fs::read_dir(profile.join("build")).unwrap().map(|entry| entry.unwrap().path());
    let is_of_crate = |folder: &PathBuf| {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.rsplit_once('-').is_some_and(|(name, _)| name == crate_name)
    };
    let scripts = folders.filter(is_of_crate).map(|folder| folder.join("build-script-build"));
    let newest =
        scripts.filter(|script| script.is_file()).max_by_key(|script| script.metadata().unwrap().modified().unwrap());
    newest.unwrap_or_else(|| panic!("{crate_name} is not built: cargo build --workspace"))
}

#[test]
fn the_build_context_has_a_workspace_that_cargo_can_read_and_no_tests() {
    let scratch = Scratch::new().unwrap();
    let context = scratch.path().join("context");
    let files = copy(&root(), &context, Path::new(""), &Ignored::read());
    assert!(files > 100, "{files}");
    // As in the Dockerfile. It fails if a member of the workspace has no manifest or no target.
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(&context)
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    for service in ["patient-service", "billing-service", "analytics-service"] {
        assert!(context.join("apps").join(service).join("src/main.rs").is_file());
    }
    for crate_name in with_build_scripts() {
        // Cargo would run it in the image too, with all that it reads.
        let (folder, out) = (context.join("libs").join(&crate_name), scratch.path().join("out").join(&crate_name));
        fs::create_dir_all(&out).unwrap();
        let output = Command::new(build_script(&crate_name))
            .env("CARGO_MANIFEST_DIR", &folder)
            .env("OUT_DIR", out)
            .current_dir(folder)
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "libs/{crate_name}/build.rs lacks a file of the image's build: {words}");
    }
    for test in ["apps/patient-service/tests", "tests/e2e/main.rs"] {
        assert!(root().join(test).exists() && !context.join(test).exists(), "{test}");
    }
}
