# The commands of the project. `just` lists them; `./justw` is the same and installs just first if it is missing.

set dotenv-load
set shell := ["sh", "-euc"]

just := quote(just_executable())
# Exported, so that cargo builds where the recipes look, whatever its configuration says. CARGO_BUILD_TARGET_DIR is cargo's own
# variable for that configuration; with a CARGO_BUILD_TARGET, it adds a folder.
configured := env("CARGO_BUILD_TARGET_DIR", "")
given_target := env("CARGO_TARGET_DIR", "")
export CARGO_TARGET_DIR := absolute_path(if given_target != "" { given_target } else if configured != "" { configured } else { "target" })
triple := env("CARGO_BUILD_TARGET", "")
target := if triple == "" { CARGO_TARGET_DIR } else { CARGO_TARGET_DIR / triple }
stack := quote(target / "release/stack")

# An absolute path, so that programs with another working directory use the same cache.
caches := if env("XDG_CACHE_HOME", "") == "" { home_directory() / ".cache" } else { env("XDG_CACHE_HOME") }
given_cache := env("PATIENT_MANAGEMENT_CACHE", "")
export PATIENT_MANAGEMENT_CACHE := absolute_path(if given_cache == "" { caches / "patient-management" } else { given_cache })
tools := quote(PATIENT_MANAGEMENT_CACHE / "tools")

# The revision in --version, the first log line and build_info of the services.
export GIT_REVISION := env("GIT_REVISION", `git rev-parse --short=12 HEAD 2>/dev/null || echo unknown`)

# Show the recipes
[private]
default:
    @{{ just }} --list --unsorted

# Start everything, wait until it is ready, and print its addresses; --docker or --native chooses how, --secure adds identities and TLS everywhere, --no-build starts what was built last
[group("run")]
up *args: (_build args)
    @{{ stack }} up {{ args }}

# The same in containers with several replicas of each service
[group("run")]
up-scaled: (up "--scaled")

# Send one patient through the system and show each step with its time
[group("run")]
demo: _stack
    @{{ stack }} demo

# Walk through the running system in ten steps: commands, what they did, where to look
[group("run")]
tour: _stack
    @{{ stack }} tour

# Register plausible patients, marked as samples (200)
[group("run")]
seed count="200": _stack
    @{{ stack }} seed {{ count }}

# Log in to a secure system and print the token: of developer, who may do everything, or of reader
[group("run")]
token user="developer": _stack
    @{{ stack }} token {{ user }}

# Show what runs
[group("run")]
ps: _stack
    @{{ stack }} ps

# Show the last 50 lines of each log; --all shows them whole, -f follows them; the name of a component shows its log alone
[group("run")]
logs *args: _stack
    @{{ stack }} logs {{ args }}

# Kill a service by SIGKILL; up starts it again
[group("run")]
kill service: _stack
    @{{ stack }} kill {{ service }}

# Show dead letters; --resend [id...] sends them again after the cause is fixed
[group("run")]
dead-letters *args: _stack
    @{{ stack }} dead-letters {{ args }}

# Count all events again: delete the state of analytics and read the topic from its beginning
[group("run")]
rebuild-analytics *args: _stack
    @{{ stack }} rebuild-analytics {{ args }}

# Stop everything; data stay
[group("run")]
down: _stack
    @{{ stack }} down

# Stop everything and delete all data, after asking
[group("run")]
reset *args: _stack
    @{{ stack }} reset {{ args }}

# Run all tests, on a real PostgreSQL and every broker that can be installed; a filter runs the Rust tests that match it
[group("test")]
test *filter:
    cargo build --locked --workspace --all-targets
    skip=$({{ quote(target / "debug/stack") }} install-test-dependencies); cargo test --locked --workspace --no-fail-fast -- $skip {{ filter }}
    @{{ if filter == "" { just + " _other-suites" } else { "true" } }}

# The suites that cargo test does not run. They use what `test` has built.
_other-suites:
    tests/wire/run
    tests/contract/run $({{ quote(target / "debug/stack") }} install-test-dependencies)
    tests/console/run
    tests/kubernetes/run
    tests/capacity/run

# Run all tests repeatedly beside one busy loop for each processor (BUSY=0: none); a filter runs some
[group("test")]
repeat times="10" *filter:
    tests/repeat/run {{ times }} {{ filter }}

# Test patient-service against its OpenAPI document with schemathesis
[group("test")]
contract:
    cargo build --locked --workspace --all-targets
    tests/contract/run $({{ quote(target / "debug/stack") }} install-test-dependencies)

# Test the console's page in a real browser, on fixed answers and on a whole system; UPDATE_SCREENSHOTS=1 updates the screenshots
[group("test")]
browser *args:
    cargo build --locked -p stack -p console -p patient-service -p billing-service -p analytics-service
    tests/console/run {{ args }}

# Build the manifests of deploy/kubernetes with kustomize and check them offline
[group("test")]
kubernetes:
    cargo build --locked -p patient-service -p billing-service -p analytics-service -p auth-service
    tests/kubernetes/run

