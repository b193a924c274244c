"""A deliberately wrong edit of the manifests is found, by the check that is there for it."""

import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import support.manifests
from support.manifests import findings
from support.manifests.editing import Edit, Gone, added, text
from support.manifests.reading import DEPLOY, manifests_in, render, render_prod_with
from support.manifests.schemas import crd_folder

SERVICE = "RayService/agent-actors"
JOB = "Job/agent-actors-provision"
CONFIG = "ConfigMap/agent-actors-config"
CLUSTER = "spec/rayClusterConfig"
AUTOSCALER = f"{CLUSTER}/autoscalerOptions"
HEAD = f"{CLUSTER}/headGroupSpec"
HEAD_POD = f"{HEAD}/template/spec"
RAY_HEAD = f"{HEAD_POD}/containers/ray-head"
WORKERS = f"{CLUSTER}/workerGroupSpecs/0"
WORKER_POD = f"{WORKERS}/template/spec"
RAY_WORKER = f"{WORKER_POD}/containers/ray-worker"
FAULT_TOLERANCE = f"{CLUSTER}/gcsFaultToleranceOptions"
COMPONENT = "app.kubernetes.io~component"
DIGEST = "@sha256:"
EVERYWHERE = {"ipBlock": {"cidr": "0.0.0.0/0"}}
SEED = "SUAPZZ3ARWUN4XWK6E4NQRBUC4YVQ2UYD3BIEM6GQWCPP4BUZZ6GB6AQXA"

in_service = partial(Edit, SERVICE)


class Wrong(NamedTuple):
    """An edit, the check that finds it, and words of what it says."""

    edit: Edit
    check: str
    words: str
    overlay: str = "prod"


def policy(name: str, path: str, value: Any) -> Edit:
    return Edit(f"NetworkPolicy/agent-actors-{name}", path, value)


def budget(path: str, value: Any) -> Edit:
    return Edit("PodDisruptionBudget/agent-actors-workers", path, value)


def config(old: str, new: str) -> Edit:
    return Edit(CONFIG, "data/agent-actors.yaml", text(old, new))


def serve(old: str, new: str) -> Edit:
    return in_service("spec/serveConfigV2", text(old, new))


SHAPES = {
    "a misspelt field of the cluster": Wrong(
        in_service(f"{CLUSTER}/enableInTreeAutoscalling", value=True),
        "schema",
        "enableInTreeAutoscalling",
    ),
    "a misspelt field of the service": Wrong(
        in_service("spec/rayClusterDeletionDelay", 660), "schema", "rayClusterDeletionDelay"
    ),
    "a text for a number": Wrong(in_service(f"{WORKERS}/minReplicas", "2"), "schema", "'2'"),
    "a value that is none of those": Wrong(
        in_service(f"{CLUSTER}/authOptions/mode", "tokens"), "schema", "tokens"
    ),
    "a misspelt field of a pod": Wrong(
        in_service(f"{WORKER_POD}/terminationGraceSecs", 645),
        "schema",
        "terminationGraceSecs",
    ),
    "a misspelt field of a probe": Wrong(
        in_service(f"{RAY_WORKER}/readinessProbe/failureTreshold", 3), "schema", "failureTreshold"
    ),
    "a misspelt field of a budget": Wrong(
        budget("spec/unhealthyEvictionPolicy", "AlwaysAllow"), "schema", "unhealthyEvictionPolicy"
    ),
    "a misspelt field of a policy": Wrong(
        policy("nats", "spec/policyType", ["Egress"]), "schema", "policyType"
    ),
    "a misspelt field of the Job": Wrong(
        Edit(JOB, "spec/backOffLimit", 3), "schema", "backOffLimit"
    ),
    "a misspelt key of Serve": Wrong(
        serve("num_replicas", "num_replica"), "serve", "num_replica is no key"
    ),
    "a value that Serve does not know": Wrong(serve("HeadOnly", "OnHead"), "serve", "OnHead"),
}

