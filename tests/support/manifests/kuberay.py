"""What KubeRay 1.7 refuses though its schemas allow it.

These are the rules of its operator (ray-operator/controllers/ray/utils/validation.go) that bear on
what is shipped here. A resource that breaks one is not turned away when it is applied: it only
never becomes ready.
"""

import re
from collections.abc import Container, Iterator

from packaging.version import InvalidVersion, Version
from support.manifests.reading import (
    Finding,
    Manifest,
    RayCluster,
    environment,
    name_of,
    of_kind,
    ray_clusters,
)

NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
LONGEST_NAME = {"RayCluster": 53, "RayService": 47}
UPGRADES = {"NewCluster", "NewClusterWithIncrementalUpgrade", "None"}
START_RESOURCES = {"num-cpus", "num-gpus", "memory", "resources"}
REDIS_ONLY = ("redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace")
GATED = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}
ROCKSDB_GATE = "GCSFaultToleranceEmbeddedStorage"
AUTOSCALER_VARIABLE = "RAY_enable_autoscaler_v2"


def kuberay(manifests: list[Manifest], gates: Container[str] = ()) -> Iterator[Finding]:
    """Check as KubeRay's operator does; `gates` are its feature gates that are on."""
    for each in of_kind(manifests, "RayCluster", "RayService"):
        yield from _said(name_of(each), _name(each))
    for each in of_kind(manifests, "RayService"):
        yield from _said(name_of(each), _service(each["spec"]))
    for cluster in ray_clusters(manifests):
        for rule in (_groups, _autoscaling, _auth, _idle_timeouts):
            yield from _said(cluster.where, rule(cluster))
        yield from _said(cluster.where, _gates(cluster, gates))
        yield from _said(cluster.where, _fault_tolerance(cluster, gates))


def _said(where: str, found: Iterator[str]) -> Iterator[Finding]:
    return (Finding("kuberay", where, what) for what in found)


def _name(manifest: Manifest) -> Iterator[str]:
    name, longest = manifest["metadata"]["name"], LONGEST_NAME[manifest["kind"]]
    if len(name) > longest:
        yield f"name {name!r} is longer than {longest}"
    if not NAME.fullmatch(name):
        yield f"name {name!r} is no DNS label that begins with a letter"


def _service(spec: Manifest) -> Iterator[str]:
    upgrade = spec.get("upgradeStrategy", {}).get("type")
    if upgrade and upgrade not in UPGRADES:
        yield f"upgradeStrategy.type {upgrade} is not possible here"
    cluster = spec["rayClusterConfig"]
    if "upgradeStrategy" in cluster:
        yield "rayClusterConfig.upgradeStrategy is for a RayCluster of its own"
    if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth does not work in a RayService"
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "headService.metadata.name is KubeRay's to give in a RayService"
    containers = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    if not any(port.get("name") == "serve" for port in containers[0].get("ports", ())):
        yield "the head's container has no port named serve, so Serve gets no Service"


def _groups(cluster: RayCluster) -> Iterator[str]:
    yield from _group_resources("head", cluster.spec["headGroupSpec"])
    autoscales = cluster.spec.get("enableInTreeAutoscaling")
    for group in cluster.groups:
        name, least, most = (group.get(k) for k in ("groupName", "minReplicas", "maxReplicas"))
        yield from _group_resources(name, group)
        if not autoscales and (least is None or most is None):
            yield f"{name} needs minReplicas and maxReplicas without the autoscaler"
        if least is not None and least < 0:
            yield f"{name} has minReplicas {least}"
        if least is not None and most is not None and least > most:
            yield f"{name} has minReplicas {least} greater than maxReplicas {most}"
        if autoscales and group.get("suspend"):
            yield f"{name} cannot be suspended with the autoscaler"


def _group_resources(name: str, group: Manifest) -> Iterator[str]:
    start = group.get("rayStartParams", {})
    if group.get("resources") and START_RESOURCES & start.keys():
        yield f"{name} sets resources in rayStartParams and in resources"
    if "labels" in start:
        yield f"{name} sets labels in rayStartParams; use the group's labels"
    for key, value in group.get("labels", {}).items():
        if not LABEL.fullmatch(value):
            yield f"{name} has a label {key} whose value {value!r} is none"


