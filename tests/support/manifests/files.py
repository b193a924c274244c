"""What pods find in their folders, and that secrets are nowhere else."""

import re
from collections.abc import Iterator, Mapping

from support.manifests.reading import (
    Finding,
    Manifest,
    environment,
    name_of,
    of_kind,
    pod_templates,
    ray_clusters,
    ray_pods,
)

# What a deployer makes beforehand, with the files that each Secret has.
SECRETS: Mapping[str, frozenset[str]] = {
    "agent-actors-nats": frozenset({"service.nk"}),
    "agent-actors-nats-ca": frozenset({"ca.crt"}),
    "agent-actors-provisioner": frozenset({"provisioner.nk"}),
    "agent-actors-vllm": frozenset({"api-key"}),
    "agent-actors-redis": frozenset({"password"}),
}
# Every namespace has it.
KUBERNETES_CA = "kube-root-ca.crt"
WRITABLE = ("/tmp", "/tmp/ray", "/dev/shm")
SECRETIVE = re.compile(r"TOKEN|PASSWORD|SECRET|CREDENTIAL|SEED|(API|PRIVATE|ACCESS)_?KEY")
KEY_MATERIAL = re.compile(r"\bS[UANOCX][A-Z2-7]{56}\b|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s@]+@")


def secrets(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that no secret stands in a manifest: they are mounted as files, or referred to."""
    for each in of_kind(manifests, "Secret"):
        yield Finding("secrets", name_of(each), "a Secret's contents are for no manifest")
    for pod in pod_templates(manifests):
        for container in pod.containers:
            for name in _given_away(environment(container)):
                yield Finding("secrets", f"{pod.where} {container['name']}", f"{name} is given")
    for each in of_kind(manifests, "ConfigMap"):
        for name in _given_away(each.get("data", {})):
            yield Finding("secrets", name_of(each), f"{name} has a key in it")
    for cluster in ray_clusters(manifests):
        options = cluster.spec.get("gcsFaultToleranceOptions", {})
        for name in ("redisUsername", "redisPassword"):
            if "value" in options.get(name, {}):
                yield Finding("secrets", cluster.where, f"{name} is given")


def volumes(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that what is mounted is there, and what is there is mounted."""
    config_maps = {each["metadata"]["name"]: each for each in of_kind(manifests, "ConfigMap")}
    for pod in pod_templates(manifests):
        mounted = {m["name"] for c in pod.containers for m in c.get("volumeMounts", ())}
        for name in sorted(mounted ^ pod.volumes.keys()):
            what = "is mounted and is no volume" if name in mounted else "is mounted nowhere"
            yield Finding("volumes", pod.where, f"{name} {what}")
        for name, volume in pod.volumes.items():
            for problem in _missing_source(volume, config_maps):
                yield Finding("volumes", f"{pod.where} {name}", problem)
        for mount in (m for c in pod.containers for m in c.get("volumeMounts", ())):
            if "subPath" in mount:
                what = f"{mount['mountPath']} is a subPath, which never changes in a running pod"
                yield Finding("volumes", pod.where, what)


def writable_folders(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check that Ray has where to write, since the root file system is read-only."""
    for pod in ray_pods(manifests):
        for container in pod.containers:
            folders = {m["mountPath"]: m["name"] for m in container.get("volumeMounts", ())}
            home = environment(container).get("HOME", "HOME")
            is_ray = container["name"] != "autoscaler"
            for path in (home, *(WRITABLE if is_ray else WRITABLE[:2])):
                if "emptyDir" not in pod.volumes.get(folders.get(path, ""), {}):
                    where = f"{pod.where} {container['name']}"
                    yield Finding("writable", where, f"{path} is no emptyDir")


def _given_away(variables: Mapping[str, str]) -> Iterator[str]:
    for name, value in variables.items():
        is_secret = SECRETIVE.search(name.upper()) and not name.endswith("_FILE")
        if is_secret or KEY_MATERIAL.search(value):
            yield name


def _missing_source(volume: Manifest, config_maps: Mapping[str, Manifest]) -> Iterator[str]:
    sources = [volume, *volume.get("projected", {}).get("sources", ())]
    for source in sources:
        if (config_map := source.get("configMap")) is not None:
            name = config_map["name"]
            if name not in config_maps and name != KUBERNETES_CA:
                yield f"there is no ConfigMap {name}"
        if (secret := source.get("secret")) is not None:
            name = secret.get("secretName", secret.get("name"))
            if name not in SECRETS:
                yield f"nobody is told to make a Secret {name}"
            elif absent := {item["key"] for item in secret.get("items", ())} - SECRETS[name]:
                yield f"the Secret {name} has no {sorted(absent)}"
