"""What the pods promise: the same as tests/compose of the containers, and what Kubernetes adds to it."""

import json
import re
import unittest

from manifests import (
    OVERLAYS,
    build,
    compose,
    config,
    container,
    environment,
    exposed,
    for_each_workload,
    image_variable,
    matches,
    mebibytes,
    name,
    of_kind,
    pod,
    pod_labels,
    seconds,
    settings,
    text,
    value,
    workloads,
)

# Seconds that a service adds to its drain for background tasks: KAFKA_DEADLINE and those of the database.
BACKGROUND = 8
# Connections that a service opens besides DATABASE_CONNECTIONS; docs/settings.md says so.
RESERVED = {"patient-service": 6, "billing-service": 1}
# What is left for the operator of PostgreSQL and for administrators.
SPARE_CONNECTIONS = 10
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


class Pods(unittest.TestCase):
    def test_every_service_is_there(self):
        services = {"patient-service", "billing-service", "analytics-service"}
        found = {overlay: {name(workload) for workload in workloads(build(overlay))} for overlay in OVERLAYS}
        self.assertEqual(found, {"production": services, "development": services | {"auth-service"}})

    @for_each_workload
    def test_pods_have_least_privilege(self, documents, workload):
        spec, only = pod(workload), container(workload)
        self.assertNotIn("initContainers", spec)
        self.assertFalse({"hostNetwork", "hostPID", "hostIPC"} & set(spec))
        context = spec["securityContext"]
        self.assertIs(context["runAsNonRoot"], True)
        self.assertEqual(compose()[name(workload)]["user"], f"{context['runAsUser']}:{context['runAsGroup']}")
        self.assertEqual(context["seccompProfile"], {"type": "RuntimeDefault"})
        expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        self.assertEqual(only["securityContext"], expected)
        self.assertIs(spec["automountServiceAccountToken"], False)
        # They would be variables in the form of settings.
        self.assertIs(spec["enableServiceLinks"], False)
        (account,) = [one for one in of_kind(documents, "ServiceAccount") if name(one) == spec["serviceAccountName"]]
        self.assertIs(account["automountServiceAccountToken"], False)
        self.assertEqual(name(account), name(workload), "a service account of its own")
        self.assertFalse(of_kind(documents, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"))
        for volume in spec.get("volumes", []):
            self.assertNotIn("hostPath", volume)
            self.assertIn("sizeLimit", volume.get("emptyDir", {"sizeLimit": None}), volume["name"])

    def test_pods_of_kafka_have_least_privilege_and_writable_volumes(self):
        for overlay in OVERLAYS:
            (pool,) = of_kind(build(overlay), "KafkaNodePool")
            (kafka,) = of_kind(build(overlay), "Kafka")
            for template in (pool["spec"]["template"], kafka["spec"]["entityOperator"]["template"]):
                # Strimzi's own context of the pod makes the volumes writable, unless there is another one.
                self.assertNotIn("pod", template)
                for one in template.values():
                    expected = {
                        "runAsNonRoot": True,
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    }
                    self.assertEqual(one["securityContext"], expected)

    def test_the_namespace_enforces_the_restricted_standard(self):
        for overlay in OVERLAYS:
            (namespace,) = of_kind(build(overlay), "Namespace")
            self.assertEqual(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted")
            outside = [one for one in build(overlay) if one["kind"] != "Namespace"]
            self.assertEqual({one["metadata"]["namespace"] for one in outside}, {name(namespace)})

    @for_each_workload
    def test_resources_are_requested_and_limited_above_what_was_measured(self, _, workload):
        figures = json.loads(text("docs/performance/results.json"))["figures"]
        resources = container(workload)["resources"]
        requests, limits = resources["requests"], resources["limits"]
        self.assertEqual((set(requests), set(limits)), ({"cpu", "memory"}, {"cpu", "memory"}))
        self.assertEqual(mebibytes(limits["memory"]), mebibytes(compose()[name(workload)]["mem_limit"]))
        self.assertLessEqual(mebibytes(requests["memory"]), mebibytes(limits["memory"]))
        measured = figures.get(f"rss-load-{name(workload)}")
        if measured:
            self.assertGreater(mebibytes(requests["memory"]), measured["value"])

    @for_each_workload
    def test_probes_ask_ports_and_paths_that_exist(self, documents, workload):
        router = text("libs/web/src/router.rs") + text("libs/web/src/health.rs")
        only = container(workload)
        ports = {port["name"]: port["containerPort"] for port in only["ports"]}
        speaks_tls = value(documents, workload, "SERVER_TLS_CERTIFICATE") is not None
        for probe in PROBES:
            self.assertIn(probe, only)
            if "grpc" in only[probe]:
                self.assertEqual(only[probe]["grpc"]["port"], ports["grpc"])
                self.assertIsNone(
                    value(documents, workload, "GRPC_SERVER_TLS_CERTIFICATE"), "a gRPC probe speaks no TLS"
                )
                return
            request = only[probe]["httpGet"]
            self.assertEqual(request["port"], "http")
            self.assertEqual(request.get("scheme", "HTTP"), "HTTPS" if speaks_tls else "HTTP")
            end = "readiness" if probe == "readinessProbe" else "liveness"
            self.assertEqual(request["path"], f"/actuator/health/{end}")
            self.assertIn(f'"{request["path"]}"', router)

    @for_each_workload
    def test_ports_are_those_of_the_image_and_of_the_settings(self, documents, workload):
        ports = {port["name"]: port["containerPort"] for port in container(workload)["ports"]}
        operations = ports.pop("operations", None)
        self.assertEqual(set(ports.values()), exposed(name(workload)))
        wanted = value(documents, workload, "OPERATIONS_PORT")
        self.assertEqual(operations, wanted and int(wanted))

    @for_each_workload
    def test_every_variable_is_a_setting(self, documents, workload):
        services = ["patient-service", "billing-service", "analytics-service", "auth-service"]
        own, shared = environment(documents, workload)
        self.assertGreater(len(settings(name(workload))), 30)
        expanded = set(re.findall(r"\$\((\w+)\)", " ".join(one.get("value", "") for one in own.values())))
        self.assertEqual(set(own) - expanded - set(settings(name(workload))), set())
        self.assertLessEqual(expanded, set(own), "expanded, and not set")
        for variable in shared:
            self.assertTrue(any(variable in settings(service) for service in services), variable)

    @for_each_workload
    def test_every_service_says_who_may_call(self, documents, workload):
        if name(workload) == "auth-service":
            return
        auth = value(documents, workload, "AUTH")
        if auth == "jwt":
            self.assertEqual(value(documents, workload, "AUTH_AUDIENCE"), name(workload))
            self.assertIsNotNone(value(documents, workload, "AUTH_ISSUER"))
            self.assertTrue(any(value(documents, workload, f"AUTH_JWKS_{by}") for by in ("URL", "FILE")))
        else:
            self.assertEqual((auth, value(documents, workload, "AUTH_OFF_ON_NETWORK")), ("off", "yes"))
            self.assertEqual(name(workload), "billing-service")

    def test_production_trusts_tokens_and_certificates_alone(self):
        documents = build("production")
        for workload in workloads(documents):
            self.assertEqual(value(documents, workload, "AUTH"), "jwt")
            self.assertIsNone(value(documents, workload, "AUTH_OFF_ON_NETWORK"))
            self.assertTrue(value(documents, workload, "AUTH_JWKS_URL").startswith("https://"))
            for setting in ("SERVER_TLS_CERTIFICATE", "SERVER_TLS_KEY"):
                self.assertIsNotNone(value(documents, workload, setting))
        (billing,) = [one for one in workloads(documents) if name(one) == "billing-service"]
        (certificate,) = [one for one in of_kind(documents, "Certificate") if name(one) == "patient-service"]
        self.assertIn(value(documents, billing, "GRPC_CLIENT_SANS"), certificate["spec"]["dnsNames"])
        self.assertIn("client auth", certificate["spec"]["usages"])
        self.assertIsNotNone(value(documents, billing, "GRPC_SERVER_TLS_CLIENT_CA"))
        (analytics,) = [one for one in workloads(documents) if name(one) == "analytics-service"]
        self.assertEqual(value(documents, analytics, "ANALYTICS_MEMBERS_TLS_CA"), "/tls/service/ca.crt")
        names = [one["spec"]["dnsNames"] for one in of_kind(documents, "Certificate") if name(one) == name(analytics)]
        # Verifiers demand two labels after the *.
        self.assertIn("*.analytics-service-pods.patient-management.svc", names[0], "the pods ask each other by these names")

    @for_each_workload
    def test_the_grace_period_is_longer_than_pause_and_drain(self, documents, workload):
        pause = container(workload)["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = value(documents, workload, "SHUTDOWN_TIMEOUT") or settings(name(workload))["SHUTDOWN_TIMEOUT"]
        grace = pod(workload)["terminationGracePeriodSeconds"]
        self.assertGreater(grace, pause + seconds(drain) + BACKGROUND, "it is killed while it drains")

    @for_each_workload
    def test_an_image_is_one_that_compose_builds_with_the_version_of_the_workspace(self, _, workload):
        version = re.search(r'^version = "(.*)"$', text("Cargo.toml"), re.MULTILINE).group(1)
        targets = {service["build"]["target"] for service in compose().values() if "build" in service}
        image, tag = container(workload)["image"].rsplit(":", 1)
        self.assertEqual((image.rsplit("/", 1)[-1], tag), (name(workload), version))
        self.assertIn(name(workload), targets)

    @for_each_workload
    def test_paths_in_settings_are_mounted(self, documents, workload):
        mounts = {mount["mountPath"]: mount for mount in container(workload)["volumeMounts"]}
        volumes = {volume["name"] for volume in pod(workload).get("volumes", [])}
        volumes |= {name(claim) for claim in workload["spec"].get("volumeClaimTemplates", [])}
        self.assertEqual({mount["name"] for mount in mounts.values()}, volumes)
        own, shared = environment(documents, workload)
        known = settings(name(workload))
        paths = {setting: value(documents, workload, setting) for setting in (*own, *shared) if setting in known}
        for path in re.findall(r"(?:^|=)(/[\w./-]+)", "\n".join(text for text in paths.values() if text), re.MULTILINE):
            self.assertIn(path.rsplit("/", 1)[0], mounts, f"{path} is on no volume")
        for variable in ("STATE_FILE", "SIGNING_KEY_FILE", "USERS_FILE"):
            if variable in known:
                self.assertIn(image_variable(name(workload), variable).rsplit("/", 1)[0], mounts)
        if name(workload) == "analytics-service":
            # For SQLite's temporary files: without it, large transactions fail with "disk I/O error".
            self.assertIn("/tmp", mounts)

    @for_each_workload
    def test_members_of_the_consumer_group_keep_their_name_their_address_and_their_volume(self, documents, workload):
        if name(workload) != "analytics-service":
            return
        own, _ = environment(documents, workload)
        self.assertEqual(own["PARTITIONS"]["value"], "group")
        self.assertEqual(own["KAFKA_GROUP_INSTANCE_ID"]["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name")
        # A pod of a StatefulSet has this name, and the service without a cluster IP the addresses of the pods.
        (service,) = [one for one in of_kind(documents, "Service") if name(one) == workload["spec"]["serviceName"]]
        self.assertEqual(service["spec"]["clusterIP"], "None")
        self.assertTrue(service["spec"]["publishNotReadyAddresses"], "one with a halted partition has its others' counts")
        domain = f"{name(service)}.{service['metadata']['namespace']}.svc"
        address = f"$(KAFKA_GROUP_INSTANCE_ID).{domain}:{service['spec']['ports'][0]['port']}"
        self.assertEqual(own["ADVERTISED_HTTP"]["value"], address)
        variables = list(own)
        self.assertLess(
            variables.index("KAFKA_GROUP_INSTANCE_ID"), variables.index("ADVERTISED_HTTP"), "it is not known before"
        )
        self.assertEqual(workload["kind"], "StatefulSet")
        (claim,) = workload["spec"]["volumeClaimTemplates"]
        self.assertEqual(claim["spec"]["accessModes"], ["ReadWriteOncePod"], "two pods would count into one state")
        (topic,) = [one for one in of_kind(documents, "KafkaTopic") if name(one) == "patient"]
        self.assertGreaterEqual(topic["spec"]["partitions"], workload["spec"]["replicas"])
        (user,) = [one for one in of_kind(documents, "KafkaUser") if name(one) == name(workload)]
        groups = [acl for acl in user["spec"]["authorization"]["acls"] if acl["resource"]["type"] == "group"]
        self.assertEqual([(acl["resource"]["name"], acl["operations"]) for acl in groups], [(name(workload), ["Read"])])

    def test_what_scales_by_lag_has_at_most_one_pod_for_each_partition(self):
        documents = build("production", "keda")
        (scaled,) = of_kind(documents, "ScaledObject")
        (workload,) = [one for one in workloads(documents) if name(one) == scaled["spec"]["scaleTargetRef"]["name"]]
        self.assertNotIn("replicas", workload["spec"], "one of the two decides")
        (without,) = [one for one in workloads(build("production")) if name(one) == name(workload)]
        (topic,) = [one for one in of_kind(documents, "KafkaTopic") if name(one) == "patient"]
        bounds = (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"])
        self.assertEqual(bounds, (without["spec"]["replicas"], topic["spec"]["partitions"]))
        (trigger,) = scaled["spec"]["triggers"]
        metric = re.search(r"\((\w+)\{", trigger["metadata"]["query"]).group(1)
        self.assertIn(f"`{metric}", text("docs/observability.md"))
        for overlay in OVERLAYS:
            self.assertFalse(of_kind(build(overlay), "ScaledObject"))

    @for_each_workload
    def test_all_replicas_together_have_the_connections_that_postgresql_gives(self, documents, workload):
        if name(workload) not in RESERVED:
            return
        scalers = of_kind(documents, "HorizontalPodAutoscaler")
        targets = [one["spec"] for one in scalers if one["spec"]["scaleTargetRef"]["name"] == name(workload)]
        self.assertNotEqual("replicas" in workload["spec"], bool(targets), "one of the two decides about replicas")
        replicas = targets[0]["maxReplicas"] if targets else workload["spec"]["replicas"]
        surge = workload["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
        each = int(value(documents, workload, "DATABASE_CONNECTIONS")) + RESERVED[name(workload)]
        host = re.search(r"@?([\w-]+)-rw:", value(documents, workload, "DATABASE_URL")).group(1)
        (database,) = [one for one in of_kind(documents, "Cluster") if name(one) == host]
        given = int(database["spec"]["postgresql"]["parameters"]["max_connections"])
        self.assertLessEqual((replicas + surge) * each + SPARE_CONNECTIONS, given)

    def test_databases_know_the_letters_of_every_script(self):
        for overlay in OVERLAYS:
            for cluster in of_kind(build(overlay), "Cluster"):
                initdb = cluster["spec"]["bootstrap"]["initdb"]
                locale = (initdb.get("encoding", "UTF8"), initdb.get("localeCType", "C"), initdb.get("localeCollate", "C"))
                self.assertEqual(locale, ("UTF8", "C.UTF-8", "C.UTF-8"), name(cluster))

    @for_each_workload
    def test_disruptions_are_bounded_and_pods_are_spread(self, documents, workload):
        if name(workload) == "auth-service":
            return
        budgets = of_kind(documents, "PodDisruptionBudget")
        of_it = [one["spec"] for one in budgets if matches(one["spec"]["selector"], pod_labels(workload))]
        self.assertEqual([budget["maxUnavailable"] for budget in of_it], [1])
        spread = pod(workload)["topologySpreadConstraints"]
        keys = {one["topologyKey"] for one in spread}
        self.assertEqual(keys, {"kubernetes.io/hostname", "topology.kubernetes.io/zone"})
        self.assertTrue(all(matches(one["labelSelector"], pod_labels(workload)) for one in spread))

    def test_versions_are_those_that_tests_run_on(self):
        kafka_version = re.search(r'const KAFKA_VERSION: &str = "(.*)";', text("tools/testbed/src/broker/apache_kafka.rs")).group(1)
        postgres = re.search(r'POSTGRES_VERSION: &str = "(.*)";', text("tools/testbed/src/postgres/package.rs")).group(1)
        for overlay in OVERLAYS:
            (kafka,) = of_kind(build(overlay), "Kafka")
            self.assertEqual(kafka["spec"]["kafka"]["version"], kafka_version)
            for database in of_kind(build(overlay), "Cluster"):
                self.assertRegex(database["spec"]["imageName"], rf":{re.escape(postgres)}-")


class Secrets(unittest.TestCase):
    def test_no_manifest_has_a_secret(self):
        for overlay in OVERLAYS:
            documents = build(overlay)
            self.assertFalse(of_kind(documents, "Secret"))
            for data in config(documents).values():
                for setting in data:
                    self.assertNotRegex(setting, "PASSWORD|HEADERS|JAAS")
            for workload in workloads(documents):
                for variable in environment(documents, workload)[0].values():
                    if re.search("PASSWORD|HEADERS|JAAS", variable["name"]):
                        self.assertEqual(list(variable["valueFrom"]), ["secretKeyRef"], variable["name"])
                    self.assertNotRegex(variable.get("value", ""), r"://[^/]*:[^/]*@", "a password in a URL")

    def test_what_is_referred_to_is_made_by_somebody(self):
        for overlay in OVERLAYS:
            documents = build(overlay)
            made = {f"{name(one)}-{end}": end for one in of_kind(documents, "Cluster") for end in ("app", "ca")}
            made |= {name(one): "user" for one in of_kind(documents, "KafkaUser")}
            made |= {f"{name(one)}-cluster-ca-cert": "ca" for one in of_kind(documents, "Kafka")}
            made |= {one["spec"]["secretName"]: "certificate" for one in of_kind(documents, "Certificate")}
            for workload in workloads(documents):
                with self.subTest(overlay=overlay, workload=name(workload)):
                    for variable in environment(documents, workload)[0].values():
                        key = variable.get("valueFrom", {}).get("secretKeyRef")
                        if key:
                            self.assertIn(key["name"], made)
                            allowed = {"app": {"username", "password"}, "user": {"password"}}[made[key["name"]]]
                            self.assertIn(key["key"], allowed)
                    for volume in pod(workload).get("volumes", []):
                        if "secret" in volume:
                            self.check_volume(volume["secret"], made, workload)
                        elif "configMap" in volume:
                            self.assertIn(volume["configMap"]["name"], config(documents))

    def check_volume(self, secret, made, workload):
        """An authority's certificate without its key, or the certificate of the service itself."""
        if made[secret["secretName"]] == "ca":
            self.assertEqual([item["key"] for item in secret["items"]], ["ca.crt"])
        else:
            self.assertEqual(secret["secretName"], f"{name(workload)}-certificate")
