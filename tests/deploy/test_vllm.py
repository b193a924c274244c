"""The values for vLLM go with the configuration of the service."""

import re
from typing import Any
from urllib.parse import urlsplit

import yaml
from support.manifests.reading import ROOT

DEPLOY = ROOT / "deploy"
TEXT = (DEPLOY / "vllm" / "values.yaml").read_text()
VALUES: dict[str, Any] = yaml.safe_load(TEXT)
CONFIG = yaml.safe_load((DEPLOY / "base" / "agent-actors.yaml").read_text())

MODELS = VALUES["servingEngineSpec"]["modelSpec"]


def hosts(urls: list[str]) -> set[str | None]:
    return {urlsplit(url).hostname for url in urls}


def test_the_configuration_names_the_router_and_the_comment_each_model_server():
    release, namespace = re.findall(r"--install (\w+) .*? --namespace (\w+)", TEXT)[0]
    assert hosts(CONFIG["vllm"]["urls"]) == {f"{release}-router-service.{namespace}.svc"}
    (said,) = re.findall(r"^#   urls: \[(.*?)\]$", TEXT, re.MULTILINE)
    assert hosts(said.split(", ")) == {
        f"{release}-{model['name']}-engine-service.{namespace}.svc" for model in MODELS
    }


def test_every_model_server_calls_tools_and_has_its_own_gpus_and_volume():
    assert len({model["name"] for model in MODELS}) == len(MODELS) > 1
    for model in MODELS:
        assert model["enableTool"]
        assert model["toolCallParser"]
        assert model["requestGPU"] == model["vllmConfig"]["tensorParallelSize"]
        assert model["replicaCount"] == 1 or model["pvcAccessMode"] == ["ReadWriteMany"]


def test_all_model_servers_go_by_one_name():
    names = {
        dict(zip(args[::2], args[1::2], strict=True))["--served-model-name"]
        for args in (model["vllmConfig"]["extraArgs"] for model in MODELS)
    }
    assert len(names) == 1


def test_the_api_key_comes_from_a_secret():
    assert set(VALUES["servingEngineSpec"]["vllmApiKey"]) == {"secretName", "secretKey"}
    assert CONFIG["vllm"]["api_key_file"]


def test_nothing_but_vllm_asks_for_gpus():
    asking = {
        path.relative_to(DEPLOY).parts[0]
        for path in DEPLOY.rglob("*.yaml")
        if re.search(r"nvidia\.com/gpu|num[-_]gpus: *[\"']?[1-9]", path.read_text())
    }
    assert asking == {"vllm"}
