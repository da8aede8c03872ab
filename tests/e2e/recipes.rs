//! The recipes find what cargo has built, wherever its configuration puts it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use testbed::Scratch;

use crate::stack::printed;

/// As cargo does: a variable wins over its configuration, and a target adds a folder.
const CARGO: &str = r#"#!/bin/sh
[ "$1" = build ] || exit 1
triple=${CARGO_BUILD_TARGET:-$TRIPLE}
stack=${CARGO_TARGET_DIR:-${CARGO_BUILD_TARGET_DIR:-$DIRECTORY}}/${triple:+$triple/}release/stack
mkdir -p "$(dirname "$stack")"
printf '#!/bin/sh\necho "the new one: $*"\n' >"$stack"
chmod +x "$stack"
echo "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"stack\"},\"executable\":\"$stack\",\"fresh\":false}"
echo '{"reason":"build-finished","success":true}'
"#;

/// A checkout with the recipes alone, and a program in the place of cargo.
fn checkout() -> Scratch {
    let scratch = Scratch::new().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for file in ["justfile", "justw", ".env"] {
        fs::copy(root.join(file), scratch.path().join(file)).unwrap();
    }
    fs::create_dir(scratch.path().join("bin")).unwrap();
    write_program(&scratch.path().join("bin/cargo"), CARGO);
    scratch
}

fn write_program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// `up` with these variables. `DIRECTORY` and `TRIPLE` stand for `build.target-dir` and `build.target` of cargo's configuration.
fn up(checkout: &Scratch, variables: &[(&str, &str)]) -> Output {
    let path = format!("{}:{}", checkout.path().join("bin").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(checkout.path().join("justw"));
    command.args(["up", "--native"]).current_dir("/").env("PATH", path);
    for name in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "CARGO_BUILD_TARGET"] {
        command.env_remove(name);
    }
    let given = [("DIRECTORY", "target"), ("TRIPLE", "")];
    command.envs(given).envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn recipes_run_what_cargo_has_built_whatever_its_configuration_says() {
    let checkout = checkout();
    let elsewhere: PathBuf = checkout.path().join("else where");
    let elsewhere = elsewhere.to_str().unwrap();
    for variables in [
        &[][..],
        &[("DIRECTORY", elsewhere)],
        &[("CARGO_BUILD_TARGET_DIR", elsewhere)],
        &[("CARGO_TARGET_DIR", elsewhere)],
        &[("CARGO_TARGET_DIR", "relative")],
        &[("CARGO_BUILD_TARGET", "x86_64-unknown-linux-musl")],
        &[("CARGO_BUILD_TARGET", "x86_64-unknown-linux-musl"), ("DIRECTORY", elsewhere)],
    ] {
        let output = up(&checkout, variables);
        let printed = printed(&output);
        assert!(output.status.success() && printed.contains("the new one: up --native"), "{variables:?}: {printed}");
    }
}

#[test]
fn recipes_never_run_an_old_build_after_a_new_one() {
    let checkout = checkout();
    write_program(&checkout.path().join("target/release/stack"), "#!/bin/sh\necho the old one\n");
    let output = up(&checkout, &[("TRIPLE", "x86_64-unknown-linux-musl")]);
    let printed = printed(&output);
    assert!(!output.status.success() && !printed.contains("the old one"), "{printed}");
    assert!(printed.contains("x86_64-unknown-linux-musl/release/stack and not"), "{printed}");
    assert!(printed.contains("CARGO_BUILD_TARGET=... just up"), "{printed}");
}
