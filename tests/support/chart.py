"""The Helm chart, rendered and linted without a cluster and without `helm`."""

import json
import re
from typing import Any

import helm_python as helm
import yaml
from support.manifests.reading import DEPLOY, Manifest, manifests_in

CHART = DEPLOY / "helm/agent-actors"
NAME = NAMESPACE = "agent-actors"

HELMS_LABELS = frozenset(
    {"app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"}
)
SHARED_LABELS = HELMS_LABELS | {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/name",
    "app.kubernetes.io/part-of",
}

Values = dict[str, Any]


class Refused(Exception):
    """The chart does not take these values; the message is what a user of Helm reads."""


def default_values() -> Values:
    """Return what stands in values.yaml."""
    return yaml.safe_load((CHART / "values.yaml").read_text())


def example_values(name: str) -> Values:
    """Return the values of ci/<name>-values.yaml."""
    return yaml.safe_load((CHART / f"ci/{name}-values.yaml").read_text())


def lint(values: Values | None = None) -> list[str]:
    """Return what `helm lint --strict` has to say, but for hints."""
    report = helm.lint(CHART, values, strict=True)
    return [message["error"] for message in report["messages"] if message["severity"] > 1]


def render(values: Values | None = None, *, name: str = NAME) -> list[Manifest]:
    """Return the resources that `helm install` would make.

    Raises Refused.
    """
    texts = render_texts(values, name=name).values()
    return [manifest for text in texts for manifest in manifests_in(text)]


def render_texts(values: Values | None = None, *, name: str = NAME) -> dict[str, str]:
    """Return them as the texts of their files.

    Raises Refused.
    """
    rendered = _render(values, name).items()
    return {file: text for file, text in rendered if file.endswith(".yaml")}


def notes(values: Values | None = None, *, name: str = NAME) -> str:
    """Return what `helm install` prints."""
    return _render(values, name)[f"{CHART.name}/templates/NOTES.txt"]


def _render(values: Values | None, name: str) -> dict[str, str]:
    with helm.Chart.load(CHART) as chart:
        try:
            return chart.render(values, name=name, namespace=NAMESPACE)
        except helm.HelmError as error:
            raise Refused(str(error)) from error


def comparable(manifests: list[Manifest]) -> str:
    """Return resources as text in which only what Helm adds, and what nothing depends on, is gone.

    That is: the order, Helm's own labels and those that all resources share, the name of the
    configuration in the name of the Job, and how the texts are written that hold YAML.
    """
    plain = sorted((_plain(manifest) for manifest in manifests), key=_kind_and_name)
    return yaml.safe_dump_all(plain, sort_keys=True, width=200)


def _plain(manifest: Manifest) -> Manifest:
    metadata = dict(manifest["metadata"])
    labels = metadata.pop("labels", {})
    metadata["labels"] = {name: labels[name] for name in labels if name not in SHARED_LABELS}
    metadata["name"] = re.sub("-provision-[0-9a-f]{8}$", "-provision", metadata["name"])
    plain = manifest | {"metadata": metadata}
    if "data" in manifest:
        plain["data"] = {
            name: yaml.safe_load(text) if name.endswith(".yaml") else text
            for name, text in manifest["data"].items()
        }
    if "serveConfigV2" in manifest.get("spec", {}):
        serve = yaml.safe_load(manifest["spec"]["serveConfigV2"])
        plain["spec"] = manifest["spec"] | {"serveConfigV2": serve}
    return json.loads(json.dumps(plain))  # anchors are gone


def _kind_and_name(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]