KUBERAY = {
    "a name that is too long": Wrong(
        in_service("metadata/name", "a" * 48), "kuberay", "is longer than 47"
    ),
    "a name that begins with a digit": Wrong(
        in_service("metadata/name", "0agents"), "kuberay", "is no DNS label"
    ),
    "an upgrade that is a cluster's": Wrong(
        in_service("spec/upgradeStrategy/type", "Recreate"), "kuberay", "upgradeStrategy.type"
    ),
    "an upgrade of the service's cluster": Wrong(
        in_service(f"{CLUSTER}/upgradeStrategy", {"type": "Recreate"}), "kuberay", "of its own"
    ),
    "an old Ray with a token": Wrong(
        in_service(f"{CLUSTER}/rayVersion", "2.51.0"), "kuberay", "wants rayVersion 2.52.0"
    ),
    "no version of Ray with a token": Wrong(
        in_service(f"{CLUSTER}/rayVersion", Gone()), "kuberay", "wants a rayVersion"
    ),
    "a head that restarts under autoscaler v2": Wrong(
        in_service(f"{HEAD_POD}/restartPolicy", "Always"), "kuberay", "restartPolicy Never"
    ),
    "more workers at least than at most": Wrong(
        in_service(f"{WORKERS}/minReplicas", 7), "kuberay", "greater than maxReplicas"
    ),
    "an idle timeout under autoscaler v1": Wrong(
        in_service(f"{AUTOSCALER}/version", "v1"), "kuberay", "wants autoscaler v2"
    ),
    "the autoscaler's version said twice": Wrong(
        in_service(f"{RAY_HEAD}/env", added({"name": "RAY_enable_autoscaler_v2", "value": "1"})),
        "kuberay",
        "are both set",
    ),
    "resources said twice": Wrong(
        in_service(f"{HEAD}/resources", {"CPU": "0"}), "kuberay", "rayStartParams and in resources"
    ),
    "labels among the start parameters": Wrong(
        in_service(f"{WORKERS}/rayStartParams/labels", "a=b"), "kuberay", "use the group's labels"
    ),
    "a policy by an alpha field": Wrong(
        in_service(f"{CLUSTER}/networkPolicy", {"mode": "DenyAll"}), "kuberay", "feature gate"
    ),
    "no port for Serve": Wrong(
        in_service(f"{RAY_HEAD}/ports/serve", Gone()), "kuberay", "no port named serve"
    ),
    "RocksDB without its gate": Wrong(
        in_service(FAULT_TOLERANCE, {"backend": "rocksdb"}), "kuberay", "EmbeddedStorage"
    ),
    "storage for Redis": Wrong(
        in_service(f"{FAULT_TOLERANCE}/storage", {"size": "1Gi"}),
        "kuberay",
        "is for rocksdb",
        "gcs-redis",
    ),
    "Redis' password in the environment": Wrong(
        in_service(f"{RAY_HEAD}/env", added({"name": "REDIS_PASSWORD", "value": "x"})),
        "kuberay",
        "REDIS_PASSWORD is set beside",
        "gcs-redis",
    ),
    "an address of Redis for RocksDB": Wrong(
        in_service(f"{FAULT_TOLERANCE}/redisAddress", "redis:6379"),
        "kuberay",
        "is for redis",
        "gcs-rocksdb",
    ),
    "a claim that has a size": Wrong(
        in_service(f"{FAULT_TOLERANCE}/storage/claimName", "gcs"),
        "kuberay",
        "leaves no room",
        "gcs-rocksdb",
    ),
}

