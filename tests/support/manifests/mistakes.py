"""Slips of the hand in the manifests, and which check finds each of them."""

from functools import partial
from typing import Any, NamedTuple

from support.manifests.editing import Edit, Gone, added, text
from support.manifests.reading import Manifest

PROD, DEV = "overlays/prod", "overlays/dev"
REDIS, ROCKSDB = "overlays/gcs-redis", "overlays/gcs-rocksdb"

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


class Mistake(NamedTuple):
    """An edit, which check finds it, words of what that says, the folder that is edited."""

    edit: Edit
    check: str
    words: str
    folder: str = PROD
    after: Edit | None = None

    def of(self, manifests: list[Manifest]) -> list[Manifest]:
        """Make the mistake, in place, and return the manifests."""
        return self.edit.of(self.after.of(manifests) if self.after else manifests)


def policy(name: str, path: str, value: Any) -> Edit:
    return Edit(f"NetworkPolicy/agent-actors-{name}", path, value)


def budget(path: str, value: Any) -> Edit:
    return Edit("PodDisruptionBudget/agent-actors-workers", path, value)


def config(old: str, new: str) -> Edit:
    return Edit(CONFIG, "data/agent-actors.yaml", text(old, new))


def serve(old: str, new: str) -> Edit:
    return in_service("spec/serveConfigV2", text(old, new))


WITHOUT_AUTOSCALER = in_service(f"{CLUSTER}/enableInTreeAutoscaling", value=False)

SHAPES = {
    "a misspelt field of the cluster": Mistake(
        in_service(f"{CLUSTER}/enableInTreeAutoscalling", value=True),
        "schema",
        "enableInTreeAutoscalling",
    ),
    "a misspelt field of the service": Mistake(
        in_service("spec/rayClusterDeletionDelay", 660), "schema", "rayClusterDeletionDelay"
    ),
    "a text for a number": Mistake(in_service(f"{WORKERS}/minReplicas", "2"), "schema", "'2'"),
    "a value that is none of those": Mistake(
        in_service(f"{CLUSTER}/authOptions/mode", "tokens"), "schema", "tokens"
    ),
    "a misspelt field of a pod": Mistake(
        in_service(f"{WORKER_POD}/terminationGraceSecs", 645),
        "schema",
        "terminationGraceSecs",
    ),
    "a misspelt field of a probe": Mistake(
        in_service(f"{RAY_WORKER}/readinessProbe/failureTreshold", 3), "schema", "failureTreshold"
    ),
    "a misspelt field of a budget": Mistake(
        budget("spec/unhealthyEvictionPolicy", "AlwaysAllow"), "schema", "unhealthyEvictionPolicy"
    ),
    "a misspelt field of a policy": Mistake(
        policy("nats", "spec/policyType", ["Egress"]), "schema", "policyType"
    ),
    "a misspelt field of the Job": Mistake(
        Edit(JOB, "spec/backOffLimit", 3), "schema", "backOffLimit"
    ),
    "a misspelt key of Serve": Mistake(
        serve("num_replicas", "num_replica"), "serve", "num_replica is no key"
    ),
    "a value that Serve does not know": Mistake(serve("HeadOnly", "OnHead"), "serve", "OnHead"),
}

