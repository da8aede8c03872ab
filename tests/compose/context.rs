//! What `docker build` is given: `.dockerignore` as Docker reads it.

use std::{fs, path::Path, process::Command};

use globset::{GlobBuilder, GlobMatcher};
use testbed::Scratch;

use crate::files::{root, text};

/// The patterns of `.dockerignore`, each with whether it takes files back in.
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

    /// Whether a file stays outside. The last pattern counts that is true of it or of a folder around it.
    fn contains(&self, file: &Path) -> bool {
        let is_meant = |pattern: &GlobMatcher| file.ancestors().any(|path| pattern.is_match(path));
        self.0.iter().rfind(|(pattern, _)| is_meant(pattern)).is_some_and(|(_, taken_back)| !taken_back)
    }
}

/// Copies what is not ignored, and counts the files.
fn copy(from: &Path, to: &Path, below: &Path, ignored: &Ignored) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(from.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        // What cargo and git leave there is no part of any build, and takes long to look through.
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

#[test]
fn the_build_is_given_a_workspace_that_cargo_can_read_and_no_tests() {
    let scratch = Scratch::new().unwrap();
    let context = scratch.path().join("context");
    let files = copy(&root(), &context, Path::new(""), &Ignored::read());
    assert!(files > 100, "{files}");
    // As in the Dockerfile: it fails if a member of the workspace has no manifest or nothing to build.
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(&context)
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    for service in ["patient-service", "billing-service", "analytics-service"] {
        assert!(context.join("apps").join(service).join("src/main.rs").is_file());
    }
    for test in ["apps/patient-service/tests", "tests/e2e/main.rs"] {
        assert!(root().join(test).exists() && !context.join(test).exists(), "{test}");
    }
}
