"""`drain --node` where there is no Ray to leave: it says so, and soon."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, STDOUT

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


@pytest.mark.nightly
async def test_a_node_whose_ray_says_nothing_is_told_of_in_seconds():
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with silent, asyncio.timeout(CONNECT_WITHIN_S + 15):
        host, port = silent.sockets[0].getsockname()
        code, said = await drain_node(RAY_ADDRESS=f"{host}:{port}")
    assert code == 3, said
    assert "nothing is drained; JetStream hands out again what ran here" in said


async def test_it_concerns_no_other_cluster():
    code, said = await drain_node("--cluster", "other")
    assert code == 2
    assert "--cluster: --node concerns the node that this runs on" in said