def _autoscaling(cluster: RayCluster) -> Iterator[str]:
    options = cluster.spec.get("autoscalerOptions", {})
    by_variable = environment(cluster.head).get(AUTOSCALER_VARIABLE)
    if not cluster.spec.get("enableInTreeAutoscaling"):
        if by_variable in {"1", "true"}:
            yield f"{AUTOSCALER_VARIABLE} is set without enableInTreeAutoscaling"
        return
    if options.get("version") and by_variable is not None:
        yield f"autoscalerOptions.version and {AUTOSCALER_VARIABLE} are both set"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is negative"
    if options.get("version") == "v2":
        for group in (cluster.spec["headGroupSpec"], *cluster.groups):
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield f"{group.get('groupName', 'head')} needs restartPolicy Never"


def _idle_timeouts(cluster: RayCluster) -> Iterator[str]:
    version = cluster.spec.get("autoscalerOptions", {}).get("version")
    is_v2 = version == "v2" or environment(cluster.head).get(AUTOSCALER_VARIABLE) in {"1", "true"}
    for group in cluster.groups:
        idle = group.get("idleTimeoutSeconds")
        if idle is not None and idle < 0:
            yield f"{group['groupName']} has idleTimeoutSeconds {idle}"
        if idle is not None and not is_v2:
            yield f"{group['groupName']} has idleTimeoutSeconds, which wants autoscaler v2"


def _auth(cluster: RayCluster) -> Iterator[str]:
    options = cluster.spec.get("authOptions", {})
    if options.get("mode") != "token":
        return
    given = cluster.spec.get("rayVersion", "")
    try:
        if Version(given) < Version("2.52.0"):
            yield f"authOptions.mode token wants rayVersion 2.52.0, not {given}"
    except InvalidVersion:
        yield f"authOptions.mode token wants a rayVersion, not {given!r}"
    if options.get("enableK8sTokenAuth") and options.get("secretName"):
        yield "authOptions.enableK8sTokenAuth and secretName are both set"


def _gates(cluster: RayCluster, gates: Container[str]) -> Iterator[str]:
    for field, gate in GATED.items():
        if field in cluster.spec and gate not in gates:
            yield f"{field} wants the feature gate {gate}"


def _fault_tolerance(cluster: RayCluster, gates: Container[str]) -> Iterator[str]:
    options = cluster.spec.get("gcsFaultToleranceOptions")
    variables = {each["name"] for each in cluster.head.get("env", ())}
    annotations = cluster.owner["metadata"].get("annotations", {})
    if options is None:
        if "RAY_REDIS_ADDRESS" in variables:
            yield "RAY_REDIS_ADDRESS is set without gcsFaultToleranceOptions"
        return
    for name in sorted(variables & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}):
        yield f"{name} is set beside gcsFaultToleranceOptions"
    for name in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
        if annotations.get(name):
            yield f"the annotation {name} is set beside gcsFaultToleranceOptions"
    if "redis-password" in cluster.spec["headGroupSpec"].get("rayStartParams", {}):
        yield "redis-password is in rayStartParams beside gcsFaultToleranceOptions"
    if options.get("backend", "redis") == "rocksdb":
        yield from _rocksdb(options, cluster, gates)
    elif "storage" in options:
        yield "gcsFaultToleranceOptions.storage is for rocksdb, not redis"


def _rocksdb(options: Manifest, cluster: RayCluster, gates: Container[str]) -> Iterator[str]:
    if ROCKSDB_GATE not in gates:
        yield f"gcsFaultToleranceOptions.backend rocksdb wants the feature gate {ROCKSDB_GATE}"
    for field in REDIS_ONLY:
        if options.get(field):
            yield f"gcsFaultToleranceOptions.{field} is for redis, not rocksdb"
    storage = options.get("storage", {})
    if storage.get("claimName") and {"size", "storageClassName", "accessModes"} & storage.keys():
        yield "storage.claimName leaves no room for size, storageClassName and accessModes"
    for each in cluster.head.get("env", ()):
        if each["name"] in {"RAY_gcs_storage", "RAY_gcs_storage_path"}:
            yield f"{each['name']} is KubeRay's to set with rocksdb"
    mounts = cluster.head.get("volumeMounts", ())
    volumes = cluster.spec["headGroupSpec"]["template"]["spec"].get("volumes", ())
    if any(each["name"] == "gcs-storage" for each in (*mounts, *volumes)) or any(
        each["mountPath"] == "/data/gcs" for each in mounts
    ):
        yield "gcs-storage at /data/gcs is KubeRay's to mount with rocksdb"