KUBERAY = {
    "a name that is too long": Mistake(
        in_service("metadata/name", "a" * 48), "kuberay", "is longer than 47"
    ),
    "a name that begins with a digit": Mistake(
        in_service("metadata/name", "0agents"), "kuberay", "is no DNS label"
    ),
    "an upgrade that is a cluster's": Mistake(
        in_service("spec/upgradeStrategy/type", "Recreate"), "kuberay", "upgradeStrategy.type"
    ),
    "an upgrade of the service's cluster": Mistake(
        in_service(f"{CLUSTER}/upgradeStrategy", {"type": "Recreate"}), "kuberay", "of its own"
    ),
    "an old Ray with a token": Mistake(
        in_service(f"{CLUSTER}/rayVersion", "2.51.0"), "kuberay", "wants rayVersion 2.52.0"
    ),
    "no version of Ray with a token": Mistake(
        in_service(f"{CLUSTER}/rayVersion", Gone()), "kuberay", "wants a rayVersion"
    ),
    "a head that restarts under autoscaler v2": Mistake(
        in_service(f"{HEAD_POD}/restartPolicy", "Always"), "kuberay", "restartPolicy Never"
    ),
    "more workers at least than at most": Mistake(
        in_service(f"{WORKERS}/minReplicas", 7), "kuberay", "greater than maxReplicas"
    ),
    "an idle timeout under autoscaler v1": Mistake(
        in_service(f"{AUTOSCALER}/version", "v1"), "kuberay", "wants autoscaler v2"
    ),
    "the autoscaler's version said twice": Mistake(
        in_service(f"{RAY_HEAD}/env", added({"name": "RAY_enable_autoscaler_v2", "value": "1"})),
        "kuberay",
        "are both set",
    ),
    "resources said twice": Mistake(
        in_service(f"{HEAD}/resources", {"CPU": "0"}), "kuberay", "rayStartParams and in resources"
    ),
    "labels among the start parameters": Mistake(
        in_service(f"{WORKERS}/rayStartParams/labels", "a=b"), "kuberay", "use the group's labels"
    ),
    "a policy by an alpha field": Mistake(
        in_service(f"{CLUSTER}/networkPolicy", {"mode": "DenyAll"}), "kuberay", "feature gate"
    ),
    "no port for Serve": Mistake(
        in_service(f"{RAY_HEAD}/ports/serve", Gone()), "kuberay", "no port named serve"
    ),
    "RocksDB without its gate": Mistake(
        in_service(FAULT_TOLERANCE, {"backend": "rocksdb"}), "kuberay", "EmbeddedStorage"
    ),
    "storage for Redis": Mistake(
        in_service(f"{FAULT_TOLERANCE}/storage", {"size": "1Gi"}),
        "kuberay",
        "is for rocksdb",
        REDIS,
    ),
    "Redis' password in the environment": Mistake(
        in_service(f"{RAY_HEAD}/env", added({"name": "REDIS_PASSWORD", "value": "x"})),
        "kuberay",
        "REDIS_PASSWORD is set beside",
        REDIS,
    ),
    "an address of Redis for RocksDB": Mistake(
        in_service(f"{FAULT_TOLERANCE}/redisAddress", "redis:6379"),
        "kuberay",
        "is for redis",
        ROCKSDB,
    ),
    "a claim that has a size": Mistake(
        in_service(f"{FAULT_TOLERANCE}/storage/claimName", "gcs"),
        "kuberay",
        "leaves no room",
        ROCKSDB,
    ),
    "tokens of Kubernetes in a service": Mistake(
        in_service(f"{CLUSTER}/authOptions/enableK8sTokenAuth", value=True),
        "kuberay",
        "does not work in a RayService",
    ),
    "two kinds of tokens": Mistake(
        in_service(
            f"{CLUSTER}/authOptions",
            {"mode": "token", "enableK8sTokenAuth": True, "secretName": "ray"},
        ),
        "kuberay",
        "secretName are both set",
    ),
    "a name for the head's Service": Mistake(
        in_service(f"{HEAD}/headService", {"metadata": {"name": "ray"}}), "kuberay", "KubeRay's to"
    ),
    "no bounds without the autoscaler": Mistake(
        in_service(f"{WORKERS}/minReplicas", Gone()),
        "kuberay",
        "without the autoscaler",
        after=WITHOUT_AUTOSCALER,
    ),
    "fewer workers than none": Mistake(
        in_service(f"{WORKERS}/minReplicas", -1), "kuberay", "has minReplicas -1"
    ),
    "suspended workers": Mistake(
        in_service(f"{WORKERS}/suspend", value=True), "kuberay", "cannot be suspended"
    ),
    "a label that is none": Mistake(
        in_service(f"{WORKERS}/labels", {"disk": "very fast"}), "kuberay", "'very fast' is none"
    ),
    "autoscaler v2 without the autoscaler": Mistake(
        in_service(f"{RAY_HEAD}/env", added({"name": "RAY_enable_autoscaler_v2", "value": "1"})),
        "kuberay",
        "without enableInTreeAutoscaling",
        after=WITHOUT_AUTOSCALER,
    ),
    "an idle timeout below nothing": Mistake(
        in_service(f"{AUTOSCALER}/idleTimeoutSeconds", -1), "kuberay", "is negative"
    ),
    "an idle timeout of workers below nothing": Mistake(
        in_service(f"{WORKERS}/idleTimeoutSeconds", -1), "kuberay", "has idleTimeoutSeconds -1"
    ),
    "Redis by a variable": Mistake(
        in_service(f"{RAY_HEAD}/env", added({"name": "RAY_REDIS_ADDRESS", "value": "redis"})),
        "kuberay",
        "without gcsFaultToleranceOptions",
    ),
    "Redis by an annotation too": Mistake(
        in_service("metadata/annotations", {"ray.io/ft-enabled": "true"}),
        "kuberay",
        "the annotation ray.io/ft-enabled",
        REDIS,
    ),
    "Redis' password among the start parameters": Mistake(
        in_service(f"{HEAD}/rayStartParams/redis-password", "$REDIS"),
        "kuberay",
        "redis-password is in rayStartParams",
        REDIS,
    ),
    "storage said to Ray itself": Mistake(
        in_service(f"{RAY_HEAD}/env", added({"name": "RAY_gcs_storage", "value": "rocksdb"})),
        "kuberay",
        "RAY_gcs_storage is KubeRay's",
        ROCKSDB,
    ),
    "a volume of one's own for RocksDB": Mistake(
        in_service(f"{HEAD_POD}/volumes", added({"name": "gcs-storage", "emptyDir": {}})),
        "kuberay",
        "KubeRay's to mount",
        ROCKSDB,
    ),
}

