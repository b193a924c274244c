"""Which values the Helm chart knows, and how it refuses others."""

import json
import re
from collections.abc import Iterator
from typing import Any

import helm_python as helm
import pytest
import yaml
from support.chart import CHART, Refused, Values, default_values, render
from support.manifests.reading import ROOT
from support.values_schema import VALUES_SCHEMA, config_schema

README = ROOT / "README.md"

# Where a value is refused, and the words by which its user finds it.
WRONG: dict[str, tuple[Values, str]] = {
    "a value that there is not": ({"replicas": 3}, "'replicas' not allowed"),
    "a slip of the pen": ({"networkPolicy": {}}, "'networkPolicy' not allowed"),
    "a slip further down": ({"head": {"toleration": []}}, "at '/head': .*'toleration' not allowed"),
    "a slip in a group": (
        {"workerGroups": {"big": {"maxReplica": 3}}},
        "at '/workerGroups/big': .*'maxReplica' not allowed",
    ),
    "another kind": ({"kind": "RayJob"}, "at '/kind': value must be one of"),
    "a number as text": ({"worker": {"replicas": "3"}}, "at '/worker/replicas': got string"),
    "a text for a switch": ({"autoscaling": {"enabled": "no"}}, "at '/autoscaling/enabled'"),
    "no digest": ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match"),
    "an old Ray": ({"rayVersion": 2.6}, "at '/rayVersion': got number, want string"),
    "an amount": (
        {"head": {"resources": {"limits": {"memory": "4 GB"}}}},
        "at '/head/resources/limits/memory': '4 GB' does not match",
    ),
    "a port": ({"networkPolicies": {"nats": {"port": 0}}}, "at '/networkPolicies/nats/port'"),
    "no group of workers": ({"workerGroups": {"workers": None}}, "at '/workerGroups': minProp"),
    "a backend": ({"gcsFaultTolerance": {"backend": "etcd"}}, "at '/gcsFaultTolerance/backend'"),
    "a password in an address": (
        {"gcsFaultTolerance": {"redis": {"address": "redis://:secret@redis:6379"}}},
        "at '/gcsFaultTolerance/redis/address'",
    ),
    "root": ({"podSecurityContext": {"runAsUser": 0}}, "at '/podSecurityContext/runAsUser'"),
    "root after all": (
        {"podSecurityContext": {"runAsNonRoot": False}},
        "at '/podSecurityContext/runAsNonRoot'",
    ),
    "a mount that does not change": (
        {"extraVolumeMounts": [{"name": "a", "mountPath": "/a", "subPath": "b"}]},
        "at '/extraVolumeMounts/0/subPath'",
    ),
    "a variable of the chart's": ({"extraEnv": [{"name": "HOME"}]}, "at '/extraEnv/0/name'"),
    "a label that selects": (
        {"worker": {"podLabels": {"app.kubernetes.io/name": "x"}}},
        "invalid propertyName 'app.kubernetes.io/name'",
    ),
    "CPUs on the head": (
        {"head": {"rayStartParams": {"num-cpus": "4"}}},
        "invalid propertyName 'num-cpus'",
    ),
    "a key that the service does not know": (
        {"config": {"pools": {"default": {"slot": 3}}}},
        "at '/config/pools/default': .*'slot' not allowed",
    ),
    "a number that the service refuses": (
        {"config": {"pools": {"default": {"slots": 0}}}},
        "at '/config/pools/default/slots': minimum: got 0, want 1",
    ),
    "a choice that the service does not have": (
        {"config": {"pools": {"default": {"placement": "everywhere"}}}},
        "at '/config/pools/default/placement'",
    ),
    "an address": ({"config": {"vllm": {"urls": ["vllm:8000"]}}}, "at '/config/vllm/urls/0'"),
    "a secret in the ConfigMap": (
        {"config": {"vllm": {"api_key": "s3cret"}}},
        "at '/config/vllm': .*'api_key' not allowed",
    ),
    "a file of no Secret": ({"secrets": {"natsCa": ""}}, "secrets.natsCa names no Secret"),
    "two pools for all": (
        {"config": {"pools": {"other": {"subjects": ["agent.tasks.dev"]}}}},
        "config.pools.default serves all tasks",
    ),
    "an autoscaler under Kueue": ({"kueue": {"queueName": "q"}}, "kueue.queueName needs"),
    "replicas out of bounds": (
        {"workerGroups": {"workers": {"minReplicas": 5}}},
        "workerGroups.workers: replicas must be between",
    ),
}


@pytest.mark.parametrize(("values", "words"), WRONG.values(), ids=WRONG)
def test_values_that_cannot_be_meant_are_refused_by_name(values, words):
    with pytest.raises(Refused, match=words):
        render(values)


def test_a_release_whose_name_makes_no_name_of_a_cluster_is_refused():
    with pytest.raises(Refused, match=r"1agents-agent-actors.*fullnameOverride"):
        render(name="1agents")


def test_the_schema_knows_just_the_keys_of_the_configuration():
    schema = json.loads(VALUES_SCHEMA.read_text())
    assert schema["properties"]["config"] == config_schema(), "run scripts/values-schema"


def test_every_example_of_the_readme_is_a_value_of_the_chart():
    examples = re.findall(r"```yaml\n((?:nats|pools):.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) >= 4
    with helm.Chart.load(CHART) as chart:
        for example in examples:
            chart.validate_schema({"config": yaml.safe_load(example)})


def test_every_value_that_the_schema_knows_stands_in_the_values_with_its_default():
    schema = json.loads(VALUES_SCHEMA.read_text())
    schema["properties"].pop("config")
    schema["properties"].pop("global")
    assert [*_missing(schema, default_values(), schema["$defs"])] == []


def _missing(schema: dict[str, Any], values: Values, definitions: dict[str, Any]) -> Iterator[str]:
    """Yield the keys that the schema names and a map of values, unless it is empty, has not."""
    if reference := schema.get("$ref"):
        schema = definitions[reference.removeprefix("#/$defs/")]
    if schema.get("additionalProperties") is False and values:
        for name, inner in schema["properties"].items():
            if name in values:
                yield from (f"{name}.{key}" for key in _missing(inner, values[name], definitions))
            else:
                yield name
