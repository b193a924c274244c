"""What every pod owes to a cluster: labels, closed containers, bounds, probes that are answered."""

import re
from collections.abc import Iterator

from support.manifests.reading import (
    Finding,
    Manifest,
    PodTemplate,
    of_kind,
    pod_templates,
    quantity,
    ray_pods,
)

TOKENS_AT = "/var/run/secrets/kubernetes.io/serviceaccount"

COMPONENTS = {"head", "worker", "provision", "nats", "model-server"}
CLOSED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
# Where something answers, and whether it is well.
HEALTH = {
    52365: {"/api/healthz"},
    8000: {"/health"},
    8222: {"/healthz", "/healthz?js-server-only=true", "/healthz?js-enabled-only=true"},
}
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
DIGEST = re.compile(r"[^@]+@sha256:[0-9a-f]{64}")
TAGGED = re.compile(r"[^@]+:(?!latest$)[\w.-]+")


def labels(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that pods have the labels by which everything of ours selects them."""
    for pod in pod_templates(manifests):
        component = pod.component
        wanted = {"part-of": "agent-actors", "instance": "agent-actors"}
        wanted["name"] = "nats" if component == "nats" else "agent-actors"
        for name, value in wanted.items():
            given = pod.labels.get(f"app.kubernetes.io/{name}")
            if given != value:
                yield Finding("labels", pod.where, f"app.kubernetes.io/{name} is {given}")
        if component not in COMPONENTS or (pod.ray and component != pod.ray):
            yield Finding("labels", pod.where, f"app.kubernetes.io/component is {component!r}")


def security(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that a container can do no more than it needs, and none as root."""
    for pod in pod_templates(manifests):
        for problem in _open_pod(pod.spec):
            yield Finding("security", pod.where, problem)
        for container in pod.containers:
            for problem in _open_container(container.get("securityContext", {})):
                yield Finding("security", f"{pod.where} {container['name']}", problem)


def api_access(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that only the autoscaler holds a token of the Kubernetes API."""
    for pod in pod_templates(manifests):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield Finding("api-access", pod.where, "automountServiceAccountToken is not false")
        holders = {
            container["name"]
            for container in pod.containers
            for mount in container.get("volumeMounts", ())
            if mount["mountPath"] == TOKENS_AT or _has_token(pod.volumes.get(mount["name"], {}))
        }
        if holders != ({"autoscaler"} if pod.autoscaler else set()):
            yield Finding("api-access", pod.where, f"a token is held by {sorted(holders)}")


def resources(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that each container says what it asks for and at most gets, as a quota wants it."""
    for pod in pod_templates(manifests):
        for container in pod.containers:
            given = container.get("resources", {})
            for name in ("cpu", "memory", "ephemeral-storage"):
                asked, most = (given.get(k, {}).get(name) for k in ("requests", "limits"))
                where = f"{pod.where} {container['name']}"
                if asked is None or most is None:
                    yield Finding("resources", where, f"{name} has no request or no limit")
                elif quantity(asked) > quantity(most):
                    yield Finding("resources", where, f"{name} asks for more than its limit")
        yield from (Finding("resources", pod.where, what) for what in _folders(pod))


def probes(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that probes ask a port that the container has, for a path that is answered there."""
    for pod in pod_templates(manifests):
        for container in pod.containers:
            for kind in PROBES:
                if (probe := container.get(kind)) is not None:
                    where = f"{pod.where} {container['name']} {kind}"
                    yield from (Finding("probes", where, p) for p in _misses(probe, container))
        if pod.ray and "readinessProbe" not in pod.spec["containers"][0]:
            missing = "has no readinessProbe, so KubeRay's own asks for a Serve proxy"
            yield Finding("probes", pod.where, missing)


def images(manifests: list[Manifest], *, by_digest: bool) -> Iterator[Finding]:
    """Check that it is said which image runs: by its digest, or at least by a version."""
    for pod in pod_templates(manifests):
        for container in pod.containers:
            image = container["image"]
            if not (DIGEST if by_digest else TAGGED).fullmatch(image):
                how = "by digest" if by_digest else "by version"
                yield Finding("images", f"{pod.where} {container['name']}", f"{image}: not {how}")


def service_accounts(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that accounts exist, and that workers have none that may speak to the API."""
    accounts = {each["metadata"]["name"] for each in of_kind(manifests, "ServiceAccount")}
    users: dict[str, set[bool]] = {}
    for pod in ray_pods(manifests):
        account = pod.spec.get("serviceAccountName", "default")
        users.setdefault(account, set()).add(pod.ray == "head")
        if account not in accounts:
            yield Finding("accounts", pod.where, f"there is no ServiceAccount {account}")
    for account, kinds in users.items():
        if len(kinds) > 1:
            yield Finding("accounts", account, "head and workers share it")


def _open_pod(spec: Manifest) -> Iterator[str]:
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccompProfile is not RuntimeDefault"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{key} is on"
    for volume in spec.get("volumes", ()):
        if "hostPath" in volume:
            yield f"{volume['name']} is a folder of the host"
    if spec.get("enableServiceLinks") is not False:
        yield "enableServiceLinks is not false, so every Service becomes environment variables"


def _open_container(context: Manifest) -> Iterator[str]:
    for key, value in CLOSED.items():
        if context.get(key) != value:
            yield f"{key} is {context.get(key)}"
    if context.get("privileged"):
        yield "is privileged"
    capabilities = context.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield f"has the capabilities {capabilities}"


def _has_token(volume: Manifest) -> bool:
    return any(
        "serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", ())
    )


def _folders(pod: PodTemplate) -> Iterator[str]:
    """Tell which emptyDirs have no limit, and where their limits are beyond the containers'."""
    folders = {name: each["emptyDir"] for name, each in pod.volumes.items() if "emptyDir" in each}
    for name in [name for name, folder in folders.items() if "sizeLimit" not in folder]:
        yield f"{name} has no sizeLimit"
        del folders[name]
    memory = [each for each in folders.values() if each.get("medium") == "Memory"]
    disk = [each for each in folders.values() if each not in memory]
    if _sizes(memory) > _limit(pod.spec["containers"][0], "memory") / 2:
        yield "its folders in memory take over half of that"
    if _sizes(disk) > sum(_limit(each, "ephemeral-storage") for each in pod.containers):
        yield "its folders may take more than ephemeral-storage"


def _sizes(folders: list[Manifest]) -> float:
    return sum(quantity(folder["sizeLimit"]) for folder in folders)


def _limit(container: Manifest, name: str) -> float:
    return quantity(container.get("resources", {}).get("limits", {}).get(name, 0))


def _misses(probe: Manifest, container: Manifest) -> Iterator[str]:
    asked = probe.get("httpGet")
    if asked is None:
        yield "does not ask by HTTP"
        return
    ports = {port.get("name"): port["containerPort"] for port in container.get("ports", ())}
    port = ports.get(asked["port"], asked["port"])
    if port not in ports.values():
        yield f"the container has no port {asked['port']}"
    elif asked["path"] not in HEALTH.get(port, ()):
        yield f"nothing answers at {asked['path']} on {port}"
