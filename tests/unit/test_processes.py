"""Processes of this machine: who they are, when they end."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import pytest

from agent_actors.processes import WatchedProcess, this_process

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="the system has no pidfd_open"
)

# Says who it is, and stays.
SUBJECT = """
import time
from agent_actors.processes import this_process
print(this_process(), flush=True)
time.sleep(60)
"""


@pytest.fixture
async def subject() -> AsyncIterator[tuple[Process, str]]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SUBJECT, stdout=PIPE)
    assert process.stdout is not None
    yield process, (await process.stdout.readline()).decode().strip()
    if process.returncode is None:
        process.kill()
    await process.wait()


async def test_the_end_of_a_process_is_seen_at_once(subject: tuple[Process, str]):
    process, said = subject
    watched = WatchedProcess.find(said)
    assert watched is not None
    assert not watched.ended.done()
    process.send_signal(signal.SIGKILL)
    await asyncio.wait_for(watched.ended, 1)
    watched.close()


async def test_a_frozen_process_can_be_killed(subject: tuple[Process, str]):
    process, said = subject
    watched = WatchedProcess.find(said)
    assert watched is not None
    process.send_signal(signal.SIGSTOP)
    watched.kill()
    await asyncio.wait_for(watched.ended, 5)
    watched.kill()  # once more changes nothing
    watched.close()
    assert await process.wait() == -signal.SIGKILL


async def test_a_process_that_has_ended_is_not_found(subject: tuple[Process, str]):
    process, said = subject
    process.kill()
    await process.wait()
    assert WatchedProcess.find(said) is None


@pytest.mark.parametrize("field", [0, 1, 3])
async def test_a_process_elsewhere_or_another_of_the_same_id_is_not_found(field: int):
    said = this_process().split()
    said[field] += "1"
    assert WatchedProcess.find(" ".join(said)) is None


async def test_who_has_said_nothing_of_itself_is_not_found():
    assert WatchedProcess.find("") is None
