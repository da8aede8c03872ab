"""The tables of docs/capacity.md.

capacity.py              prints them
capacity.py --write      writes them into the page
capacity.py --calibrate  searches the four calibrated numbers; takes minutes
"""

import functools
import itertools
import math
import pathlib
import re
import sys

from figures import ASSUMED, AT_400, CALIBRATED, CONNECTIONS, COPIES, CORES, MAX_ROWS, PACE, QUIET, READ, REGISTRATION
from figures import SIZES, growth, mean, recorded
from simulation import System, costs

PAGE = pathlib.Path(__file__).resolve().parents[1] / "capacity.md"
RATES = (1_000, 10_000, 100_000)
CELL = 10_000
GIB = 2**30


@functools.cache
def machine(clients=None, rate=None, calibrated=tuple(CALIBRATED.items())):
    """The simulated machine of the measurements."""
    few = rate is not None and rate <= 400
    many = clients is not None and clients > 256
    count, warm_up = (8_000, 500) if few else (30_000, 8_000) if many else (12_000, 3_000)
    return System(shared=CORES, calibrated=dict(calibrated)).run(
        clients=clients, rate=rate, count=count, warm_up=warm_up
    )


def of_connections(clients):
    return growth("connections", "create", clients)


# What is compared, measured, simulated, and where it was measured. The model is calibrated to the first ones.
CALIBRATED_TO = [
    ("CPU of a registration at 100/s, ms", QUIET["all"], lambda: machine(rate=100)["cpu"], "decision 55"),
    ("p50 at 100/s, ms", QUIET["p50"], lambda: machine(rate=100)["p50"], "decision 55"),
    ("registrations/s, 64 clients", mean("creates"), lambda: machine(clients=64)["rate"], "Recorded"),
    ("registrations/s, 1,024 clients", of_connections(1024), lambda: machine(clients=1024)["rate"], "How cost grows"),
]
PREDICTED = [
    ("registrations/s, 256 clients", of_connections(256), lambda: machine(clients=256)["rate"], "How cost grows"),
    ("p50 at 400/s, ms", AT_400["p50"], lambda: machine(rate=400)["p50"], "Spring Boot copy"),
    ("CPU of a registration at 400/s, ms", AT_400["all"], lambda: machine(rate=400)["cpu"], "Spring Boot copy"),
    ("reads/s, 64 clients (cores / CPU of a read)", mean("reads"), lambda: CORES / sum(READ.values()) * 1000, "Recorded"),
]
# What the model does not know: see the page.
MISSED = [
    ("registrations/s, 16 clients", of_connections(16), lambda: machine(clients=16)["rate"], "How cost grows"),
    ("p99 at 400/s, ms", AT_400["p99"], lambda: machine(rate=400)["p99"], "Spring Boot copy"),
    ("p99, 64 clients, ms", recorded("creates-p99"), lambda: machine(clients=64)["p99"], "Recorded"),
    (
        "POST to applied at half the peak, p50, ms",
        recorded("applied-p50"),
        lambda: machine(rate=mean("creates") / 2)["applied"],
        "Recorded",
    ),
]


def error(measured, model):
    return model() / measured - 1


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|---|" + "---:|" * (len(head) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def checks():
    rows = [
        (what, number(measured), number(model()), f"{round(error(measured, model), 2) + 0.0:+.0%}", kind, where)
        for kind, points in (("calibrated to it", CALIBRATED_TO), ("predicted", PREDICTED), ("missed", MISSED))
        for what, measured, model, where in points
    ]
    return table(("", "measured", "model", "error", "", "measured where"), rows)


def shard():
    """Events a second that one shard of the outbox sends at most: its steps wait for the broker."""
    each, _, step = costs()
    time = step["patient-service"] + step["kafka"] + MAX_ROWS * each["kafka"]
    return MAX_ROWS / max(PACE, time) * 1000


def cores(rate, role, share=1.0):
    """Cores for a rate, by the CPU of a registration at the recorded peak."""
    return math.ceil(rate * REGISTRATION[role] * share / 1000 / ASSUMED["utilisation"])


def units():
    patients = ASSUMED["patients of statements"]
    per_core = {
        "patient-service, a replica (one thread)": REGISTRATION["patient-service"],
        "PostgreSQL of patients, a core": REGISTRATION["postgresql"] * patients,
        "PostgreSQL of accounts, a core": REGISTRATION["postgresql"] * (1 - patients),
        "billing-service, a core": REGISTRATION["billing-service"],
        "Kafka, a core": REGISTRATION["kafka"],
        "analytics-service, a core": REGISTRATION["analytics-service"],
    }
    rows = [(what, number(1000 / cost), "CPU at the recorded peak") for what, cost in per_core.items()]
    rows.append(("relay, a shard of the outbox", number(shard()), "model: steps of 1,000 events, one after the other"))
    replay = number(recorded("replay-rate"))
    rows.append(("analytics-service, a replay on two cores", replay, "measured, with Kafka on the same cores"))
    rows.sort(key=lambda row: float(row[1].replace(",", "")))
    return table(("", "registrations/s at most", "by"), rows)


