"""Whether Ray's clusters work as the service needs it: how they end, serve and grow."""

import math
from collections.abc import Iterator

import yaml
from support.manifests.reading import (
    Finding,
    Manifest,
    environment,
    name_of,
    of_kind,
    quantity,
    ray_clusters,
    ray_pods,
)
from support.manifests.settings import longest_task_s, service_config

from agent_actors.config_file import FILE_VARIABLE
from agent_actors.roster import SURGE

DRAIN = ["agent-actors", "drain", "--node"]
# From the end of the last task to that of the node: the command's own work, and Ray's.
AFTER_THE_LAST_TASK_S = 45
CONTROL_APP = "agent_actors.adapters.ray_serve:control_app"
DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def draining(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that a node that goes lets its longest task end."""
    longest_s = longest_task_s(manifests)
    needed_s = longest_s + AFTER_THE_LAST_TASK_S
    for pod in ray_pods(manifests):
        container = pod.spec["containers"][0]
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if hook != DRAIN:
            yield Finding("draining", pod.where, f"preStop is {hook}, not {' '.join(DRAIN)}")
        grace_s = pod.spec.get("terminationGracePeriodSeconds", 30)
        if grace_s < needed_s:
            what = f"terminationGracePeriodSeconds {grace_s} is less than {needed_s:g}"
            yield Finding("draining", pod.where, what)
        drain_s = float(environment(container).get(DRAIN_VARIABLE, 30))
        least_s = longest_s if pod.ray == "worker" else 0
        if not least_s <= drain_s < grace_s:
            what = f"{DRAIN_VARIABLE} {drain_s:g} is not between {least_s:g} and {grace_s}"
            yield Finding("draining", pod.where, what)
    for each in of_kind(manifests, "RayService"):
        delay_s = each["spec"].get("rayClusterDeletionDelaySeconds", 60)
        if delay_s < longest_s + AFTER_THE_LAST_TASK_S:
            what = f"rayClusterDeletionDelaySeconds {delay_s} is less than {needed_s:g}"
            yield Finding("draining", name_of(each), what)


def clusters(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check what a cluster of ours has: a token, an idle head, workers that come and go."""
    for cluster in ray_clusters(manifests):
        yield from (Finding("cluster", cluster.where, what) for what in _cluster(cluster.spec))
    for pod in ray_pods(manifests):
        if pod.spec.get("restartPolicy") != "Never":
            yield Finding("cluster", pod.where, "restartPolicy is not Never")
    for each in of_kind(manifests, "RayService"):
        if each["spec"].get("upgradeStrategy", {}).get("type") != "NewCluster":
            yield Finding("cluster", name_of(each), "an upgrade makes no new cluster")


def serve_app(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that a RayService runs the control application, with the configuration mounted."""
    config_paths = {
        environment(pod.spec["containers"][0]).get(FILE_VARIABLE) for pod in ray_pods(manifests)
    }
    for each in of_kind(manifests, "RayService"):
        where = name_of(each)
        config = yaml.safe_load(each["spec"].get("serveConfigV2", "{}"))
        applications = config.get("applications", [])
        if [app.get("import_path") for app in applications] != [CONTROL_APP]:
            yield Finding("serve", where, f"its application is not {CONTROL_APP}")
        for app in applications:
            args = app.get("args", {})
            if {args.get("config")} != config_paths:
                yield Finding("serve", where, f"config {args.get('config')} is mounted nowhere")
            if args.get("provisions") is not False:
                yield Finding("serve", where, "the service makes streams, which is the Job's part")
        yield from (Finding("serve", where, what) for what in _unreachable(each["spec"], config))


def room(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that the workers can hold the most actors that the pools may have."""
    for cluster in ray_clusters(manifests):
        config = service_config(manifests)
        if config is None:
            return
        asked = config.ray.supervisor.num_cpus * 2 + _serve_cpus(cluster.owner)
        for pool in config.pools.values():
            asked += math.ceil((1 + SURGE) * pool.max_actors) * pool.resources.num_cpus
        there = sum(
            group.get("maxReplicas", 0) * math.ceil(_cpus(group)) for group in cluster.groups
        )
        if asked > there:
            what = f"the pools may ask for {asked:g} CPUs, the workers have {there:g} at most"
            yield Finding("room", cluster.where, what)


def _cluster(spec: Manifest) -> Iterator[str]:
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode is not token"
    if spec["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        yield "actors may be put on the head"
    for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", ())):
        if _object_store(group) > _shared_memory(group):
            yield f"{group.get('groupName', 'head')} has more object store than /dev/shm"
    if not spec.get("enableInTreeAutoscaling"):
        return
    if spec.get("autoscalerOptions", {}).get("version") != "v2":
        yield "the autoscaler is not v2"
    for group in spec.get("workerGroupSpecs", ()):
        if missing := {"minReplicas", "maxReplicas", "idleTimeoutSeconds"} - group.keys():
            yield f"{group['groupName']} has no {', '.join(sorted(missing))}"


def _object_store(group: Manifest) -> float:
    """Return the bytes of Ray's object store; by itself it takes what /dev/shm has."""
    return float(group.get("rayStartParams", {}).get("object-store-memory", 0))


def _shared_memory(group: Manifest) -> float:
    spec = group["template"]["spec"]
    mounts = {m["mountPath"]: m["name"] for m in spec["containers"][0].get("volumeMounts", ())}
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    folder = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {})
    return quantity(folder.get("sizeLimit", 0))


def _unreachable(spec: Manifest, config: Manifest) -> Iterator[str]:
    """Tell why requests to Serve's Service would not arrive.

    Its selector takes workers in, which have no proxy: a port by name leaves them out.
    """
    if config.get("proxy_location") != "HeadOnly":
        yield "proxies are not on the head alone"
    ports = spec.get("serveService", {}).get("spec", {}).get("ports", [])
    targets = [port.get("targetPort") for port in ports if port.get("name") == "serve"]
    if targets != ["serve"]:
        yield f"its Service leads to {targets}, and so to workers too"
    cluster = spec["rayClusterConfig"]
    groups = {"head": cluster["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in cluster.get("workerGroupSpecs", ())}
    listens = config.get("http_options", {}).get("port", 8000)
    for name, group in groups.items():
        ports = group["template"]["spec"]["containers"][0].get("ports", ())
        named = [port["containerPort"] for port in ports if port.get("name") == "serve"]
        if named != ([listens] if name == "head" else []):
            yield f"{name} has the ports {named} named serve"


def _serve_cpus(owner: Manifest) -> float:
    config = yaml.safe_load(owner["spec"].get("serveConfigV2", "{}"))
    return sum(
        deployment.get("num_replicas", 1) * deployment.get("ray_actor_options", {})["num_cpus"]
        for application in config.get("applications", ())
        for deployment in application.get("deployments", ())
    )


def _cpus(group: Manifest) -> float:
    """Return what Ray counts on one worker: KubeRay takes the limit, rounded up."""
    given = group.get("rayStartParams", {}).get("num-cpus")
    limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    return float(given) if given is not None else quantity(limits.get("cpu", 0))
