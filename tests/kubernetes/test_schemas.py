"""The manifests against Kubernetes' schemas, and those of operators against the fields that their CRDs know."""

import re
import unittest

import kubernetes_validate
import yaml

from manifests import OVERLAYS, ROOT, build, name

# The oldest and the newest version that the operators of docs/kubernetes.md support.
VERSIONS = ("1.33", "1.35")
TYPES = {"string": str, "integer": int, "boolean": bool, "scalar": (str, int, bool), "quantity": (str, int)}


def wrong_fields(value, shape, path):
    """The fields of a value that its shape does not have, or not so."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{path} is no mapping"
            return
        for key, inner in value.items():
            if key in shape or "*" in shape:
                yield from wrong_fields(inner, shape.get(key, shape.get("*")), f"{path}.{key}")
            else:
                yield f"{path}.{key} is unknown"
    elif isinstance(shape, list):
        for index, inner in enumerate(value if isinstance(value, list) else [None]):
            yield from wrong_fields(inner, shape[0], f"{path}[{index}]")
    elif shape in TYPES:
        # For Python, a bool is an int.
        is_bool_by_mistake = isinstance(value, bool) and shape not in ("boolean", "scalar")
        if not isinstance(value, TYPES[shape]) or is_bool_by_mistake:
            yield f"{path} is {value!r} and no {shape}"
    elif value not in shape.split("|"):
        yield f"{path} is {value!r} and not {shape}"


class Schemas(unittest.TestCase):
    shapes = yaml.safe_load((ROOT / "tests/kubernetes/operators.yaml").read_text(encoding="utf-8"))

    def test_every_manifest_is_valid(self):
        checked = set()
        for overlay in OVERLAYS:
            for document in build(overlay, "keda"):
                kind = f"{document['apiVersion']} {document['kind']}"
                with self.subTest(overlay=overlay, kind=kind, name=name(document)):
                    if kind in self.shapes:
                        self.assertEqual(list(wrong_fields(document["spec"], self.shapes[kind], "spec")), [])
                    else:
                        # Without a schema of its own it is an error too.
                        for version in VERSIONS:
                            kubernetes_validate.validate(document, version, strict=True)
                    checked.add(kind)
        self.assertEqual(set(self.shapes) - checked, set(), "shapes that nothing has")

    def test_a_wrong_field_is_found(self):
        cluster = self.shapes["postgresql.cnpg.io/v1 Cluster"]
        right = {"instances": 3, "postgresql": {"parameters": {"max_connections": "100"}}}
        self.assertEqual(list(wrong_fields(right, cluster, "spec")), [])
        for wrong in ({"instances": "3"}, {"replicas": 3}, {"postgresql": {"parameters": {"max_connections": 100}}}):
            self.assertEqual(len(list(wrong_fields(wrong, cluster, "spec"))), 1, wrong)
        users = self.shapes["kafka.strimzi.io/v1 KafkaUser"]
        self.assertTrue(list(wrong_fields({"authentication": {"type": "scram"}}, users, "spec")))

    def test_an_invalid_deployment_is_found(self):
        deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replica": 1}}
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)

    def test_the_operators_are_those_of_the_page(self):
        page = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
        head = (ROOT / "tests/kubernetes/operators.yaml").read_text(encoding="utf-8").split("\n")[:3]
        versions = re.findall(r"\b\d+\.\d+\.\d+\b", " ".join(head))
        self.assertEqual(len(versions), 4)
        for version in (*versions, *VERSIONS):
            self.assertIn(version, page)
