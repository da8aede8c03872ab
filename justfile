# The commands of the project. `just` lists them; `./justw` is the same and installs just first if it is missing.

set dotenv-load
set shell := ["sh", "-euc"]

just := quote(just_executable())
target := if env("CARGO_TARGET_DIR", "") == "" { "target" } else { env("CARGO_TARGET_DIR") }
stack := quote(target / "release/stack")

# For every program of a recipe the same cache, also where it works in another folder.
caches := if env("XDG_CACHE_HOME", "") == "" { home_directory() / ".cache" } else { env("XDG_CACHE_HOME") }
given_cache := env("PATIENT_MANAGEMENT_CACHE", "")
export PATIENT_MANAGEMENT_CACHE := absolute_path(if given_cache == "" { caches / "patient-management" } else { given_cache })
tools := quote(PATIENT_MANAGEMENT_CACHE / "tools")

# What the services say that they were built from, in --version, their first log line and build_info.
export GIT_REVISION := env("GIT_REVISION", `git rev-parse --short=12 HEAD 2>/dev/null || echo unknown`)

# Show the recipes
[private]
default:
    @{{ just }} --list --unsorted

# Start everything, wait until it is ready, and say where it is; --docker or --native chooses how, --no-build starts what was built last
[group("run")]
up *args: (_build args)
    @{{ stack }} up {{ args }}

# The same in containers with several replicas of each service
[group("run")]
up-scaled: (up "--scaled")

# Send one patient all the way and show each step with its time
[group("run")]
demo: _stack
    @{{ stack }} demo

# Register plausible patients, marked as samples: 200, or as many as is said
[group("run")]
seed count="200": _stack
    @{{ stack }} seed {{ count }}

# Show what runs
[group("run")]
ps: _stack
    @{{ stack }} ps

# Show the end of the logs; -f follows them; a part's name shows only that part
[group("run")]
logs *args: _stack
    @{{ stack }} logs {{ args }}

# Kill a part as a crash does; up brings it back
[group("run")]
kill part: _stack
    @{{ stack }} kill {{ part }}

# Show the records that are no events and the events that the broker refused; --resend [id...] sends them again once the cause is mended
[group("run")]
dead-letters *args: _stack
    @{{ stack }} dead-letters {{ args }}

# Count all events again: take analytics' state away and read the topic from its beginning
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

# Run all tests on a real PostgreSQL and every broker that can be had; a filter runs some
[group("test")]
test *filter:
    cargo build --locked --workspace --all-targets
    skip=$({{ quote(target / "debug/stack") }} test-parts); cargo test --locked --workspace --no-fail-fast -- $skip {{ filter }}
    tests/wire/run
    tests/contract/run $({{ quote(target / "debug/stack") }} test-parts)
    tests/console/run

# Run all tests so many times beside as many busy loops as there are processors (BUSY=0: none); a filter runs some
[group("test")]
repeat times="10" *filter:
    tests/repeat/run {{ times }} {{ filter }}

# Try patient-service against its own OpenAPI document with schemathesis
[group("test")]
contract:
    cargo build --locked --workspace --all-targets
    tests/contract/run $({{ quote(target / "debug/stack") }} test-parts)

# Try the console's page in a real browser; UPDATE_SCREENSHOTS=1 takes its pictures anew
[group("test")]
browser *args:
    cargo build --locked -p console
    tests/console/run {{ args }}

# Run the tests from outside: on the system that is up, else on systems of their own
[group("test")]
e2e *filter:
    @if {{ stack }} target >/dev/null 2>&1; then \
        E2E_STACK="$(realpath {{ stack }})" \
            cargo test --locked --workspace --test running -- --ignored {{ filter }}; \
    else \
        cargo build --locked --workspace --all-targets; \
        skip=$({{ quote(target / "debug/stack") }} test-parts); \
        cargo test --locked --workspace --test e2e -- $skip {{ filter }}; \
    fi

# Strike a system of its own with faults at random while clients write, then audit it; --seconds N, --seed S, --docker
[group("test")]
chaos *args:
    @case " {{ args }} " in *" --docker "*) services= ;; *) services=yes ;; esac; \
    cargo build --release --locked -p chaos ${services:+-p patient-service -p billing-service -p analytics-service}
    @{{ quote(target / "release/chaos") }} {{ args }}

# Offer patient-service four times what it can do; for 60 s, or as long as is said
[group("test")]
overload seconds="60":
    cargo build --release --locked -p patient-service -p billing-service -p analytics-service
    OVERLOAD_SECONDS={{ seconds }} cargo test --release --locked -p faults --test overload -- --nocapture

# Have libFuzzer look for input that breaks a target of tests/fuzz, or each of them; for 60 s each, or as long as is said
[group("test")]
fuzz target="all" seconds="60": (_tool "cargo-fuzz" "0.13.2")
    tests/fuzz/run {{ target }} {{ seconds }}

# Check format, lints, documentation, architecture, compose files, licences and dependencies
[group("test")]
check: (_tool "cargo-deny" "0.20.2") (_tool "cargo-machete" "0.9.2")
    cargo fmt --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    # The build of the tests: of some packages alone, dependencies would be built again, with other features.
    cargo build --locked --quiet --workspace --all-targets
    cargo test --locked --quiet --workspace --test architecture --test compose
    # Private items have documentation too, and links among them are for whoever reads the code.
    RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --quiet --workspace --no-deps --document-private-items
    cargo fetch --locked --quiet
    {{ tools }}/bin/cargo-deny --offline --log-level error check bans licenses sources
    {{ tools }}/bin/cargo-machete

# Measure a running system, or any implementation of the same calls; --help tells all options
[group("measure")]
load *args="--help":
    cargo build --release --locked --quiet -p load
    {{ quote(target / "release/load") }} {{ args }}

# Compare the system with what it stands on, in one run; --quick fails on ratios far below docs/performance/results.json
[group("measure")]
bench *args:
    @tools/bench/prepare {{ args }}
    cargo build --release --locked -p patient-service -p billing-service -p analytics-service -p load -p bench -p baselines
    cargo build --release --locked -p web -p grpc --examples
    {{ quote(target / "release/bench") }} {{ args }}

# Measure single steps: events, cursors, problem bodies, the HTTP edge
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

# One build for all, so that what they share is built once. For containers, the services are built in their images.
_build *args:
    @case " {{ args }} " in *" --no-build "*) [ ! -x {{ stack }} ] || exit 0 ;; esac; \
    case " {{ args }} " in \
        *" --native "*) services=yes ;; \
        *" --docker "* | *" --scaled "*) services= ;; \
        *) services=yes; ! timeout 5 docker version >/dev/null 2>&1 || services= ;; \
    esac; \
    cargo build --release --locked -p stack ${services:+-p console -p patient-service -p billing-service -p analytics-service}

_stack:
    @[ -x {{ stack }} ] || {{ just }} _build


# Install a tool into the cache unless it is there
_tool name version:
    @{{ tools }}/bin/{{ name }} --version 2>/dev/null | grep -qF "{{ version }}" || \
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
        cargo install --quiet --locked --root {{ tools }} {{ name }}@{{ version }}
