"""Kubernetes manifests as they are rendered, and the pods that will be made of them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
OVERLAYS = ("dev", "prod", "gcs-redis", "gcs-rocksdb")

Manifest = dict[str, Any]

# What KubeRay gives the autoscaler's container when `autoscalerOptions` says nothing else.
AUTOSCALER = {
    "resources": {
        "requests": {"cpu": "500m", "memory": "512Mi"},
        "limits": {"cpu": "500m", "memory": "512Mi"},
    }
}


class Finding(NamedTuple):
    """Something that is wrong: which check says so, of what, and what it is."""

    check: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.check}: {self.where}: {self.what}"


class PodTemplate(NamedTuple):
    """What pods are made from. `ray` is head or worker for those that KubeRay makes."""

    where: str
    labels: Mapping[str, str]
    spec: Manifest
    ray: str = ""
    autoscaler: Manifest | None = None

    @property
    def containers(self) -> list[Manifest]:
        """All containers, with the autoscaler's that KubeRay adds."""
        added = [self.autoscaler] if self.autoscaler else []
        return [*self.spec.get("initContainers", ()), *self.spec["containers"], *added]

    @property
    def volumes(self) -> dict[str, Manifest]:
        """The volumes by name."""
        return {volume["name"]: volume for volume in self.spec.get("volumes", ())}

    @property
    def component(self) -> str:
        """What our label says that it is."""
        return self.labels.get("app.kubernetes.io/component", "")


class RayCluster(NamedTuple):
    """The spec of a RayCluster, wherever it stands, and who it belongs to."""

    where: str
    owner: Manifest
    spec: Manifest

    @property
    def in_service(self) -> bool:
        """Whether a RayService makes it."""
        return self.owner["kind"] == "RayService"

    @property
    def head(self) -> Manifest:
        """The head's container with Ray in it."""
        return self.spec["headGroupSpec"]["template"]["spec"]["containers"][0]

    @property
    def groups(self) -> list[Manifest]:
        """The groups of workers."""
        return self.spec.get("workerGroupSpecs", [])


@cache
def _rendered(folder: Path) -> str:
    """Return what kustomize makes of a folder, as JSON, which is read faster."""
    # Beside the interpreter: the wheel puts it there, on the path or not.
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run(
        [kubectl, "kustomize", folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KUBECONFIG": os.devnull},
    )
    assert done.returncode == 0, done.stderr
    return json.dumps(manifests_in(done.stdout))


def render(folder: Path) -> list[Manifest]:
    """Return what kustomize makes of a folder, every time anew."""
    return json.loads(_rendered(folder))


def render_prod_with(component: str, folder: Path) -> list[Manifest]:
    """Return production with a component that it leaves out; the folder is to work in."""
    there = os.path.relpath(DEPLOY, folder)
    text = {
        "resources": [f"{there}/overlays/prod"],
        "components": [f"{there}/components/{component}"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return render(folder)


def manifests_in(text: str) -> list[Manifest]:
    """Return the manifests of a YAML text."""
    documents = yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [document for document in documents if document]


def name_of(manifest: Manifest) -> str:
    """Return what a manifest is called, with its kind."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """Return the manifests of these kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def ray_clusters(manifests: list[Manifest]) -> list[RayCluster]:
    """Return all clusters, those of services too."""
    clusters = [
        RayCluster(name_of(each), each, each["spec"]) for each in of_kind(manifests, "RayCluster")
    ]
    services = [
        RayCluster(name_of(each), each, each["spec"]["rayClusterConfig"])
        for each in of_kind(manifests, "RayService")
    ]
    return clusters + services


def pod_templates(manifests: list[Manifest]) -> list[PodTemplate]:
    """Return everything from which pods are made."""
    return [*_plain_templates(manifests), *_ray_templates(manifests)]


def ray_pods(manifests: list[Manifest]) -> list[PodTemplate]:
    """Return the templates of Ray's own pods."""
    return list(_ray_templates(manifests))


def environment(container: Manifest) -> dict[str, str]:
    """Return the variables with a value that stands in the manifest."""
    return {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}


def quantity(amount: str | float) -> float:
    """Return a Kubernetes quantity as a number: CPUs, bytes."""
    text = str(amount)
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    units |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
    unit = text.lstrip("0123456789.")
    return float(text.removesuffix(unit)) * units.get(unit, 1.0)


def _plain_templates(manifests: list[Manifest]) -> Iterator[PodTemplate]:
    for each in of_kind(manifests, "Deployment", "StatefulSet", "DaemonSet", "Job"):
        template = each["spec"]["template"]
        yield PodTemplate(name_of(each), _labels(template), template["spec"])


def _ray_templates(manifests: list[Manifest]) -> Iterator[PodTemplate]:
    for cluster in ray_clusters(manifests):
        template = cluster.spec["headGroupSpec"]["template"]
        autoscaler = _autoscaler(cluster)
        where = f"{cluster.where} head"
        yield PodTemplate(where, _labels(template), template["spec"], "head", autoscaler)
        for group in cluster.groups:
            template = group["template"]
            where = f"{cluster.where} {group['groupName']}"
            yield PodTemplate(where, _labels(template), template["spec"], "worker")


def _labels(template: Manifest) -> Mapping[str, str]:
    return template.get("metadata", {}).get("labels", {})


def _autoscaler(cluster: RayCluster) -> Manifest | None:
    """Return the container that KubeRay puts beside the head's."""
    if not cluster.spec.get("enableInTreeAutoscaling"):
        return None
    options = cluster.spec.get("autoscalerOptions", {})
    taken = ("env", "image", "imagePullPolicy", "resources", "securityContext", "volumeMounts")
    given = {key: options[key] for key in taken if key in options}
    # KubeRay mounts the volume of this name where the autoscaler logs.
    logs = [{"name": "ray-logs", "mountPath": "/tmp/ray"}]
    mounts = [*given.pop("volumeMounts", ()), *logs]
    image = {"name": "autoscaler", "image": cluster.head["image"]}
    return {**image, **AUTOSCALER, **given, "volumeMounts": mounts}
