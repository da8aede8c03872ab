"""Who reaches whom: nothing by default, and each flow with a policy at both ends."""

import functools
import json
import unittest

from manifests import OVERLAYS, ROOT, build, container, matches, name, of_kind, pod_labels, workloads

# The flows of the system between our pods and those that operators make for us, by their port. Answers need none.
FLOWS = {
    ("patient-service", "billing-service", 9001),
    ("patient-service", "patient-db", 5432),
    ("patient-service", "kafka", 9093),
    ("billing-service", "billing-db", 5432),
    ("analytics-service", "kafka", 9093),
    ("analytics-service", "analytics-service", 4002),
    ("patient-db", "patient-db", 5432),
    ("patient-db", "patient-db", 8000),
    ("billing-db", "billing-db", 5432),
    ("billing-db", "billing-db", 8000),
    ("kafka", "kafka", 9090),
    ("kafka", "kafka", 9091),
    ("entity-operator", "kafka", 9091),
}
DEVELOPMENT = {("patient-service", "auth-service", 4005), ("analytics-service", "auth-service", 4005)}
# From other namespaces.
OUTSIDE = {
    ("gateway", "patient-service", 4000),
    ("gateway", "analytics-service", 4002),
    ("monitoring", "patient-service", 9100),
    ("monitoring", "billing-service", 9100),
    ("monitoring", "analytics-service", 9100),
    ("cnpg-system", "patient-db", 5432),
    ("cnpg-system", "patient-db", 8000),
    ("cnpg-system", "billing-db", 5432),
    ("cnpg-system", "billing-db", 8000),
    ("strimzi-system", "kafka", 9090),
    ("strimzi-system", "kafka", 9091),
    ("strimzi-system", "kafka", 8443),
}
# Who talks to Kubernetes' API.
OF_OPERATORS = {"patient-db", "billing-db", "kafka", "entity-operator"}


def pods(documents):
    """The labels of every kind of pod: ours, and those that operators make."""
    labels = {name(workload): pod_labels(workload) for workload in workloads(documents)}
    labels |= {name(one): {"cnpg.io/cluster": name(one)} for one in of_kind(documents, "Cluster")}
    (kafka,) = of_kind(documents, "Kafka")
    labels[name(kafka)] = {"strimzi.io/name": f"{name(kafka)}-kafka"}
    labels["entity-operator"] = {"strimzi.io/name": f"{name(kafka)}-entity-operator"}
    return labels


def flows(documents, direction):
    """The (client, server, port) that policies permit in a direction; a client of another namespace has its name."""
    labels = pods(documents)
    far = {"ingress": "from", "egress": "to"}[direction]
    for policy in of_kind(documents, "NetworkPolicy"):
        near = [pod for pod, own in labels.items() if matches(policy["spec"]["podSelector"], own)]
        assert near, f"{name(policy)} selects no pod"
        for rule in policy["spec"].get(direction, []):
            for peer in rule.get(far, [{}]):
                if "namespaceSelector" in peer:
                    others = [peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]]
                elif "podSelector" in peer:
                    others = [pod for pod, own in labels.items() if matches(peer["podSelector"], own)]
                else:
                    others = ["internet" if "ipBlock" in peer else "anywhere"]
                assert others, f"{name(policy)} permits a peer that does not exist"
                for one in near:
                    for other in others:
                        for port in rule["ports"]:
                            pair = (other, one) if direction == "ingress" else (one, other)
                            yield (*pair, port["port"])


def for_each_overlay(test):
    """Makes a test of every overlay, with the flows that it should have."""

    @functools.wraps(test)
    def tests(self):
        for overlay in OVERLAYS:
            with self.subTest(overlay=overlay):
                test(self, build(overlay), FLOWS | (DEVELOPMENT if overlay == "development" else set()))

    return tests


class Network(unittest.TestCase):
    @for_each_overlay
    def test_everything_is_denied_by_default(self, documents, _):
        (deny,) = [one for one in of_kind(documents, "NetworkPolicy") if name(one) == "deny-by-default"]
        self.assertEqual(deny["spec"], {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})
        for policy in of_kind(documents, "NetworkPolicy"):
            # A direction that is not named would be as if the policy were not there.
            named = {direction.lower() for direction in policy["spec"]["policyTypes"]}
            self.assertLessEqual({"ingress", "egress"} & set(policy["spec"]), named)

    @for_each_overlay
    def test_every_flow_is_permitted_at_both_ends_and_no_other(self, documents, expected):
        outside = OUTSIDE | ({("gateway", "auth-service", 4005)} if expected > FLOWS else set())
        self.assertEqual(set(flows(documents, "ingress")), expected | outside)
        leaving = set(flows(documents, "egress"))
        dns = {(pod, "kube-system", 53) for pod in pods(documents)}
        api = {(pod, "anywhere", port) for pod in OF_OPERATORS for port in (443, 6443)}
        # The issuer of production has no name that a policy could have.
        issuer = {(name(one), "internet", 443) for one in workloads(documents) if expected == FLOWS}
        self.assertEqual(leaving, expected | dns | api | issuer)

    @for_each_overlay
    def test_flows_to_our_pods_are_to_ports_that_they_have(self, documents, _):
        for workload in workloads(documents):
            ports = {port["containerPort"] for port in container(workload)["ports"]}
            reached = {port for _, server, port in flows(documents, "ingress") if server == name(workload)}
            self.assertLessEqual(reached, ports)

    @for_each_overlay
    def test_kafka_s_own_policy_lets_in_the_same_clients(self, documents, expected):
        (kafka,) = of_kind(documents, "Kafka")
        (listener,) = kafka["spec"]["kafka"]["listeners"]
        labels = pods(documents)
        peers = [peer["podSelector"] for peer in listener["networkPolicyPeers"]]
        clients = {pod for pod, own in labels.items() if any(matches(peer, own) for peer in peers)}
        self.assertEqual(clients, {client for client, server, port in expected if port == listener["port"]})

    @for_each_overlay
    def test_every_kafka_client_is_a_user_with_rights_to_its_topics_alone(self, documents, _):
        rights = {
            (name(user), acl["resource"]["name"], operation)
            for user in of_kind(documents, "KafkaUser")
            for acl in user["spec"]["authorization"]["acls"]
            for operation in acl["operations"]
        }
        patient, dead_letters = (name(topic) for topic in of_kind(documents, "KafkaTopic"))
        # Those that the services are tested with, but that Strimzi creates the topics.
        needed = json.loads((ROOT / "deploy/secure/kafka-permissions.json").read_text(encoding="utf-8"))
        self.assertEqual({row["name"] for row in needed}, {patient, dead_letters, "analytics-service"})
        self.assertEqual(
            rights,
            {
                (row["user"], row["name"], operation)
                for row in needed
                for operation in row["operations"]
                if operation != "Create"
            },
        )

    @for_each_overlay
    def test_every_service_selects_pods_with_its_port(self, documents, _):
        for service in of_kind(documents, "Service"):
            selector = {"matchLabels": service["spec"]["selector"]}
            selected = [one for one in workloads(documents) if matches(selector, pod_labels(one))]
            self.assertEqual([name(one) for one in selected], [name(service).removesuffix("-pods")])
            ports = {port["name"]: port["containerPort"] for port in container(selected[0])["ports"]}
            for port in service["spec"]["ports"]:
                self.assertEqual(ports[port["targetPort"]], port["port"])
        stateful = [one for one in workloads(documents) if one["kind"] == "StatefulSet"]
        self.assertTrue(all(one["spec"]["serviceName"] in map(name, of_kind(documents, "Service")) for one in stateful))
