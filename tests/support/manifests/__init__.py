"""What is wrong with Kubernetes manifests, found without a cluster.

Manifests are as kustomize or Helm render them. Each check is a function that yields findings, and
`findings` asks them all.
"""

from collections.abc import Container
from functools import partial

from support.manifests import clusters, files, network, pods, schemas, settings
from support.manifests.kuberay import kuberay
from support.manifests.reading import Finding, Manifest

__all__ = ["Finding", "Manifest", "findings"]

SHAPES = (
    schemas.custom_resources,
    schemas.built_in_kinds,
    schemas.pods,
    schemas.serve_configs,
)
CHECKS = (
    pods.labels,
    pods.security,
    pods.api_access,
    pods.resources,
    pods.probes,
    pods.service_accounts,
    files.volumes,
    files.writable_folders,
    files.secrets,
    settings.configuration,
    clusters.draining,
    clusters.clusters,
    clusters.serve_app,
    clusters.room,
    settings.command_lines,
    network.selectors,
    network.budgets,
    network.isolation,
    network.ways,
)


def findings(
    manifests: list[Manifest], *, gates: Container[str] = (), by_digest: bool = True
) -> list[Finding]:
    """Return all that is wrong; of manifests that have not the right shape, only that.

    `gates` are KubeRay's feature gates that are on where it is to run. `by_digest` wants images to
    be named so that they cannot change.
    """
    misshapen = [finding for check in SHAPES for finding in check(manifests)]
    if misshapen:
        return misshapen
    asked = (*CHECKS, partial(kuberay, gates=gates), partial(pods.images, by_digest=by_digest))
    return [finding for check in asked for finding in check(manifests)]