PODS = {
    "a label that is missing": Mistake(
        in_service(f"{WORKERS}/template/metadata/labels/app.kubernetes.io~part-of", Gone()),
        "labels",
        "part-of",
    ),
    "a wrong component": Mistake(
        in_service(f"{WORKERS}/template/metadata/labels/{COMPONENT}", "workers"),
        "labels",
        "component is 'workers'",
    ),
    "a privileged container": Mistake(
        in_service(f"{RAY_WORKER}/securityContext/privileged", value=True),
        "security",
        "is privileged",
    ),
    "a root file system that can be written": Mistake(
        in_service(f"{RAY_HEAD}/securityContext/readOnlyRootFilesystem", value=False),
        "security",
        "readOnlyRootFilesystem",
    ),
    "a capability": Mistake(
        in_service(f"{RAY_WORKER}/securityContext/capabilities/add", ["SYS_PTRACE"]),
        "security",
        "SYS_PTRACE",
    ),
    "no seccomp profile": Mistake(
        in_service(f"{WORKER_POD}/securityContext/seccompProfile/type", "Unconfined"),
        "security",
        "seccompProfile",
    ),
    "root": Mistake(
        in_service(f"{WORKER_POD}/securityContext/runAsUser", 0), "security", "may run as root"
    ),
    "an autoscaler that may gain privileges": Mistake(
        in_service(f"{AUTOSCALER}/securityContext/allowPrivilegeEscalation", value=True),
        "security",
        "allowPrivilegeEscalation",
    ),
    "an open container in the Job": Mistake(
        Edit(JOB, "spec/template/spec/containers/provision/securityContext", Gone()),
        "security",
        "readOnlyRootFilesystem",
    ),
    "a folder of the host": Mistake(
        in_service(f"{WORKER_POD}/volumes", added({"name": "x", "hostPath": {"path": "/"}})),
        "security",
        "a folder of the host",
    ),
    "the host's network": Mistake(
        in_service(f"{WORKER_POD}/hostNetwork", value=True), "security", "hostNetwork"
    ),
    "an environment of every Service": Mistake(
        in_service(f"{WORKER_POD}/enableServiceLinks", Gone()), "security", "enableServiceLinks"
    ),
    "a token of the API for workers": Mistake(
        in_service(f"{WORKER_POD}/automountServiceAccountToken", value=True),
        "api-access",
        "automount",
    ),
    "a token of the API for the head's Ray": Mistake(
        in_service(
            f"{RAY_HEAD}/volumeMounts", added({"name": "kube-api-access", "mountPath": "/token"})
        ),
        "api-access",
        "ray-head",
    ),
    "no memory limit": Mistake(
        in_service(f"{RAY_WORKER}/resources/limits/memory", Gone()), "resources", "memory has no"
    ),
    "no CPU request of the autoscaler": Mistake(
        in_service(f"{AUTOSCALER}/resources/requests/cpu", Gone()),
        "resources",
        "cpu has no",
    ),
    "a request beyond its limit": Mistake(
        in_service(f"{RAY_WORKER}/resources/requests/cpu", "2500m"), "resources", "asks for more"
    ),
    "a folder without a limit": Mistake(
        in_service(f"{WORKER_POD}/volumes/workspaces/emptyDir", {}), "resources", "no sizeLimit"
    ),
    "shared memory as big as the container": Mistake(
        in_service(f"{WORKER_POD}/volumes/shared-mem/emptyDir/sizeLimit", "4Gi"),
        "resources",
        "over half of that",
    ),
    "folders beyond the disk": Mistake(
        in_service(f"{WORKER_POD}/volumes/workspaces/emptyDir/sizeLimit", "50Gi"),
        "resources",
        "more than ephemeral-storage",
    ),
    "a wrong probe path": Mistake(
        in_service(f"{RAY_WORKER}/readinessProbe/httpGet/path", "/healthz"), "probes", "/healthz"
    ),
    "a wrong probe port": Mistake(
        in_service(f"{RAY_HEAD}/livenessProbe/httpGet/port", 8266), "probes", "no port 8266"
    ),
    "a probe that runs a command": Mistake(
        in_service(f"{RAY_WORKER}/readinessProbe", {"exec": {"command": ["true"]}}),
        "probes",
        "does not ask by HTTP",
    ),
    "a worker without its own probe": Mistake(
        in_service(f"{RAY_WORKER}/readinessProbe", Gone()), "probes", "asks for a Serve proxy"
    ),
    "a probe of the model server at vLLM's other port": Mistake(
        Edit(
            "Deployment/model-server",
            "spec/template/spec/containers/0/livenessProbe/httpGet/port",
            8001,
        ),
        "probes",
        "no port 8001",
        DEV,
    ),
    "a missing digest": Mistake(
        in_service(f"{RAY_WORKER}/image", lambda image: image.partition(DIGEST)[0] + ":0.1.0"),
        "images",
        "not by digest",
    ),
    "a digest that is too short": Mistake(
        in_service(f"{RAY_WORKER}/image", lambda image: image[:-1]), "images", "not by digest"
    ),
    "the latest image": Mistake(
        in_service(f"{RAY_WORKER}/image", "agent-actors:latest"), "images", "by version", DEV
    ),
    "a literal secret": Mistake(
        in_service(f"{RAY_HEAD}/env", added({"name": "RAY_AUTH_TOKEN", "value": "x"})),
        "secrets",
        "RAY_AUTH_TOKEN is given",
    ),
    "a literal key of the model": Mistake(
        in_service(f"{RAY_WORKER}/env", added({"name": "AGENT_ACTORS_VLLM_API_KEY", "value": "x"})),
        "secrets",
        "API_KEY is given",
    ),
    "a seed in the configuration": Mistake(
        config("inbox_prefix: _INBOX_service", f"inbox_prefix: {SEED}"), "secrets", "has a key"
    ),
    "a login in an address": Mistake(
        config("tls://nats.nats", "tls://service:x@nats.nats"), "secrets", "has a key"
    ),
    "a literal password of Redis": Mistake(
        in_service(f"{FAULT_TOLERANCE}/redisPassword", {"value": "x"}),
        "secrets",
        "redisPassword is given",
        REDIS,
    ),
    "a wrong volume name": Mistake(
        in_service(f"{RAY_WORKER}/volumeMounts/nats/name", "nat"), "volumes", "nat is mounted and"
    ),
    "a wrong Secret": Mistake(
        in_service(f"{WORKER_POD}/volumes/nats/secret/secretName", "agent-actors-nat"),
        "volumes",
        "told to make a Secret agent-actors-nat",
    ),
    "a wrong key of a Secret": Mistake(
        in_service(
            f"{WORKER_POD}/volumes/nats/secret",
            {
                "secretName": "agent-actors-nats",
                "items": [{"key": "user.nk", "path": "service.nk"}],
            },
        ),
        "volumes",
        "has no ['user.nk']",
    ),
    "a wrong ConfigMap": Mistake(
        in_service(f"{WORKER_POD}/volumes/config/configMap/name", "agent-actors-settings"),
        "volumes",
        "no ConfigMap agent-actors-settings",
    ),
    "a configuration that cannot change": Mistake(
        in_service(f"{RAY_WORKER}/volumeMounts/config/subPath", "agent-actors.yaml"),
        "volumes",
        "never changes",
    ),
    "nowhere to write": Mistake(
        in_service(f"{RAY_WORKER}/volumeMounts/tmp", Gone()), "writable", "/tmp is no emptyDir"
    ),
    "a home that is read-only": Mistake(
        in_service(f"{RAY_HEAD}/env/HOME/value", "/home/ray"), "writable", "/home/ray"
    ),
    "the logs by another name": Mistake(
        in_service(f"{HEAD_POD}/volumes/ray-logs/name", "logs"), "writable", "/tmp/ray"
    ),
    "one account for head and workers": Mistake(
        in_service(f"{WORKER_POD}/serviceAccountName", "agent-actors-head"), "accounts", "share it"
    ),
    "an account that nobody makes": Mistake(
        in_service(f"{HEAD_POD}/serviceAccountName", "ray"), "accounts", "no ServiceAccount ray"
    ),
}

