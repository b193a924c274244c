"""`drain --node` where there is no Ray to leave: it says so, and soon."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.ready import free_port

from agent_actors.cli.node import CONNECT_WITHIN_S


async def drain_node(*options: str, **variables: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent_actors", "drain", "--node", *options),
        env={**os.environ, **variables},
        stdout=PIPE,
        stderr=STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_a_node_whose_ray_is_away_is_told_at_once():
    address = f"127.0.0.1:{free_port()}"
    code, said = await drain_node(RAY_ADDRESS=address)
    assert code == 3
    assert said == (
        f"Error: cannot connect to Ray at {address}: Connection refused; see ray.address\n"
    )


@pytest.fixture
async def silent_ray() -> AsyncIterator[str]:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


async def test_a_missing_token_is_told(silent_ray: str, tmp_path: Path):
    code, said = await drain_node(RAY_ADDRESS=silent_ray, HOME=str(tmp_path))
    assert code == 3, said
    assert said.splitlines()[-1] == (
        f"Error: cannot connect to Ray at {silent_ray}: Token authentication is enabled but no "
        "authentication token was found; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token "
        "of the cluster"
    )


@pytest.mark.nightly
async def test_a_node_whose_ray_says_nothing_is_told_of_in_seconds(silent_ray: str):
    async with asyncio.timeout(CONNECT_WITHIN_S + 15):
        code, said = await drain_node(RAY_ADDRESS=silent_ray, RAY_AUTH_TOKEN="0" * 64)
    assert code == 3, said
    assert "nothing is drained; JetStream hands out again what ran here" in said


async def test_it_concerns_no_other_cluster():
    code, said = await drain_node("--cluster", "other")
    assert code == 2
    assert "--cluster: --node concerns the node that this runs on" in said
