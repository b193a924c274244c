"""What the Helm chart renders: right by itself, and one with the overlays."""

import difflib
import json
import os
import re
from pathlib import Path

import helm_python as helm
import pytest
import yaml
import yamllint.linter
from support.chart import (
    CHART,
    HELMS_LABELS,
    Values,
    comparable,
    default_values,
    example_values,
    lint,
    notes,
    render,
    render_texts,
)
from support.chart_values import MATRIX
from support.manifests import findings
from support.manifests.network import matches
from support.manifests.reading import (
    DEPLOY,
    Manifest,
    environment,
    name_of,
    of_kind,
    pod_templates,
    ray_clusters,
    ray_pods,
)
from support.manifests.reading import render as kustomized
from support.manifests.schemas import crd_folder, custom_resources
from yamllint.config import YamlLintConfig

from agent_actors import __version__
from agent_actors.config import PoolConfig

# Long lines and lists in JSON are what templates give.
RENDERED = YamlLintConfig(
    """
    extends: default
    rules:
      braces: {max-spaces-inside: 0}
      commas: disable
      comments: {min-spaces-from-content: 1}
      document-start: disable
      indentation: {indent-sequences: whatever}
      line-length: disable
    """
)
POLICY = "NetworkPolicy"
GATES = {"GCSFaultToleranceEmbeddedStorage"}
FIRST_LOOK = ("Deployment/model-server", "Service/model-server", "Service/nats", "StatefulSet/nats")

# An overlay with components, and the values that are to give the same: those of ci/, and more.
SAME: dict[str, tuple[str, list[str], Values]] = {
    "prod": ("prod", [], {}),
    "gcs-redis": ("gcs-redis", [], {}),
    "gcs-rocksdb": ("gcs-rocksdb", [], {}),
    "dev": ("dev", [], {}),
    "prod with Prometheus": ("prod", ["pod-monitor"], {"podMonitor": {"enabled": True}}),
    "prod under Kueue": (
        "prod",
        ["kueue"],
        {
            "kueue": {"queueName": "agent-actors"},
            "autoscaling": {"enabled": False},
            "worker": {"replicas": 6},
        },
    ),
}


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_chart_has_nothing_that_lint_warns_of(values: Values):
    assert lint(values) == []


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_what_is_rendered_has_nothing_wrong(values: Values):
    by_digest = "digest" in values.get("image", {})
    found = findings(render(values), gates=GATES, by_digest=by_digest)
    if values == MATRIX["without policies"]:
        found = [finding for finding in found if finding.check not in ("isolation", "ways")]
    assert [str(finding) for finding in found] == []


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_what_is_rendered_is_well_kept_and_gives_no_key_twice(values: Values):
    for file, text in render_texts(values).items():
        problems = yamllint.linter.run(text, RENDERED)
        assert [f"{file}: {problem}" for problem in problems] == []


def test_ray_resources_fit_the_schemas_of_kuberay():
    if crd_folder() is None:
        pytest.skip("no schemas of custom resources: AGENT_ACTORS_CRD_DIR names no folder of them")
    for values in ({}, MATRIX["a RayCluster"]):
        assert [str(finding) for finding in custom_resources(render(values))] == []


@pytest.mark.parametrize(("overlay", "components", "values"), SAME.values(), ids=SAME)
def test_the_chart_renders_what_the_overlay_does(
    overlay: str, components: list[str], values: Values, tmp_path: Path
):
    chart = comparable(render(example_values(overlay) | values))
    kustomize = comparable(
        [each for each in _kustomized(overlay, components, tmp_path) if not _is_beside(each)]
    )
    if chart != kustomize:
        texts = (kustomize.splitlines(), chart.splitlines())
        pytest.fail("\n".join(difflib.unified_diff(*texts, "overlay", "chart", lineterm="")))