SETTINGS = {
    "a misspelt key of the configuration": Mistake(
        config("task_timeout_s", "task_timeouts"), "config", "task_timeouts"
    ),
    "a misspelt variable": Mistake(
        in_service(f"{RAY_HEAD}/env", added({"name": "AGENT_ACTORS_NATS_URLS", "value": "x"})),
        "config",
        "AGENT_ACTORS_NATS_URLS",
    ),
    "a credential that is not mounted": Mistake(
        in_service(f"{RAY_WORKER}/volumeMounts/vllm", Gone()), "config", "vllm.api_key_file"
    ),
    "a credential by another file name": Mistake(
        config("nats/service.nk", "nats/seed.nk"), "config", "nats.nkey_seed_file"
    ),
    "a configuration elsewhere": Mistake(
        in_service(f"{RAY_WORKER}/volumeMounts/config/mountPath", "/etc/agent-actors/conf"),
        "config",
        "agent-actors.yaml",
    ),
    "no configuration": Mistake(
        in_service(f"{RAY_WORKER}/env/AGENT_ACTORS_CONFIG", Gone()), "config", "is not set"
    ),
    "too short a grace period": Mistake(
        in_service(f"{WORKER_POD}/terminationGracePeriodSeconds", 644), "draining", "644 is less"
    ),
    "a head that goes before its workers": Mistake(
        in_service(f"{HEAD_POD}/terminationGracePeriodSeconds", Gone()), "draining", "30 is less"
    ),
    "a longer task": Mistake(
        config("task_timeout_s: 600", "task_timeout_s: 900"), "draining", "645 is less than 945"
    ),
    "no preStop": Mistake(in_service(f"{RAY_WORKER}/lifecycle", Gone()), "draining", "preStop"),
    "a preStop that drains the whole service": Mistake(
        in_service(f"{RAY_WORKER}/lifecycle/preStop/exec/command", ["agent-actors", "drain"]),
        "draining",
        "preStop",
    ),
    "Ray's own drain left at its default": Mistake(
        in_service(f"{RAY_WORKER}/env/RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", Gone()),
        "draining",
        "30 is not between",
    ),
    "a drain of Ray's that is cut off": Mistake(
        in_service(f"{RAY_HEAD}/env/RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S/value", "700"),
        "draining",
        "700 is not between",
    ),
    "too short a deletion delay": Mistake(
        in_service("spec/rayClusterDeletionDelaySeconds", 600), "draining", "600 is less"
    ),
    "the default deletion delay": Mistake(
        in_service("spec/rayClusterDeletionDelaySeconds", Gone()), "draining", "60 is less"
    ),
    "no token": Mistake(in_service(f"{CLUSTER}/authOptions", Gone()), "cluster", "not token"),
    "actors on the head": Mistake(
        in_service(f"{HEAD}/rayStartParams/num-cpus", Gone()), "cluster", "on the head"
    ),
    "more object store than shared memory": Mistake(
        in_service(f"{WORKERS}/rayStartParams/object-store-memory", "1073741824"),
        "cluster",
        "more object store than /dev/shm",
    ),
    "no idle timeout": Mistake(
        in_service(f"{WORKERS}/idleTimeoutSeconds", Gone()), "cluster", "no idleTimeoutSeconds"
    ),
    "an upgrade in place": Mistake(
        in_service("spec/upgradeStrategy/type", "None"), "cluster", "no new cluster"
    ),
    "workers that restart": Mistake(
        in_service(f"{WORKER_POD}/restartPolicy", "Always"), "cluster", "not Never"
    ),
    "another application": Mistake(serve("control_app", "app"), "serve", "its application is not"),
    "another configuration for Serve": Mistake(
        serve("/config/agent-actors.yaml", "/agent-actors.yaml"), "serve", "mounted nowhere"
    ),
    "a service that makes streams": Mistake(
        serve("provisions: false", "provisions: true"), "serve", "the Job's part"
    ),
    "proxies everywhere": Mistake(serve("HeadOnly", "EveryNode"), "serve", "not on the head alone"),
    "a Service that leads to workers": Mistake(
        in_service("spec/serveService/spec/ports/serve/targetPort", 8000), "serve", "to workers too"
    ),
    "a Service of KubeRay's own": Mistake(
        in_service("spec/serveService", Gone()), "serve", "to workers too"
    ),
    "Serve at another port": Mistake(serve("port: 8000", "port: 8001"), "serve", "named serve"),
    "more actors than workers can hold": Mistake(
        config("max: 12", "max: 20"), "room", "the workers have 12 at most"
    ),
    "a misspelt command": Mistake(
        Edit(JOB, "spec/template/spec/containers/provision/command/1", "provide"),
        "command",
        "provide",
    ),
    "a misspelt start parameter": Mistake(
        in_service(f"{WORKERS}/rayStartParams/num-cpu", "2"), "command", "--num-cpu"
    ),
    "a misspelt option": Mistake(
        Edit(
            "Deployment/model-server",
            "spec/template/spec/containers/0/command",
            added("--max-model-length", "1000"),
        ),
        "command",
        "--max-model-length",
        DEV,
    ),
}