PODS = {
    "a label that is missing": Wrong(
        in_service(f"{WORKERS}/template/metadata/labels/app.kubernetes.io~part-of", Gone()),
        "labels",
        "part-of",
    ),
    "a wrong component": Wrong(
        in_service(f"{WORKERS}/template/metadata/labels/{COMPONENT}", "workers"),
        "labels",
        "component is 'workers'",
    ),
    "a privileged container": Wrong(
        in_service(f"{RAY_WORKER}/securityContext/privileged", value=True),
        "security",
        "is privileged",
    ),
    "a root file system that can be written": Wrong(
        in_service(f"{RAY_HEAD}/securityContext/readOnlyRootFilesystem", value=False),
        "security",
        "readOnlyRootFilesystem",
    ),
    "a capability": Wrong(
        in_service(f"{RAY_WORKER}/securityContext/capabilities/add", ["SYS_PTRACE"]),
        "security",
        "SYS_PTRACE",
    ),
    "no seccomp profile": Wrong(
        in_service(f"{WORKER_POD}/securityContext/seccompProfile/type", "Unconfined"),
        "security",
        "seccompProfile",
    ),
    "root": Wrong(
        in_service(f"{WORKER_POD}/securityContext/runAsUser", 0), "security", "may run as root"
    ),
    "an autoscaler that may gain privileges": Wrong(
        in_service(f"{AUTOSCALER}/securityContext/allowPrivilegeEscalation", value=True),
        "security",
        "allowPrivilegeEscalation",
    ),
    "an open container in the Job": Wrong(
        Edit(JOB, "spec/template/spec/containers/provision/securityContext", Gone()),
        "security",
        "readOnlyRootFilesystem",
    ),
    "a folder of the host": Wrong(
        in_service(f"{WORKER_POD}/volumes", added({"name": "x", "hostPath": {"path": "/"}})),
        "security",
        "a folder of the host",
    ),
    "the host's network": Wrong(
        in_service(f"{WORKER_POD}/hostNetwork", value=True), "security", "hostNetwork"
    ),
    "a token of the API for workers": Wrong(
        in_service(f"{WORKER_POD}/automountServiceAccountToken", value=True),
        "api-access",
        "automount",
    ),
    "a token of the API for the head's Ray": Wrong(
        in_service(
            f"{RAY_HEAD}/volumeMounts", added({"name": "kube-api-access", "mountPath": "/token"})
        ),
        "api-access",
        "ray-head",
    ),
    "no memory limit": Wrong(
        in_service(f"{RAY_WORKER}/resources/limits/memory", Gone()), "resources", "memory has no"
    ),
    "no CPU request of the autoscaler": Wrong(
        in_service(f"{AUTOSCALER}/resources/requests/cpu", Gone()),
        "resources",
        "cpu has no",
    ),
    "a request beyond its limit": Wrong(
        in_service(f"{RAY_WORKER}/resources/requests/cpu", "2500m"), "resources", "asks for more"
    ),
    "a folder without a limit": Wrong(
        in_service(f"{WORKER_POD}/volumes/workspaces/emptyDir", {}), "resources", "no sizeLimit"
    ),
    "shared memory as big as the container": Wrong(
        in_service(f"{WORKER_POD}/volumes/shared-mem/emptyDir/sizeLimit", "4Gi"),
        "resources",
        "over half of that",
    ),
    "folders beyond the disk": Wrong(
        in_service(f"{WORKER_POD}/volumes/workspaces/emptyDir/sizeLimit", "50Gi"),
        "resources",
        "more than ephemeral-storage",
    ),
    "a wrong probe path": Wrong(
        in_service(f"{RAY_WORKER}/readinessProbe/httpGet/path", "/healthz"), "probes", "/healthz"
    ),
    "a wrong probe port": Wrong(
        in_service(f"{RAY_HEAD}/livenessProbe/httpGet/port", 8266), "probes", "no port 8266"
    ),
    "a worker without its own probe": Wrong(
        in_service(f"{RAY_WORKER}/readinessProbe", Gone()), "probes", "asks for a Serve proxy"
    ),
    "a probe of the model server at vLLM's other port": Wrong(
        Edit(
            "Deployment/model-server",
            "spec/template/spec/containers/0/livenessProbe/httpGet/port",
            8001,
        ),
        "probes",
        "no port 8001",
        "dev",
    ),
    "a missing digest": Wrong(
        in_service(f"{RAY_WORKER}/image", lambda image: image.partition(DIGEST)[0] + ":0.1.0"),
        "images",
        "not by digest",
    ),
    "a digest that is too short": Wrong(
        in_service(f"{RAY_WORKER}/image", lambda image: image[:-1]), "images", "not by digest"
    ),
    "the latest image": Wrong(
        in_service(f"{RAY_WORKER}/image", "agent-actors:latest"), "images", "by version", "dev"
    ),
    "a literal secret": Wrong(
        in_service(f"{RAY_HEAD}/env", added({"name": "RAY_AUTH_TOKEN", "value": "x"})),
        "secrets",
        "RAY_AUTH_TOKEN is given",
    ),
    "a literal key of the model": Wrong(
        in_service(f"{RAY_WORKER}/env", added({"name": "AGENT_ACTORS_VLLM_API_KEY", "value": "x"})),
        "secrets",
        "API_KEY is given",
    ),
    "a seed in the configuration": Wrong(
        config("inbox_prefix: _INBOX_service", f"inbox_prefix: {SEED}"), "secrets", "has a key"
    ),
    "a login in an address": Wrong(
        config("tls://nats.nats", "tls://service:x@nats.nats"), "secrets", "has a key"
    ),
    "a literal password of Redis": Wrong(
        in_service(f"{FAULT_TOLERANCE}/redisPassword", {"value": "x"}),
        "secrets",
        "redisPassword is given",
        "gcs-redis",
    ),
    "a wrong volume name": Wrong(
        in_service(f"{RAY_WORKER}/volumeMounts/nats/name", "nat"), "volumes", "nat is mounted and"
    ),
    "a wrong Secret": Wrong(
        in_service(f"{WORKER_POD}/volumes/nats/secret/secretName", "agent-actors-nat"),
        "volumes",
        "told to make a Secret agent-actors-nat",
    ),
    "a wrong ConfigMap": Wrong(
        in_service(f"{WORKER_POD}/volumes/config/configMap/name", "agent-actors-settings"),
        "volumes",
        "no ConfigMap agent-actors-settings",
    ),
    "a configuration that cannot change": Wrong(
        in_service(f"{RAY_WORKER}/volumeMounts/config/subPath", "agent-actors.yaml"),
        "volumes",
        "never changes",
    ),
    "nowhere to write": Wrong(
        in_service(f"{RAY_WORKER}/volumeMounts/tmp", Gone()), "writable", "/tmp is no emptyDir"
    ),
    "a home that is read-only": Wrong(
        in_service(f"{RAY_HEAD}/env/HOME/value", "/home/ray"), "writable", "/home/ray"
    ),
    "the logs by another name": Wrong(
        in_service(f"{HEAD_POD}/volumes/ray-logs/name", "logs"), "writable", "/tmp/ray"
    ),
    "one account for head and workers": Wrong(
        in_service(f"{WORKER_POD}/serviceAccountName", "agent-actors-head"), "accounts", "share it"
    ),
    "an account that nobody makes": Wrong(
        in_service(f"{HEAD_POD}/serviceAccountName", "ray"), "accounts", "no ServiceAccount ray"
    ),
}