def _kustomized(overlay: str, components: list[str], folder: Path) -> list[Manifest]:
    there = os.path.relpath(DEPLOY, folder)
    text = {
        "resources": [f"{there}/overlays/{overlay}"],
        "components": [f"{there}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return kustomized(folder)


def _is_beside(manifest: Manifest) -> bool:
    """Tell what is no part of a release: its namespace, and what a first look has beside it."""
    name = name_of(manifest)
    return (
        name.startswith(("Namespace/", "ConfigMap/nats-config", "NetworkPolicy/agent-actors-dev"))
        or name in FIRST_LOOK
    )


def test_the_longest_task_of_all_pools_rules_how_long_pods_and_an_old_cluster_stay():
    manifests = render(MATRIX["several pools"])
    assert set(configuration(manifests)["pools"]) == {"quick", "slow", "usual"}
    assert only(manifests, "RayService")["spec"]["rayClusterDeletionDelaySeconds"] == 1801 + 60
    head, worker = ray_pods(manifests)
    for pod in (head, worker):
        assert pod.spec["terminationGracePeriodSeconds"] == 1801 + 45
    assert environment(worker.containers[0])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "1801"


def test_a_pool_that_says_nothing_has_the_longest_task_of_the_services_own_default():
    manifests = render(MATRIX["the service's own pool"])
    assert "pools" not in configuration(manifests)
    longest_s = PoolConfig().task_timeout_s
    assert only(manifests, "RayService")["spec"]["rayClusterDeletionDelaySeconds"] == longest_s + 60


def test_a_group_of_workers_has_what_it_says_and_otherwise_what_all_workers_have():
    manifests = render(MATRIX["several groups of workers"])
    big, small = ray_clusters(manifests)[0].groups
    usual = default_values()["worker"]
    assert (small["groupName"], big["groupName"]) == ("small", "big")
    assert (small["minReplicas"], small["maxReplicas"]) == (1, usual["maxReplicas"])
    assert str(small["idleTimeoutSeconds"]) == "2592000"  # and not 2.592e+06, which is no integer
    assert (big["replicas"], big["labels"]) == (3, {"size": "big"})
    assert small["rayStartParams"] == {"object-store-memory": "268435456"}
    assert big["rayStartParams"] == {
        "object-store-memory": "1073741824",
        "resources": '"{\\"fast_disk\\": 1}"',
    }
    _, big_pod, small_pod = ray_pods(manifests)
    assert small_pod.containers[0]["resources"] == usual["resources"]
    assert big_pod.containers[0]["resources"]["requests"] == {
        "cpu": 8,
        "memory": "4Gi",
        "ephemeral-storage": "2Gi",
    }
    assert big_pod.volumes["workspaces"]["persistentVolumeClaim"] == {"claimName": "workspaces"}
    assert big_pod.volumes["shared-mem"]["emptyDir"]["sizeLimit"] == "2048Mi"


def test_one_worker_less_than_the_fewest_must_stay():
    def least(values: Values) -> int:
        budgets = of_kind(render(values), "PodDisruptionBudget")
        return {each["metadata"]["name"]: each["spec"]["minAvailable"] for each in budgets}[
            "agent-actors-workers"
        ]

    assert least(MATRIX["several groups of workers"]) == 1 + 3 - 1
    assert least(MATRIX["a fixed size"]) == 5 - 1
    assert least({"worker": {"replicas": 0, "minReplicas": 0}}) == 0


def test_without_the_autoscaler_the_size_is_fixed_and_nobody_may_speak_to_kubernetes():
    manifests = render(MATRIX["a fixed size"])
    (cluster,) = ray_clusters(manifests)
    (workers,) = cluster.groups
    assert [workers[bound] for bound in ("replicas", "minReplicas", "maxReplicas")] == [5, 5, 5]
    assert cluster.spec["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in cluster.spec
    assert configuration(manifests)["pools"]["default"]["actors"] == 8  # where there was a map
    assert "serviceAccountToken" not in json.dumps(manifests)
    assert "NetworkPolicy/agent-actors-kubernetes-api" not in names(manifests)
    assert "NetworkPolicy/agent-actors-kubernetes-api" in names(render())


def test_what_is_added_reaches_the_pods_that_it_is_meant_for():
    values = MATRIX["with all that can be added"]
    manifests = render(values)
    head, worker = ray_pods(manifests)
    for pod in (head, worker):
        assert pod.containers[0]["env"][-2:] == values["extraEnv"]
        assert pod.containers[0]["volumeMounts"][-1:] == values["extraVolumeMounts"]
        assert pod.spec["volumes"][-1:] == values["extraVolumes"]
    for name in ("priorityClassName", "nodeSelector"):
        assert head.spec[name] == values["head"][name]
    assert "tolerations" not in head.spec
    for name in ("tolerations", "nodeSelector", "affinity"):
        assert worker.spec[name] == values["worker"][name]
    (spread,) = worker.spec["topologySpreadConstraints"]
    assert spread.pop("labelSelector")["matchLabels"]["app.kubernetes.io/component"] == "worker"
    assert [spread] == values["worker"]["topologySpread"]
    assert worker.labels["team"] == "agents"
    job = only(manifests, "Job")["spec"]["template"]
    assert job["spec"]["containers"][0]["env"][-1:] == values["provision"]["extraEnv"]
    assert job["metadata"]["annotations"] == {"example.org/role": "provision"}
    assert job["metadata"]["labels"]["team"] == "agents"
    for name in ("tolerations", "nodeSelector"):
        assert job["spec"][name] == values["provision"][name]
    group = ray_clusters(manifests)[0].spec["headGroupSpec"]
    assert group["labels"] == {"market": "on-demand"}
    assert group["template"]["metadata"]["annotations"] == {"example.org/role": "head"}


def test_redis_is_told_who_asks_by_reference_to_a_secret_or_nobody():
    def options(redis: Values) -> Manifest:
        values = {"gcsFaultTolerance": {"backend": "redis", "redis": redis}}
        return ray_clusters(render(values))[0].spec["gcsFaultToleranceOptions"]

    named = options({"username": {"name": "redis"}, "password": {"name": "redis", "key": "pw"}})
    assert named["redisUsername"] == {
        "valueFrom": {"secretKeyRef": {"name": "redis", "key": "username"}}
    }
    assert named["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "pw"}}}
    assert options({"password": {"name": ""}}).keys() == {"backend", "redisAddress"}


def test_every_resource_has_the_labels_and_annotations_that_are_given():
    for manifest in render(MATRIX["with all that can be added"]):
        assert manifest["metadata"]["labels"]["team"] == "agents", name_of(manifest)
        assert manifest["metadata"]["annotations"] == {"example.org/owner": "agents"}


def test_a_label_of_one_resource_wins_over_that_of_all():
    manifests = render({"labels": {"release": "all"}, **MATRIX["with Prometheus"]})
    assert only(manifests, "PodMonitor")["metadata"]["labels"]["release"] == "metrics"
    assert only(manifests, "ConfigMap")["metadata"]["labels"]["release"] == "all"


def test_pods_do_not_change_with_the_version_of_the_chart():
    for pod in pod_templates(render()):
        assert not [label for label in pod.labels if label in HELMS_LABELS]


def test_streams_are_provisioned_anew_when_the_configuration_or_the_image_changes():
    def job(values: Values | None = None) -> str:
        return only(render(values), "Job")["metadata"]["name"]

    assert re.fullmatch(r"agent-actors-provision-[0-9a-f]{8}", job())
    assert job() == job({"head": {"nodeSelector": {"pool": "steady"}}, "labels": {"a": "b"}})
    others = ({"config": {"streams": {"replicas": 1}}}, {"image": {"tag": "2"}})
    assert len({job(), *map(job, others)}) == 3
    assert not of_kind(render(MATRIX["without provisioning"]), "Job")


def test_a_release_touches_nothing_of_another_in_its_namespace():
    values = MATRIX["with Prometheus"]
    one, two = render(values, name="one"), render(values, name="two")
    assert set(names(one)).isdisjoint(names(two))
    selecting = ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor")
    for manifest in of_kind(one, *selecting):
        spec = manifest["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert [pod.where for pod in pod_templates(two) if matches(selector, pod.labels)] == []


def test_nothing_passes_in_a_whole_namespace_only_when_it_is_the_services_own():
    def denied(values: Values) -> Manifest:
        policies = {each["metadata"]["name"]: each for each in of_kind(render(values), POLICY)}
        return policies["agent-actors-default-deny"]["spec"]["podSelector"]

    assert denied({"networkPolicies": {"wholeNamespace": True}}) == {}
    assert denied({})["matchLabels"]["app.kubernetes.io/instance"] == "agent-actors"


def test_the_release_gives_the_name_unless_a_name_is_given():
    assert "RayService/agent-actors" in names(render())
    assert "RayService/ai-agent-actors" in names(render(name="ai"))
    assert "RayService/agents" in names(render(MATRIX["another name"]))


def test_values_of_the_tests_are_no_part_of_the_chart():
    with helm.Chart.load(CHART) as chart:
        assert {file["name"] for file in chart.files} == {".helmignore"}


def test_the_versions_are_the_packages():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_notes_name_the_next_commands_and_each_secret_that_pods_wait_for(values: Values):
    text = notes(values)
    volumes = [volume for pod in pod_templates(render(values)) for volume in pod.volumes.values()]
    for secret in {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}:
        assert f"create secret generic {secret} --from-file=" in text
    ready = "raycluster" if values.get("kind") == "RayCluster" else "rayservice"
    assert f"wait {ready}/" in text
    assert "agent-actors --config client.yaml submit" in text
    assert "<no value>" not in text
    assert max(len(line) for line in text.splitlines()) < 200


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (manifest,) = of_kind(manifests, kind)
    return manifest


def names(manifests: list[Manifest]) -> list[str]:
    return [name_of(manifest) for manifest in manifests]


def configuration(manifests: list[Manifest]) -> Manifest:
    return yaml.safe_load(only(manifests, "ConfigMap")["data"]["agent-actors.yaml"])
