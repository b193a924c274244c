"""Who selects which pods, and who may speak to whom."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from support.manifests.reading import (
    Finding,
    Manifest,
    PodTemplate,
    name_of,
    of_kind,
    pod_templates,
    ray_clusters,
    ray_pods,
)
from support.manifests.settings import service_config

Rule = Mapping[str, Any]

NAMESPACE = "kubernetes.io/metadata.name"
OPERATOR = {NAMESPACE: "kuberay-system"}
# What KubeRay's operator speaks to: the dashboard, and Serve's proxy.
OPERATED = (8265, 8000)
# They run what they are told to: nobody but Ray's own pods, and the operator in the first.
COMMANDING = (8265, 10001)
KUBERNETES_API = 6443


def selectors(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that whatever selects pods selects some of ours, with the ports that it names."""
    pods = pod_templates(manifests)
    for each in of_kind(manifests, "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "Service"):
        selector = each["spec"].get("podSelector", each["spec"].get("selector", {}))
        if each["kind"] == "Service":
            selector = {"matchLabels": selector}
        selected = [pod for pod in pods if matches(selector, pod.labels)]
        if not selected:
            yield Finding("selectors", name_of(each), "selects no pod")
        for port in _ports_named_by(each):
            if selected and not any(_port_of(pod, port) for pod in selected):
                yield Finding("selectors", name_of(each), f"no pod that it selects has {port}")
    for each in of_kind(manifests, "Deployment", "StatefulSet"):
        labels = each["spec"]["template"]["metadata"]["labels"]
        if not matches(each["spec"]["selector"], labels):
            yield Finding("selectors", name_of(each), "does not select its own pods")


def budgets(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that budgets let nodes be drained, and count in the only way that works here."""
    workers = sum(
        group.get("minReplicas", 0) for c in ray_clusters(manifests) for group in c.groups
    )
    for each in of_kind(manifests, "PodDisruptionBudget"):
        spec, where = each["spec"], name_of(each)
        kinds = {pod.ray for pod in ray_pods(manifests) if matches(spec["selector"], pod.labels)}
        if not isinstance(spec.get("minAvailable"), int):
            # Kubernetes finds no number of replicas wanted: a RayCluster has no scale subresource.
            yield Finding("budgets", where, "needs minAvailable as a number")
        elif "worker" in kinds and spec["minAvailable"] >= workers:
            yield Finding("budgets", where, "never lets a worker go")
        if len(kinds) > 1:
            yield Finding("budgets", where, "counts the head among the workers")
        if spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield Finding("budgets", where, "keeps pods that are not ready")


def isolation(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that nothing passes unless it is said, and that nothing is said of everybody."""
    for pod in pod_templates(manifests):
        if not any(_shuts(policy["spec"]) for policy in _policies_of(pod, manifests)):
            yield Finding("isolation", pod.where, "no policy denies all that no other allows")
    for policy in of_kind(manifests, "NetworkPolicy"):
        for peers in _peers(policy):
            for what in _too_wide(peers):
                yield Finding("isolation", name_of(policy), what)
    yield from _commanding_ports(manifests)
    yield from _open_services(manifests)


def ways(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that what has to pass does."""
    for pod in pod_templates(manifests):
        if not (_may_ask(pod, manifests, 53, "UDP") and _may_ask(pod, manifests, 53, "TCP")):
            yield Finding("ways", pod.where, "cannot ask DNS")
    nodes = ray_pods(manifests)
    for pod in nodes:
        for other in nodes:
            if not _ray_to_ray(pod, other, manifests):
                yield Finding("ways", pod.where, f"cannot speak to {other.where}")
        may = any("ipBlock" in peer for peer in _asked(pod, manifests, KUBERNETES_API))
        if may != bool(pod.autoscaler):
            what = "may" if may else "may not"
            yield Finding("ways", pod.where, f"{what} speak to the Kubernetes API")
        if pod.ray == "head":
            for port in OPERATED:
                if not any(_is_operator(peer) for peer in _answered(pod, manifests, port)):
                    yield Finding("ways", pod.where, f"KubeRay's operator cannot reach {port}")
    yield from _ways_of_the_configuration(manifests)
    yield from _ways_to_redis(manifests)
    yield from _ways_of_monitors(manifests)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Tell whether a label selector selects what has these labels."""
    wanted = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _meets(expression, labels) for expression in selector.get("matchExpressions", ())
    )


def _meets(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert expression["operator"] == "In", "no manifest needs the others"
    return labels.get(expression["key"]) in expression["values"]


def _ports_named_by(manifest: Manifest) -> Iterator[int | str]:
    spec = manifest["spec"]
    match manifest["kind"]:
        case "NetworkPolicy":
            yield from (p["port"] for r in spec.get("ingress", ()) for p in r.get("ports", ()))
        case "PodMonitor":
            yield from (endpoint["port"] for endpoint in spec["podMetricsEndpoints"])
        case "Service":
            yield from (port.get("targetPort", port["port"]) for port in spec.get("ports", ()))


def _port_of(pod: PodTemplate, port: int | str) -> int | None:
    """Return the number of a port that is called so or has that number."""
    for container in pod.spec["containers"]:
        for each in container.get("ports", ()):
            if port in (each.get("name"), each["containerPort"]):
                return each["containerPort"]
    return None


def _policies_of(pod: PodTemplate, manifests: list[Manifest]) -> list[Manifest]:
    policies = of_kind(manifests, "NetworkPolicy")
    return [each for each in policies if matches(each["spec"].get("podSelector", {}), pod.labels)]


def _shuts(policy: Manifest) -> bool:
    allows = policy.get("ingress") or policy.get("egress")
    return {*policy.get("policyTypes", ())} == {"Ingress", "Egress"} and not allows


def _rules(pod: PodTemplate, manifests: list[Manifest], kind: str) -> Iterator[Rule]:
    for policy in _policies_of(pod, manifests):
        yield from policy["spec"].get(kind, ())


def _peers(policy: Manifest) -> Iterator[list[Rule]]:
    for rule in policy["spec"].get("ingress", ()):
        yield rule.get("from", [])
    for rule in policy["spec"].get("egress", ()):
        yield rule.get("to", [])


def _too_wide(peers: list[Rule]) -> Iterator[str]:
    if not peers:
        yield "a rule is open to everybody"
    for peer in peers:
        if peer.get("ipBlock", {}).get("cidr", "").endswith("/0"):
            yield "a rule is open to every address"
        for selector in ("namespaceSelector", "podSelector"):
            if peer == {selector: {}}:
                yield f"a rule is open to every {selector.removesuffix('Selector')}"


def _asked(
    pod: PodTemplate, manifests: list[Manifest], port: int, protocol: str = "TCP"
) -> Iterator[Rule]:
    """Whom a pod may ask at a port."""
    for rule in _rules(pod, manifests, "egress"):
        ports = rule.get("ports")
        if not ports or any(
            each["port"] == port and each.get("protocol", "TCP") == protocol for each in ports
        ):
            yield from rule.get("to", ())


def _answered(pod: PodTemplate, manifests: list[Manifest], port: int) -> Iterator[Rule]:
    """Whom a pod may answer at a port."""
    for rule in _rules(pod, manifests, "ingress"):
        ports = rule.get("ports")
        if not ports or any(port in (p["port"], _port_of(pod, p["port"])) for p in ports):
            yield from rule.get("from", ())


def _may_ask(pod: PodTemplate, manifests: list[Manifest], port: int, protocol: str) -> bool:
    return any(True for _ in _asked(pod, manifests, port, protocol))


def _is_pod(peer: Rule, pod: PodTemplate) -> bool:
    """Tell whether a rule's peer is this pod, of the same namespace."""
    selector = peer.get("podSelector")
    return (
        selector is not None and "namespaceSelector" not in peer and matches(selector, pod.labels)
    )


def _is_operator(peer: Rule) -> bool:
    return peer.get("namespaceSelector", {}).get("matchLabels") == OPERATOR


def _ray_to_ray(pod: PodTemplate, other: PodTemplate, manifests: list[Manifest]) -> bool:
    """Tell whether one may ask the other at every port: Ray chooses them as it likes."""
    any_port = -1
    return any(_is_pod(peer, other) for peer in _asked(pod, manifests, any_port)) and any(
        _is_pod(peer, pod) for peer in _answered(other, manifests, any_port)
    )


def _commanding_ports(manifests: list[Manifest]) -> Iterator[Finding]:
    nodes = ray_pods(manifests)
    for pod in nodes:
        for port in COMMANDING:
            for peer in _answered(pod, manifests, port):
                is_ours = any(_is_pod(peer, node) for node in nodes)
                if not is_ours and not (port == OPERATED[0] and _is_operator(peer)):
                    yield Finding("isolation", pod.where, f"{port} is open to {dict(peer)}")


def _open_services(manifests: list[Manifest]) -> Iterator[Finding]:
    for each in of_kind(manifests, "Ingress", "HTTPRoute", "Gateway"):
        yield Finding("isolation", name_of(each), "leads in from outside")
    for each in of_kind(manifests, "Service"):
        if each["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield Finding("isolation", name_of(each), f"is a {each['spec']['type']}")
    for cluster in ray_clusters(manifests):
        head = cluster.spec["headGroupSpec"]
        if head.get("enableIngress"):
            yield Finding("isolation", cluster.where, "enableIngress is on")
        if head.get("serviceType", "ClusterIP") != "ClusterIP":
            yield Finding("isolation", cluster.where, f"serviceType is {head['serviceType']}")


def _ways_of_the_configuration(manifests: list[Manifest]) -> Iterator[Finding]:
    config = service_config(manifests)
    if config is None:
        return
    for pod in pod_templates(manifests):
        if pod.ray or pod.component == "provision":
            for url in config.nats.url.split(","):
                if not _leads_to(url, pod, manifests, default_port=4222):
                    yield Finding("ways", pod.where, f"cannot reach {url}")
        if pod.ray == "worker":
            for url in config.vllm.urls:
                if not _leads_to(url, pod, manifests):
                    yield Finding("ways", pod.where, f"cannot reach {url}")


def _ways_to_redis(manifests: list[Manifest]) -> Iterator[Finding]:
    for cluster in ray_clusters(manifests):
        url = cluster.spec.get("gcsFaultToleranceOptions", {}).get("redisAddress")
        for pod in ray_pods(manifests) if url else ():
            if pod.ray == "head" and not _leads_to(url, pod, manifests, default_port=6379):
                yield Finding("ways", pod.where, f"cannot reach {url}")


def _ways_of_monitors(manifests: list[Manifest]) -> Iterator[Finding]:
    """Tell which numbers a monitor wants and nobody from elsewhere may collect."""
    for each in of_kind(manifests, "PodMonitor"):
        for pod in pod_templates(manifests):
            if matches(each["spec"]["selector"], pod.labels):
                ports = (_port_of(pod, name) for name in _ports_named_by(each))
                for port in filter(None, ports):
                    if not any("namespaceSelector" in p for p in _answered(pod, manifests, port)):
                        yield Finding("ways", pod.where, f"nobody may collect from {port}")


def _leads_to(
    url: str, pod: PodTemplate, manifests: list[Manifest], *, default_port: int | None = None
) -> bool:
    """Tell whether a pod may ask a Service; of one elsewhere the pods' port may be another."""
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").split(".")
    port = parts.port or default_port
    if len(host) > 1 and "svc" not in host:
        return True  # outside of the cluster, where we do not know who is who
    if len(host) == 1:
        return any(_leads_to_pod(pod, other, manifests) for other in _behind(host[0], manifests))
    wanted = {NAMESPACE: host[1]}
    for rule in _rules(pod, manifests, "egress"):
        ports = {each["port"] for each in rule.get("ports", ())}
        if default_port is None or not ports or port in ports:
            for peer in rule.get("to", ()):
                if peer.get("namespaceSelector", {}).get("matchLabels") == wanted:
                    return True
    return False


def _behind(service: str, manifests: list[Manifest]) -> Iterator[tuple[PodTemplate, int]]:
    """Return the pods of a Service of this namespace, with the port where they listen."""
    for each in of_kind(manifests, "Service"):
        if each["metadata"]["name"] == service:
            target = each["spec"]["ports"][0].get("targetPort", each["spec"]["ports"][0]["port"])
            for pod in pod_templates(manifests):
                if matches({"matchLabels": each["spec"]["selector"]}, pod.labels):
                    yield pod, _port_of(pod, target) or 0


def _leads_to_pod(
    pod: PodTemplate, there: tuple[PodTemplate, int], manifests: list[Manifest]
) -> bool:
    other, port = there
    return any(_is_pod(peer, other) for peer in _asked(pod, manifests, port)) and any(
        _is_pod(peer, pod) for peer in _answered(other, manifests, port)
    )
