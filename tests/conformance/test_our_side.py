"""Our client and strategies, against a real vLLM and against our simulation of one."""

import asyncio
import json
from typing import Any

import jsonschema
import pytest
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families
from request_table import TOO_LONG, VERDICT, schema_format
from vllm_server import API_KEY, MODEL, MODEL_LENGTH_TOKENS

from agent_actors.adapters.vllm import VLLMHTTPClient
from agent_actors.adapters.vllm.load import parse_load
from agent_actors.contract import AgentTask, constraints_of, utc_now
from agent_actors.execution import PROPOSAL, ExecuteAgentTask, Outcome
from agent_actors.ports import AgentConfig, ExecutionRequest
from agent_actors.strategies.proposal import GenerateProposal

ENDLESS = {
    "type": "object",
    "properties": {"story": {"type": "string", "minLength": 20_000}},
    "required": ["story"],
}


async def attempt(
    url: str,
    *,
    api_key: str = API_KEY,
    model: str = MODEL,
    max_tokens: int = MODEL_LENGTH_TOKENS // 4,
    description: str = "Implement a binary search tree in Python",
    **constraints: Any,
) -> Outcome:
    """Attempt one task as the service would, by asking the server at `url`."""
    task = AgentTask(task_id="t-1", task_description=description, constraints=constraints)
    agent = AgentConfig(agent_id="dev-1", role="DEV", model=model, max_tokens=max_tokens)
    request = ExecutionRequest(
        task=task, constraints=constraints_of(task), agent=agent, timeout_s=60.0
    )
    async with VLLMHTTPClient(url, api_key=api_key) as client:
        return await ExecuteAgentTask({PROPOSAL: GenerateProposal(client)}, utc_now).run(request)


async def test_task_completes_with_a_proposal_and_its_usage(server_url: str):
    result = (await attempt(server_url, rubric="It is short", requirements=["Python 3"])).result

    assert (result.status, result.error) == ("completed", None)
    assert result.proposal is not None
    assert result.proposal.content
    assert result.proposal.tokens == result.usage.completion_tokens > 0
    assert result.usage.total_tokens == result.usage.prompt_tokens + result.proposal.tokens
    assert result.usage.prompt_tokens > 0


async def test_answer_fits_the_json_schema_of_the_task(server_url: str):
    result = (await attempt(server_url, response_format=schema_format(VERDICT))).result

    assert (result.status, result.error) == ("completed", None)
    assert result.proposal is not None
    jsonschema.validate(json.loads(result.proposal.content), VERDICT)


async def test_server_chooses_the_model_when_the_task_names_none(server_url: str):
    result = (await attempt(server_url, model="")).result

    assert result.status == "completed"
    assert result.model


async def test_answer_cut_by_max_tokens_fails_with_what_there_is(server_url: str):
    result = (await attempt(server_url, max_tokens=2)).result

    assert result.error_type == "AnswerTruncated"
    assert result.proposal is not None
    assert result.usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("wrong", "error_type", "vllm_says"),
    [
        ({"model": "nope"}, "ModelRefused", "The model `nope` does not exist"),
        (
            {"description": TOO_LONG},
            "ContextExceeded",
            f"maximum context length is {MODEL_LENGTH_TOKENS} tokens",
        ),
        (
            {"max_tokens": 10 * MODEL_LENGTH_TOKENS},
            "ModelRefused",
            f"max_model_len={MODEL_LENGTH_TOKENS}",
        ),
        ({"api_key": "wrong"}, "ModelRefused", "Unauthorized"),
        ({"api_key": ""}, "ModelRefused", "Unauthorized"),
    ],
    ids=["wrong model", "prompt too long", "max_tokens too big", "wrong key", "no key"],
)
async def test_refused_task_fails_with_the_words_of_the_server(
    server_url: str, wrong: dict[str, Any], error_type: str, vllm_says: str
):
    result = (await attempt(server_url, **wrong)).result

    assert (result.status, result.error_type) == ("failed", error_type)
    assert result.error is not None
    assert vllm_says in result.error


async def test_cancelled_task_makes_the_server_stop(http: ClientSession, real_url: str):
    tokens = MODEL_LENGTH_TOKENS * 3 // 4
    before = await metric(http, real_url, "vllm:generation_tokens_total")
    task = asyncio.create_task(
        attempt(real_url, response_format=schema_format(ENDLESS), max_tokens=tokens)
    )
    async with asyncio.timeout(30):
        await until_running(http, real_url, 1)

        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_running(http, real_url, 0)

    generated = await metric(http, real_url, "vllm:generation_tokens_total") - before
    assert generated < tokens


async def test_the_load_is_read_from_the_metrics(http: ClientSession, server_url: str):
    async with http.get(f"{server_url}/metrics") as reply:
        load = parse_load(await reply.read())
    assert load is not None
    assert (load.running, load.waiting) == (0, 0)


async def until_running(http: ClientSession, url: str, count: int) -> None:
    while await metric(http, url, "vllm:num_requests_running") != count:
        pass  # asking is the wait


async def metric(http: ClientSession, url: str, name: str) -> float:
    async with http.get(f"{url}/metrics") as reply:
        families = text_string_to_metric_families(await reply.text())
    return sum(s.value for family in families for s in family.samples if s.name == name)