def layout(rate):
    """The cores of one system for a rate, and its replicas and shards."""
    patients = ASSUMED["patients of statements"]
    return {
        "replicas": max(2, cores(rate, "patient-service")),
        "shards": math.ceil(rate / shard() / ASSUMED["utilisation"]),
        "cores": {
            "patients": cores(rate, "postgresql", patients),
            "accounts": cores(rate, "postgresql", 1 - patients),
            "billing-service": cores(rate, "billing-service"),
            "kafka": cores(rate, "kafka"),
            "analytics-service": cores(rate, "analytics-service"),
        },
    }


def splits():
    head = ("", *(f"{rate:,}/s" for rate in RATES))
    layouts = [layout(rate) for rate in RATES]
    cells = [math.ceil(rate / CELL) for rate in RATES]

    def row(what, factor):
        return (what, *(number(rate * factor) for rate in RATES))

    def whole(what, value):
        return (what, *(f"{value(one):,}" for one in layouts))

    return table(
        head,
        [
            whole("patient-service, replicas", lambda one: one["replicas"]),
            whole("PostgreSQL of patients, cores", lambda one: one["cores"]["patients"]),
            whole("PostgreSQL of accounts, cores", lambda one: one["cores"]["accounts"]),
            whole("billing-service, cores", lambda one: one["cores"]["billing-service"]),
            whole("Kafka, cores", lambda one: one["cores"]["kafka"]),
            whole("analytics-service, cores, and partitions at least", lambda one: one["cores"]["analytics-service"]),
            whole("shards of the outbox", lambda one: one["shards"]),
            whole("connections of patients", lambda one: one["replicas"] * CONNECTIONS),
            row("WAL, MB/s", SIZES["wal"] / 1e6),
            row(f"Kafka, MB/s on disk, {COPIES} copies", SIZES["topic"] * COPIES / 1e6),
            row("patients a day, million", 86_400 / 1e6),
            ("systems of at most 10,000/s (cells)", *(f"{count:,}" for count in cells)),
        ],
    )


def cells():
    rows = []
    for planned, shards, factors in ((1_000, 1, (1.0, 2.0)), (CELL, 1, (1.0, 1.5, 2.0)), (CELL, 2, (2.0,))):
        for factor in factors:
            one = layout(planned)
            system = System(cores=one["cores"], replicas=one["replicas"], shards=shards)
            outcome = system.run(rate=planned * factor, count=30_000, warm_up=10_000)
            used = {name.split(" ")[0]: part for name, part in outcome["used"].items()}
            fullest = sorted(used.items(), key=lambda item: -item[1])[:2]
            rows.append(
                (
                    f"{planned:,}/s, shards: {shards}",
                    f"{planned * factor:,.0f}/s",
                    number(outcome["p50"]),
                    number(outcome["commits"]),
                    f"{outcome['waiting']:,}",
                    ", ".join(f"{name} {part:.0%}" for name, part in fullest),
                )
            )
    return table(("planned for", "offered", "p50, ms", "commits/s of requests", "events left in the outbox", "fullest"), rows)


def patients():
    counts = (1e6, 1e7, 1e8, 1e9)

    def row(what, size):
        return (what, *(f"{number(count * size / GIB)} GiB" for count in counts))

    def duration(count):
        time = count / recorded("replay-rate")
        return f"{time:,.0f} s" if time < 600 else f"{time / 60:,.0f} min"

    return table(
        ("", *(f"{count:,.0f}" for count in counts)),
        [
            row("PostgreSQL of patients", SIZES["patients"]),
            row("PostgreSQL of accounts", SIZES["accounts"]),
            row("topic, an event each, one copy", SIZES["topic"]),
            row("state of analytics-service", SIZES["state"]),
            ("reading the topic anew, at the recorded rate", *(duration(count) for count in counts)),
        ],
    )


TABLES = {"checks": checks, "units": units, "splits": splits, "cells": cells, "patients": patients}


def written(page):
    """The page with its tables as they are now."""
    for name, rows in TABLES.items():
        begin, end = f"<!-- {name}: from capacity.py -->\n\n", "\n\n<!-- end -->"
        text = begin + "\n".join(rows()) + end
        page, count = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: text, page, flags=re.DOTALL)
        assert count == 1, f"the page has no place for {name}"
    return page


def calibrate():
    def distance(candidate):
        given = tuple(zip(CALIBRATED, candidate))
        runs = {"rate": machine(rate=100, calibrated=given), 64: machine(clients=64, calibrated=given)}
        runs[1024] = machine(clients=1024, calibrated=given)
        pairs = [
            (runs["rate"]["cpu"], QUIET["all"]),
            (runs["rate"]["p50"], QUIET["p50"]),
            (runs[64]["rate"], mean("creates")),
            (runs[1024]["rate"], growth("connections", "create", 1024)),
        ]
        return sum(math.log(simulated / measured) ** 2 for simulated, measured in pairs)

    candidates = itertools.product(
        (0.46, 0.48, 0.5, 0.52, 0.54), (0.6, 0.8, 1.0, 1.2), (5.0, 5.5, 6.0), (0.15, 0.25, 0.35)
    )
    best = sorted((distance(candidate), candidate) for candidate in candidates)[:3]
    for error, candidate in best:
        print(dict(zip(CALIBRATED, candidate)), f"{error:.5f}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--calibrate"]:
        calibrate()
    elif sys.argv[1:] == ["--write"]:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        for title, rows in TABLES.items():
            print(title, *rows(), "", sep="\n")
