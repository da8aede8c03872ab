"""What the model is made of: measured figures with their source, figures derived from them, and assumptions."""

import json
import pathlib

DOCS = pathlib.Path(__file__).resolve().parents[1]
RESULTS = json.loads((DOCS / "performance/results.json").read_text(encoding="utf-8"))
ROLES = ("patient-service", "billing-service", "analytics-service", "postgresql", "kafka", "load")
SERVICES = ROLES[:3]


def recorded(key):
    """A figure that `just bench --record` has written."""
    return RESULTS["figures"][key]["value"]


def mean(pair):
    values = RESULTS["pairs"][pair]["ours"]
    return sum(values) / len(values)


def growth(axis, what, at):
    (line,) = [one for one in RESULTS["growth"] if (one["axis"], one["what"]) == (axis, what)]
    (point,) = [point for point in line["points"] if point["at"] == at]
    return point["perSecond"]


# The machine of all measurements: everything shares it, the load generator too.
CORES = RESULTS["machine"]["cores"]

# CPU for an operation at the peak with 64 clients, in ms.
REGISTRATION = {role: recorded(f"cpu-registrations-{role}") / 1000 for role in ROLES}
READ = {role: recorded(f"cpu-reads-{role}") / 1000 for role in ROLES}

# docs/decisions/0055, 100 registrations a second, "after": two runs on the quiet machine, in ms.
QUIET = {"p50": (1.94 + 1.92) / 2, "services": (1.66 + 1.75) / 2, "all": (5.51 + 5.86) / 2}
# The same record, the runs beside other programs, in ms of CPU: the only ones that have PostgreSQL alone.
QUIET_POSTGRESQL = (1.15 + 0.73 + 0.90) / 3
# docs/decisions/0058, 100 registrations a second, after: analytics-service, in ms of CPU.
QUIET_ANALYTICS = (0.40 + 0.28 + 0.35) / 3
# docs/performance.md, "Against the original Spring Boot services", the earlier copy: 400 registrations a second, in ms. It was measured before decision 55.
AT_400 = {"p50": 2.3, "p99": 11.2, "all": 2.573}

# docs/capacity.md, "Measured for this page": 200,000 registrations, in bytes for each.
SIZES = {
    "patients": 100_220_928 / 200_000,
    "accounts": 31_662_080 / 200_000,
    "topic": (31_855_166 + 32_209_172 + 31_966_980) / 200_000,
    "state": 10_833_920 / 200_000,
    "wal": (825_674_344 - 31_032_192) / 200_000,
}

# What is the same for every registration and what a statement or a step of the relay costs by itself, in ms of CPU, and the
# wait for a disk in ms. Four numbers for four measured points: `capacity.py --calibrate` searches them.
CALIBRATED = {"each": 0.52, "statements": 0.8, "step": 6.0, "disk": 0.35}

# Assumptions: what nobody has measured.
ASSUMED = {
    # The share of a statement's own cost that is PostgreSQL's, and the patient's share of both statements.
    "postgresql of a statement": 0.6,
    "patients of statements": 0.6,
    # How far a core is used before a role gets another one.
    "utilisation": 0.6,
}

# Of the code: libs/postgres/src/batcher.rs, store/insert.rs, relay.rs, docs/settings.md.
MAX_STATEMENTS = 2
MAX_REQUESTS = 128
PACE = 10.0
MAX_ROWS = 1000
CONNECTIONS = 12 + 6
# Copies of a record in deploy/kubernetes.
COPIES = 3
