"""The manifests as kustomize builds them, and what the rest of the repository says about the same things."""

import functools
import json
import os
import pathlib
import re
import subprocess
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = ("development", "production")


def text(path):
    return (ROOT / path).read_text(encoding="utf-8")


@functools.cache
def build(overlay, *components):
    """The documents of an overlay, with components that it does not have itself."""
    with tempfile.TemporaryDirectory() as scratch:
        # kustomize takes no absolute paths.
        below = os.path.relpath(KUBERNETES, pathlib.Path(scratch).resolve())
        kustomization = {
            "resources": [f"{below}/overlays/{overlay}"],
            "components": [f"{below}/components/{component}" for component in components],
        }
        pathlib.Path(scratch, "kustomization.yaml").write_text(json.dumps(kustomization), encoding="utf-8")
        built = subprocess.run(
            [os.environ["KUSTOMIZE"], "build", scratch], capture_output=True, text=True, check=False
        )
    assert built.returncode == 0, built.stderr
    return [document for document in yaml.safe_load_all(built.stdout) if document]


def name(document):
    return document["metadata"]["name"]


def of_kind(documents, *kinds):
    return [document for document in documents if document["kind"] in kinds]


def workloads(documents):
    return of_kind(documents, "Deployment", "StatefulSet")


def for_each_workload(test):
    """Makes a test of every workload in every overlay."""

    @functools.wraps(test)
    def tests(self):
        for overlay in OVERLAYS:
            documents = build(overlay)
            for workload in workloads(documents):
                with self.subTest(overlay=overlay, workload=name(workload)):
                    test(self, documents, workload)

    return tests


def pod(workload):
    return workload["spec"]["template"]["spec"]


def container(workload):
    (only,) = pod(workload)["containers"]
    return only


def pod_labels(workload):
    return workload["spec"]["template"]["metadata"]["labels"]


def matches(selector, labels):
    """Whether a label selector has these labels."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions), selector
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def config(documents):
    """The contents of each ConfigMap by its name."""
    return {name(document): document.get("data", {}) for document in of_kind(documents, "ConfigMap")}


def environment(documents, workload):
    """The variables of a container: its own, and those of ConfigMaps that it does not have itself."""
    only = container(workload)
    own = {variable["name"]: variable for variable in only["env"]}
    shared = {}
    for source in only.get("envFrom", []):
        shared |= config(documents)[source["configMapRef"]["name"]]
    return own, shared


def value(documents, workload, setting):
    """What a setting is for a workload, or None."""
    own, shared = environment(documents, workload)
    return own[setting].get("value") if setting in own else shared.get(setting)


@functools.cache
def settings(service):
    """The settings of a service with their defaults, from docs/settings.md, which a test compares with the binaries."""
    found = {}
    for section in text("docs/settings.md").split("\n### ")[1:]:
        heading, table = section.split("\n", 1)
        if heading == "All services" or heading.endswith("in all services") or service in heading:
            for row in re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", table, re.MULTILINE):
                default = re.match(r"`([^`]*)`", row[1])
                found |= {name: default and default.group(1) for name in re.findall(r"`([A-Z0-9_]+)`", row[0])}
    return found


def seconds(span):
    assert re.fullmatch(r"\d+s", span), f"{span} is not in seconds"
    return int(span[:-1])


def mebibytes(quantity):
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", quantity).groups()
    return int(number) * {"Mi": 1, "Gi": 1024, "m": 1, "g": 1024}[unit]


@functools.cache
def exposed(service):
    """The ports of an image."""
    stage = text("Dockerfile").split(f" AS {service}\n")[1].split("\nFROM ")[0]
    return {int(port) for port in re.search(r"^EXPOSE (.*)$", stage, re.MULTILINE).group(1).split()}


@functools.cache
def image_variable(service, variable):
    """A variable that an image sets."""
    stage = text("Dockerfile").split(f" AS {service}\n")[1].split("\nFROM ")[0]
    return re.search(rf"\b{variable}=(\S+)", stage).group(1)


def compose():
    return yaml.safe_load(text("docker-compose.yaml"))["services"]
