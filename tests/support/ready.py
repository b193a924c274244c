"""Waiting for a NATS server to be of use: listening is not enough in a cluster."""

import asyncio
import random
import socket
import urllib.error
import urllib.request

TIMEOUT_S = 30.0
POLL_S = 0.02
OWN_PORTS = 20_000, 32_000

_given: set[int] = set()


async def until_healthy(monitoring_url: str) -> None:
    """Return once JetStream works there, which in a cluster means that it has a leader.

    Raises TimeoutError, with what the server said last, after 30 seconds.
    """
    said = "nothing"
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                said = await asyncio.to_thread(_health, monitoring_url)
                if said == "ok":
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise TimeoutError(f"{monitoring_url} is not healthy: {said}") from error


def _health(monitoring_url: str) -> str:
    try:
        with urllib.request.urlopen(f"{monitoring_url}/healthz", timeout=1.0):
            return "ok"
    except urllib.error.HTTPError as error:
        return error.read().decode(errors="replace")
    except OSError as error:
        return str(error)


def free_port() -> int:
    """Return a free port for what must be told its port beforehand, each a single time.

    It lies below the range that the system takes ports from by itself (32768 and above, by
    Linux's default), so that nobody's connection gets it in the meantime.
    """
    while True:
        port = random.SystemRandom().randrange(*OWN_PORTS)  # not seeded by pytest-randomly
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
