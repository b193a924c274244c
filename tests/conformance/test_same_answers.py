"""The simulated model server answers as a real vLLM does."""

import json
from collections.abc import Mapping

import pytest
from aiohttp import ClientSession
from observation import Observation, differences, observe
from prometheus_client.parser import text_string_to_metric_families
from request_table import ROWS, Row


@pytest.mark.parametrize("row", [pytest.param(row, id=row.sentence) for row in ROWS])
async def test_both_servers_answer_alike(
    row: Row, http: ClientSession, real_url: str, simulated_url: str
):
    real = await observe(http, real_url, row)
    assert real["status"] == str(row.status)
    assert finish_reasons(real) == ({json.dumps(row.finish)} if row.finish else set())

    found = differences(real, await observe(http, simulated_url, row))

    unexpected = [f"{path}: {both}" for path, both in found.items() if path not in row.tolerated]
    assert not unexpected, "\n".join(unexpected)
    assert row.tolerated.keys() <= found.keys(), "a tolerance is no longer needed"


async def test_simulated_metrics_are_some_of_the_real_ones(
    http: ClientSession, real_url: str, simulated_url: str
):
    real, simulated = await series(http, real_url), await series(http, simulated_url)

    assert {name for name, _ in simulated} >= {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:request_success",
    }
    assert simulated.keys() <= real.keys()
    unlike = [one for family, found in simulated.items() for one in found - real[family]]
    assert not unlike, "\n".join(sorted(unlike))


def finish_reasons(answer: Observation) -> set[str]:
    found = {kind for path, kind in answer.items() if path.endswith(".finish_reason")}
    return found - {"null"}


async def series(http: ClientSession, url: str) -> Mapping[tuple[str, str], set[str]]:
    """Return each metric's name and type, with the labels of its samples but for the model's."""
    async with http.get(f"{url}/metrics") as reply:
        families = list(text_string_to_metric_families(await reply.text()))
    return {
        (family.name, family.type): {
            f"{sample.name}{json.dumps(sample.labels | {'model_name': ''}, sort_keys=True)}"
            for sample in family.samples
        }
        for family in families
        if family.name.startswith("vllm:")
    }