SETTINGS = {
    "a misspelt key of the configuration": Wrong(
        config("task_timeout_s", "task_timeouts"), "config", "task_timeouts"
    ),
    "a misspelt variable": Wrong(
        in_service(f"{RAY_HEAD}/env", added({"name": "AGENT_ACTORS_NATS_URLS", "value": "x"})),
        "config",
        "AGENT_ACTORS_NATS_URLS",
    ),
    "a credential that is not mounted": Wrong(
        in_service(f"{RAY_WORKER}/volumeMounts/vllm", Gone()), "config", "vllm.api_key_file"
    ),
    "a credential by another file name": Wrong(
        config("nats/service.nk", "nats/seed.nk"), "config", "nats.nkey_seed_file"
    ),
    "a configuration elsewhere": Wrong(
        in_service(f"{RAY_WORKER}/volumeMounts/config/mountPath", "/etc/agent-actors/conf"),
        "config",
        "agent-actors.yaml",
    ),
    "no configuration": Wrong(
        in_service(f"{RAY_WORKER}/env/AGENT_ACTORS_CONFIG", Gone()), "config", "is not set"
    ),
    "too short a grace period": Wrong(
        in_service(f"{WORKER_POD}/terminationGracePeriodSeconds", 644), "draining", "644 is less"
    ),
    "a head that goes before its workers": Wrong(
        in_service(f"{HEAD_POD}/terminationGracePeriodSeconds", Gone()), "draining", "30 is less"
    ),
    "a longer task": Wrong(
        config("task_timeout_s: 600", "task_timeout_s: 900"), "draining", "645 is less than 945"
    ),
    "no preStop": Wrong(in_service(f"{RAY_WORKER}/lifecycle", Gone()), "draining", "preStop"),
    "a preStop that drains the whole service": Wrong(
        in_service(f"{RAY_WORKER}/lifecycle/preStop/exec/command", ["agent-actors", "drain"]),
        "draining",
        "preStop",
    ),
    "Ray's own drain left at its default": Wrong(
        in_service(f"{RAY_WORKER}/env/RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", Gone()),
        "draining",
        "30 is not between",
    ),
    "too short a deletion delay": Wrong(
        in_service("spec/rayClusterDeletionDelaySeconds", 600), "draining", "600 is less"
    ),
    "the default deletion delay": Wrong(
        in_service("spec/rayClusterDeletionDelaySeconds", Gone()), "draining", "60 is less"
    ),
    "no token": Wrong(in_service(f"{CLUSTER}/authOptions", Gone()), "cluster", "not token"),
    "actors on the head": Wrong(
        in_service(f"{HEAD}/rayStartParams/num-cpus", Gone()), "cluster", "on the head"
    ),
    "more object store than shared memory": Wrong(
        in_service(f"{WORKERS}/rayStartParams/object-store-memory", "1073741824"),
        "cluster",
        "more object store than /dev/shm",
    ),
    "no idle timeout": Wrong(
        in_service(f"{WORKERS}/idleTimeoutSeconds", Gone()), "cluster", "no idleTimeoutSeconds"
    ),
    "an upgrade in place": Wrong(
        in_service("spec/upgradeStrategy/type", "None"), "cluster", "no new cluster"
    ),
    "workers that restart": Wrong(
        in_service(f"{WORKER_POD}/restartPolicy", "Always"), "cluster", "not Never"
    ),
    "another application": Wrong(serve("control_app", "app"), "serve", "its application is not"),
    "another configuration for Serve": Wrong(
        serve("/config/agent-actors.yaml", "/agent-actors.yaml"), "serve", "mounted nowhere"
    ),
    "a service that makes streams": Wrong(
        serve("provisions: false", "provisions: true"), "serve", "the Job's part"
    ),
    "proxies everywhere": Wrong(serve("HeadOnly", "EveryNode"), "serve", "not on the head alone"),
    "a Service that leads to workers": Wrong(
        in_service("spec/serveService/spec/ports/serve/targetPort", 8000), "serve", "to workers too"
    ),
    "a Service of KubeRay's own": Wrong(
        in_service("spec/serveService", Gone()), "serve", "to workers too"
    ),
    "Serve at another port": Wrong(serve("port: 8000", "port: 8001"), "serve", "named serve"),
    "more actors than workers can hold": Wrong(
        config("max: 12", "max: 20"), "room", "the workers have 12 at most"
    ),
    "a misspelt command": Wrong(
        Edit(JOB, "spec/template/spec/containers/provision/command/1", "provide"),
        "command",
        "provide",
    ),
    "a misspelt option": Wrong(
        Edit(
            "Deployment/model-server",
            "spec/template/spec/containers/0/command",
            added("--max-model-length", "1000"),
        ),
        "command",
        "--max-model-length",
        "dev",
    ),
}

