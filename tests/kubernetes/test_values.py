"""The values of settings, as the binaries read them."""

import os
import re
import subprocess
import sys
import unittest

from pip._vendor import certifi

from manifests import ROOT, environment, for_each_workload, image_variable, name

# A relative path is below the root, where cargo is called.
BINARIES = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / os.environ.get("CARGO_BUILD_TARGET", "") / "debug"


class Values(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not (BINARIES / "patient-service").exists():
            reason = f"SKIPPED: tests/kubernetes/test_values.py: the services are not built in {BINARIES}"
            print(reason, file=sys.stderr)
            raise unittest.SkipTest(reason)

    @for_each_workload
    def test_every_value_is_valid(self, documents, workload):
        printed = print_config(workload, variables(documents, workload))
        self.assertEqual(printed.returncode, 0, printed.stderr)

    @for_each_workload
    def test_a_wrong_value_is_found(self, documents, workload):
        printed = print_config(workload, variables(documents, workload) | {"SHUTDOWN_TIMEOUT": "ten"})
        self.assertEqual(printed.returncode, 78)
        self.assertIn("SHUTDOWN_TIMEOUT", printed.stderr)


def variables(documents, workload):
    """What a container would have in its environment, with a stand-in for each secret."""
    own, shared = environment(documents, workload)
    given = {variable: one.get("value", "0") for variable, one in own.items()}
    expanded = {variable: re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], text) for variable, text in given.items()}
    image = {"SERVER_ADDRESS": image_variable("service", "SERVER_ADDRESS")}
    # Authorities are read at once: pip's are as good.
    ca_file = re.compile(r"/tls/\w+/ca\.crt")
    return {variable: ca_file.sub(certifi.where(), text) for variable, text in (shared | expanded | image).items()}


def print_config(workload, given):
    return subprocess.run(
        [BINARIES / name(workload), "--print-config"], env=given, capture_output=True, text=True, check=False, timeout=60
    )
