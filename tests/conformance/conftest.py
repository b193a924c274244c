"""The servers that the suite holds against each other."""

import os
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import ClientSession
from vllm_server import API_KEY, MODEL, MODEL_LENGTH_TOKENS, running_vllm

from agent_actors.config_types import Secret
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import ModelServerSettings


@pytest.fixture(scope="session")
def real_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real vLLM, started once for the whole run."""
    python = os.environ.get("AGENT_ACTORS_VLLM_PYTHON")
    if not python:
        pytest.fail("AGENT_ACTORS_VLLM_PYTHON is not set: run scripts/conformance, which sets it")
    with running_vllm(python, tmp_path_factory.mktemp("vllm")) as url:
        yield url


@pytest.fixture
async def simulated_url() -> AsyncIterator[str]:
    """Our model server, told the same name, length and key."""
    settings = ModelServerSettings(
        aliases=(MODEL,), max_model_len=MODEL_LENGTH_TOKENS, api_key=Secret(API_KEY)
    )
    async with running_model_server(settings) as server:
        yield server.url


@pytest.fixture(params=["real", "simulated"])
def server_url(request: pytest.FixtureRequest) -> str:
    """The one and the other."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
async def http() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session