NETWORK = {
    "a policy that selects nothing": Wrong(
        policy("ray", "spec/podSelector/matchLabels/app.kubernetes.io~name", "agents"),
        "selectors",
        "selects no pod",
    ),
    "a budget that selects nothing": Wrong(
        budget(f"spec/selector/matchLabels/{COMPONENT}", "workers"),
        "selectors",
        "selects no pod",
    ),
    "a Service that selects nothing": Wrong(
        Edit("Service/nats", "spec/selector/app.kubernetes.io~name", "natz"),
        "selectors",
        "selects no pod",
        "dev",
    ),
    "a port that no pod has": Wrong(
        policy("monitoring", "spec/ingress/0/ports/0/port", "metric"), "selectors", "has metric"
    ),
    "a StatefulSet beside its pods": Wrong(
        Edit("StatefulSet/nats", "spec/selector/matchLabels/app.kubernetes.io~name", "natz"),
        "selectors",
        "its own pods",
        "dev",
    ),
    "a budget in the way that does not work": Wrong(
        budget("spec", lambda spec: {"maxUnavailable": 1, "selector": spec["selector"]}),
        "budgets",
        "minAvailable as a number",
    ),
    "a budget in percent": Wrong(
        budget("spec/minAvailable", "50%"), "budgets", "minAvailable as a number"
    ),
    "a budget that keeps broken pods": Wrong(
        budget("spec/unhealthyPodEvictionPolicy", Gone()), "budgets", "not ready"
    ),
    "a budget that lets no worker go": Wrong(
        budget("spec/minAvailable", 2), "budgets", "never lets a worker go"
    ),
    "no default": Wrong(
        policy("default-deny", "spec/policyTypes", ["Ingress"]), "isolation", "no policy denies all"
    ),
    "a rule for everybody": Wrong(
        policy("monitoring", "spec/ingress/0/from", Gone()), "isolation", "open to everybody"
    ),
    "a rule for every address": Wrong(
        policy("vllm", "spec/egress/0/to", [EVERYWHERE]), "isolation", "every address"
    ),
    "a rule for every namespace": Wrong(
        policy("monitoring", "spec/ingress/0/from", [{"namespaceSelector": {}}]),
        "isolation",
        "every namespace",
    ),
    "the dashboard for Prometheus": Wrong(
        policy("monitoring", "spec/ingress/0/ports", added({"port": 8265})),
        "isolation",
        "8265 is open",
    ),
    "every port for Prometheus": Wrong(
        policy("monitoring", "spec/ingress/0/ports", Gone()), "isolation", "10001 is open"
    ),
    "an Ingress to the dashboard": Wrong(
        in_service(f"{HEAD}/enableIngress", value=True), "isolation", "enableIngress"
    ),
    "a load balancer for the head": Wrong(
        in_service(f"{HEAD}/serviceType", "LoadBalancer"), "isolation", "LoadBalancer"
    ),
    "a port of every node for NATS": Wrong(
        Edit("Service/nats", "spec/type", "NodePort"), "isolation", "NodePort", "dev"
    ),
    "no way to DNS by TCP": Wrong(
        policy("dns", "spec/egress/0/ports/1", Gone()), "ways", "cannot ask DNS"
    ),
    "Ray on one port only": Wrong(
        policy("ray", "spec/ingress/0/ports", [{"port": 6379}]), "ways", "cannot speak to"
    ),
    "workers apart from their head": Wrong(
        policy("ray", "spec/podSelector/matchExpressions/0/values", ["worker"]),
        "ways",
        "cannot speak to",
    ),
    "the API for workers": Wrong(
        policy("kubernetes-api", f"spec/podSelector/matchLabels/{COMPONENT}", Gone()),
        "ways",
        "may speak to the Kubernetes API",
    ),
    "no API for the autoscaler": Wrong(
        policy("kubernetes-api", "spec/egress/0/ports/1", Gone()),
        "ways",
        "may not speak to the Kubernetes API",
    ),
    "no dashboard for the operator": Wrong(
        policy("operator", "spec/ingress/0/ports/0", Gone()), "ways", "operator cannot reach 8265"
    ),
    "NATS in another namespace": Wrong(
        config("nats.nats.svc", "nats.messaging.svc"), "ways", "cannot reach tls://nats.messaging"
    ),
    "NATS at another port": Wrong(
        config("svc:4222", "svc:4223"), "ways", "cannot reach tls://nats.nats.svc:4223"
    ),
    "no NATS for the Job": Wrong(
        policy("nats", "spec/podSelector/matchExpressions/0/values", ["head", "worker"]),
        "ways",
        "cannot reach tls://nats",
    ),
    "vLLM in another namespace": Wrong(
        config("service.vllm.svc", "service.models.svc"), "ways", "models.svc"
    ),
    "Redis in another namespace": Wrong(
        in_service(f"{FAULT_TOLERANCE}/redisAddress", "redis://redis.cache.svc:6379"),
        "ways",
        "cannot reach redis://redis.cache",
        "gcs-redis",
    ),
    "a NATS beside that lets nobody in": Wrong(
        Edit("NetworkPolicy/agent-actors-dev-nats", "spec/ingress", []),
        "ways",
        "cannot reach nats://nats:4222",
        "dev",
    ),
}

