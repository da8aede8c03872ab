"""The model behind docs/capacity.md: how far it is from what was measured, and whether the page says what it says."""

import pathlib
import re
import sys
import unittest

DIRECTORY = pathlib.Path(__file__).resolve().parents[2] / "docs/capacity"
sys.path.insert(0, str(DIRECTORY))

import capacity  # noqa: E402
import figures  # noqa: E402
import simulation  # noqa: E402

# Greatest errors: of what the model is fitted to, of what it predicts, and of what the page says that it misses.
FITTED, PREDICTED, MISSED = 0.10, 0.20, 0.70
# Python's versions may round a simulated number otherwise.
TOLERANCE = 0.10


class Model(unittest.TestCase):
    def test_it_is_as_near_to_the_measurements_as_the_page_says(self):
        self.assertGreaterEqual(len(capacity.PREDICTED), 3)
        bounds = ((FITTED, capacity.CALIBRATED_TO), (PREDICTED, capacity.PREDICTED), (MISSED, capacity.MISSED))
        for greatest, points in bounds:
            for what, measured, model, _ in points:
                error = capacity.error(measured, model)
                print(f"{what}: measured {measured:.2f}, model {model():.2f}, error {error:+.0%}")
                with self.subTest(what):
                    self.assertLess(abs(error), greatest, "after new measurements: docs/capacity/capacity.py --calibrate")

    def test_without_shared_statements_it_would_not_be(self):
        """The mechanism that the model rests on."""
        batches = simulation.MAX_REQUESTS
        simulation.MAX_REQUESTS = 1
        try:
            rate = simulation.System(shared=figures.CORES).run(clients=1024)["rate"]
        finally:
            simulation.MAX_REQUESTS = batches
        self.assertLess(rate, capacity.of_connections(1024) / 2)

    def test_more_cores_than_are_used_change_nothing(self):
        cores = {"patients": 8, "accounts": 8, "billing-service": 8, "kafka": 8, "analytics-service": 8}
        outcome = simulation.System(cores=cores, replicas=2).run(rate=500)
        self.assertAlmostEqual(outcome["rate"], 500, delta=25)
        self.assertLess(max(outcome["used"].values()), 0.5)


class Page(unittest.TestCase):
    def test_its_tables_are_those_of_the_model(self):
        page = capacity.PAGE.read_text(encoding="utf-8")
        new = capacity.written(page)
        number = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
        how = "run docs/capacity/capacity.py --write"
        self.assertEqual(page.count("\n"), new.count("\n"), how)
        for said, computed in zip(page.split("\n"), new.split("\n")):
            self.assertEqual(number.sub("N", said), number.sub("N", computed), how)
            for one, other in zip(number.findall(said), number.findall(computed)):
                # A whole number, such as a percentage, may be rounded the other way.
                least = 0.02 if "." in one else 2
                one, other = (float(text.replace(",", "")) for text in (one, other))
                self.assertLessEqual(abs(one - other), max(TOLERANCE * abs(one), least), f"{said}: {other}; {how}")