NETWORK = {
    "a policy that selects nothing": Mistake(
        policy("ray", "spec/podSelector/matchLabels/app.kubernetes.io~name", "agents"),
        "selectors",
        "selects no pod",
    ),
    "a budget that selects nothing": Mistake(
        budget(f"spec/selector/matchLabels/{COMPONENT}", "workers"),
        "selectors",
        "selects no pod",
    ),
    "a Service that selects nothing": Mistake(
        Edit("Service/nats", "spec/selector/app.kubernetes.io~name", "natz"),
        "selectors",
        "selects no pod",
        DEV,
    ),
    "a port that no pod has": Mistake(
        policy("monitoring", "spec/ingress/0/ports/0/port", "metric"), "selectors", "has metric"
    ),
    "a StatefulSet beside its pods": Mistake(
        Edit("StatefulSet/nats", "spec/selector/matchLabels/app.kubernetes.io~name", "natz"),
        "selectors",
        "its own pods",
        DEV,
    ),
    "a budget in the way that does not work": Mistake(
        budget("spec", lambda spec: {"maxUnavailable": 1, "selector": spec["selector"]}),
        "budgets",
        "minAvailable as a number",
    ),
    "a budget in percent": Mistake(
        budget("spec/minAvailable", "50%"), "budgets", "minAvailable as a number"
    ),
    "a budget that keeps broken pods": Mistake(
        budget("spec/unhealthyPodEvictionPolicy", Gone()), "budgets", "not ready"
    ),
    "one budget for all": Mistake(
        budget("spec/selector/matchLabels", {"app.kubernetes.io/part-of": "agent-actors"}),
        "budgets",
        "counts the head",
    ),
    "a budget that lets no worker go": Mistake(
        budget("spec/minAvailable", 2), "budgets", "never lets a worker go"
    ),
    "no default": Mistake(
        policy("default-deny", "spec/policyTypes", ["Ingress"]), "isolation", "no policy denies all"
    ),
    "a rule for everybody": Mistake(
        policy("monitoring", "spec/ingress/0/from", Gone()), "isolation", "open to everybody"
    ),
    "a rule for every address": Mistake(
        policy("vllm", "spec/egress/0/to", [EVERYWHERE]), "isolation", "every address"
    ),
    "a rule for every namespace": Mistake(
        policy("monitoring", "spec/ingress/0/from", [{"namespaceSelector": {}}]),
        "isolation",
        "every namespace",
    ),
    "the dashboard for Prometheus": Mistake(
        policy("monitoring", "spec/ingress/0/ports", added({"port": 8265})),
        "isolation",
        "8265 is open",
    ),
    "every port for Prometheus": Mistake(
        policy("monitoring", "spec/ingress/0/ports", Gone()), "isolation", "10001 is open"
    ),
    "an Ingress to the dashboard": Mistake(
        in_service(f"{HEAD}/enableIngress", value=True), "isolation", "enableIngress"
    ),
    "a load balancer for the head": Mistake(
        in_service(f"{HEAD}/serviceType", "LoadBalancer"), "isolation", "LoadBalancer"
    ),
    "a port of every node for NATS": Mistake(
        Edit("Service/nats", "spec/type", "NodePort"), "isolation", "NodePort", DEV
    ),
    "no way to DNS by TCP": Mistake(
        policy("dns", "spec/egress/0/ports/1", Gone()), "ways", "cannot ask DNS"
    ),
    "Ray on one port only": Mistake(
        policy("ray", "spec/ingress/0/ports", [{"port": 6379}]), "ways", "cannot speak to"
    ),
    "workers apart from their head": Mistake(
        policy("ray", "spec/podSelector/matchExpressions/0/values", ["worker"]),
        "ways",
        "cannot speak to",
    ),
    "the API for workers": Mistake(
        policy("kubernetes-api", f"spec/podSelector/matchLabels/{COMPONENT}", Gone()),
        "ways",
        "may speak to the Kubernetes API",
    ),
    "no API for the autoscaler": Mistake(
        policy("kubernetes-api", "spec/egress/0/ports/1", Gone()),
        "ways",
        "may not speak to the Kubernetes API",
    ),
    "no dashboard for the operator": Mistake(
        policy("operator", "spec/ingress/0/ports/0", Gone()), "ways", "operator cannot reach 8265"
    ),
    "NATS in another namespace": Mistake(
        config("nats.nats.svc", "nats.messaging.svc"), "ways", "cannot reach tls://nats.messaging"
    ),
    "NATS at another port": Mistake(
        config("svc:4222", "svc:4223"), "ways", "cannot reach tls://nats.nats.svc:4223"
    ),
    "no NATS for the Job": Mistake(
        policy("nats", "spec/podSelector/matchExpressions/0/values", ["head", "worker"]),
        "ways",
        "cannot reach tls://nats",
    ),
    "vLLM in another namespace": Mistake(
        config("service.vllm.svc", "service.models.svc"), "ways", "models.svc"
    ),
    "Redis in another namespace": Mistake(
        in_service(f"{FAULT_TOLERANCE}/redisAddress", "redis://redis.cache.svc:6379"),
        "ways",
        "cannot reach redis://redis.cache",
        REDIS,
    ),
    "a NATS beside that lets nobody in": Mistake(
        Edit("NetworkPolicy/agent-actors-dev-nats", "spec/ingress", []),
        "ways",
        "cannot reach nats://nats:4222",
        DEV,
    ),
}

MISTAKES = SHAPES | KUBERAY | PODS | SETTINGS | NETWORK
# Those that only the schemas of custom resources tell.
BY_SCHEMAS_OF_KUBERAY = {
    "a misspelt field of the cluster",
    "a misspelt field of the service",
    "a text for a number",
    "a value that is none of those",
}
