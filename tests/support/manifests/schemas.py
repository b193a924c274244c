"""Whether manifests have the shape that the Kubernetes API and KubeRay's resources ask for."""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)
from support.manifests.reading import (
    ROOT,
    Finding,
    Manifest,
    name_of,
    of_kind,
    pod_templates,
)

KUBERNETES = "1.34"
CUSTOM = ("ray.io/", "jetstream.nats.io/")


def crd_folder() -> Path | None:
    """Return where the schemas of custom resources lie; None: nowhere."""
    folder = Path(os.environ.get("AGENT_ACTORS_CRD_DIR") or ROOT.parent / "shared/crds")
    return folder if any(folder.glob("*.json")) else None


def custom_resources(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check the resources whose schemas are at hand, strictly: no field that they do not name."""
    folder = crd_folder()
    for each in manifests if folder else ():
        if each["apiVersion"].startswith(CUSTOM):
            group, _, version = each["apiVersion"].partition("/")
            validator = _validator(folder / f"{group}_{each['kind']}_{version}.json")
            for error in validator.iter_errors(each):
                yield Finding("schema", name_of(each), f"{error.json_path}: {error.message[:300]}")


def built_in_kinds(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check what Kubernetes itself knows, strictly."""
    known = ("v1", "apps/", "batch/", "policy/", "networking.k8s.io/", "rbac.authorization.k8s.io/")
    for each in manifests:
        if each["apiVersion"].startswith(known):
            yield from _kubernetes(each, name_of(each))


def pods(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check every pod template as the Pod that it becomes; KubeRay's schema knows less of them."""
    for template in pod_templates(manifests):
        spec = {**template.spec, "containers": template.containers}
        metadata = {"name": "pod", "labels": dict(template.labels)}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        yield from _kubernetes(pod, template.where)


def serve_configs(manifests: list[Manifest]) -> Iterator[Finding]:
    """Check what KubeRay hands to Ray Serve, which takes a misspelt key without a word."""
    for each in of_kind(manifests, "RayService"):
        config = yaml.safe_load(each["spec"].get("serveConfigV2", "{}"))
        try:
            ServeDeploySchema.model_validate(config)
        except ValueError as error:
            yield Finding("serve", name_of(each), str(error))
        for unknown in _unknown_keys(config):
            yield Finding("serve", name_of(each), f"{unknown} is no key of Ray Serve")


def _kubernetes(manifest: Manifest, where: str) -> Iterator[Finding]:
    if what := _mistake(json.dumps(manifest)):
        yield Finding("schema", where, what)


@cache  # it reads its schemas anew for each manifest
def _mistake(manifest: str) -> str:
    try:
        kubernetes_validate.validate(json.loads(manifest), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message[:300]}"
    return ""


@cache
def _validator(path: Path) -> Draft202012Validator:
    schema = _strict(json.loads(path.read_text()))
    # A resource's own schema leaves out what every resource has.
    schema["properties"] |= {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    }
    return Draft202012Validator(schema)


def _strict(schema: Any) -> Any:
    """Return an OpenAPI schema as a JSON Schema that allows nothing but what it names."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("anyOf", None)
        strict["type"] = ["integer", "string"]
    named = schema.get("properties")
    if isinstance(named, dict) and "type" in schema:
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
        # The API server fills defaults in before it looks for what is missing.
        needed = [name for name in schema.get("required", ()) if "default" not in named[name]]
        strict["required"] = needed
    if schema.get("nullable") and isinstance(strict.get("type"), str):
        strict["type"] = [strict["type"], "null"]
    return strict


def _unknown_keys(config: Manifest) -> Iterator[str]:
    yield from _beyond(config, ServeDeploySchema)
    yield from _beyond(config.get("http_options", {}), HTTPOptionsSchema)
    for application in config.get("applications", ()):
        yield from _beyond(application, ServeApplicationSchema)
        for deployment in application.get("deployments", ()):
            yield from _beyond(deployment, DeploymentSchema)
            yield from _beyond(deployment.get("ray_actor_options", {}), RayActorOptionsSchema)


def _beyond(given: Manifest, model: Any) -> set[str]:
    return set(given) - set(model.model_fields)