# Run the end-to-end tests: against the running system, else against systems that they start
[group("test")]
e2e *filter:
    @if {{ stack }} target >/dev/null 2>&1; then \
        E2E_STACK="$(realpath {{ stack }})" \
            cargo test --locked --workspace --test running -- --ignored {{ filter }}; \
    else \
        cargo build --locked --workspace --all-targets; \
        skip=$({{ quote(target / "debug/stack") }} install-test-dependencies); \
        cargo test --locked --workspace --test e2e -- $skip {{ filter }}; \
    fi

# Inject random faults into a system while clients write, then audit it; --seconds N, --seed S, --members N, --standbys N, --secure, --docker
[group("test")]
chaos *args:
    @case " {{ args }} " in *" --docker "*) services= ;; *) services=yes ;; esac; \
    cargo build --release --locked -p chaos ${services:+-p patient-service -p billing-service -p analytics-service}
    @{{ quote(target / "release/chaos") }} {{ args }}

# Offer patient-service four times its peak rate, for 60 s by default
[group("test")]
overload seconds="60":
    cargo build --release --locked -p patient-service -p billing-service -p analytics-service
    OVERLOAD_SECONDS={{ seconds }} cargo test --release --locked -p faults --test overload -- --nocapture

# Fuzz a target of tests/fuzz, or all, with libFuzzer, for 60 s each by default
[group("test")]
fuzz target="all" seconds="60": (_tool "cargo-fuzz" "0.13.2")
    tests/fuzz/run {{ target }} {{ seconds }}

# Check format, lints, documentation, architecture, compose files, licences and dependencies
[group("test")]
check: (_tool "cargo-deny" "0.20.2") (_tool "cargo-machete" "0.9.2")
    cargo fmt --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    # What `up` and the images build: no other package of the workspace switches on a feature that they lack.
    cargo check --locked --quiet -p stack -p console -p patient-service -p billing-service -p analytics-service -p auth-service
    # Everything, as for the tests: for some packages alone, cargo would build dependencies again, with other features.
    cargo build --locked --quiet --workspace --all-targets
    cargo test --locked --quiet --workspace --test architecture --test compose
    # With private items: their documentation is for readers of the code, and may link to private items.
    RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --quiet --workspace --no-deps --document-private-items
    cargo fetch --locked --quiet
    {{ tools }}/bin/cargo-deny --offline --log-level error check bans licenses sources
    {{ tools }}/bin/cargo-machete

# Measure a running system, or any implementation of the same API; --help lists the options
[group("measure")]
load *args="--help":
    cargo build --release --locked --quiet -p load
    {{ quote(target / "release/load") }} {{ args }}

# Compare the system with its baselines in one run; --quick fails on ratios far below docs/performance/results.json
[group("measure")]
bench *args:
    @tools/bench/prepare {{ args }}
    cargo build --release --locked -p patient-service -p billing-service -p analytics-service -p load -p bench -p baselines
    cargo build --release --locked -p web -p grpc --examples
    {{ quote(target / "release/bench") }} {{ args }}

# Write the tables of docs/capacity.md from the model, after docs/performance/results.json has changed
[group("measure")]
capacity:
    PYTHONDONTWRITEBYTECODE=1 python3 docs/capacity/capacity.py --write
    tests/capacity/run

# Run the microbenchmarks: events, cursors, problem bodies, the HTTP edge
[group("measure")]
micro:
    cargo bench --locked -p codec -p kafka -p web -p patient-service --benches

# Format the code
[group("test")]
fmt:
    cargo fmt

# Write the tables of docs/settings.md from the --help of the services
[group("test")]
settings:
    cargo build --locked --workspace --all-targets
    WRITE_SETTINGS_PAGE=1 cargo test --locked --quiet --workspace --test faults settings_page

# One build for all, so that shared dependencies are built once. For containers, the services are built in their images.
_build *args:
    @case " {{ args }} " in *" --no-build "*) [ ! -x {{ stack }} ] || exit 0 ;; esac; \
    case " {{ args }} " in \
        *" --native "*) services=yes ;; \
        *" --docker "* | *" --scaled "*) services= ;; \
        *) services=yes; ! timeout 5 docker version >/dev/null 2>&1 || services= ;; \
    esac; \
    messages=$(cargo build --release --locked --message-format json-render-diagnostics -p stack ${services:+-p console -p patient-service -p billing-service -p analytics-service -p auth-service}); \
    built=$(printf '%s\n' "$messages" | sed -n 's/.*"executable":"\([^"]*\/stack\)".*/\1/p'); \
    [ "$built" -ef {{ stack }} ] || { \
        echo "cargo has built $built and not" {{ stack }}": its configuration has a build.target. Name it: CARGO_BUILD_TARGET=... just up" >&2; \
        exit 1; \
    }

_stack:
    @[ -x {{ stack }} ] || {{ just }} _build

# Install a tool into the cache unless it is installed
_tool name version:
    @{{ tools }}/bin/{{ name }} --version 2>/dev/null | grep -qF "{{ version }}" || \
        env -u CARGO_TARGET_DIR CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
        cargo install --quiet --locked --root {{ tools }} {{ name }}@{{ version }}