WRONG = SHAPES | KUBERAY | PODS | SETTINGS | NETWORK
# Not in the schemas of Kubernetes, which know the pods' part of it.
OF_KUBERAY = {
    "a misspelt field of the cluster",
    "a misspelt field of the service",
    "a text for a number",
    "a value that is none of those",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_edit_is_found(name: str):
    if name in OF_KUBERAY and crd_folder() is None:
        pytest.skip("no schemas of custom resources: AGENT_ACTORS_CRD_DIR names no folder of them")
    wrong = WRONG[name]
    manifests = wrong.edit.of(render(DEPLOY / "overlays" / wrong.overlay))
    gates = {"GCSFaultToleranceEmbeddedStorage"} if wrong.overlay == "gcs-rocksdb" else ()
    found = findings(manifests, gates=gates, by_digest=wrong.overlay != "dev")
    said = [finding for finding in found if finding.check == wrong.check]
    assert any(wrong.words in finding.what for finding in said), list(map(str, found))


def test_a_monitor_that_may_not_collect_is_found(tmp_path: Path):
    manifests = render_prod_with("pod-monitor", tmp_path)
    found = findings(policy("monitoring", "spec/ingress/0/ports/0", Gone()).of(manifests))
    assert {(each.check, each.what) for each in found} == {("ways", "nobody may collect from 8080")}


def test_every_check_finds_something():
    source = "".join(
        path.read_text() for path in Path(inspect.getfile(support.manifests)).parent.glob("*.py")
    )
    checks = set(re.findall(r'Finding\("([a-z-]+)"', source))
    assert {wrong.check for wrong in WRONG.values()} == checks


def test_a_secret_in_a_manifest_is_found():
    secret = "{apiVersion: v1, kind: Secret, metadata: {name: x}, stringData: {a: b}}"
    (finding,) = findings(manifests_in(secret))
    assert (finding.check, finding.where) == ("secrets", "Secret/x")
