"""NATS in a container, where a container engine answers (see scripts/container-engine)."""

import asyncio
import os
from dataclasses import dataclass
from functools import cache

import docker
from docker.errors import DockerException
from support.ready import free_port, until_healthy
from testcontainers.core.container import DockerContainer

IMAGE = os.environ.get("AGENT_ACTORS_NATS_IMAGE", "nats:2.15")
PING_TIMEOUT_S = 3
CLIENT_PORT = 4222
MONITORING_PORT = 8222

CONFIG = f"""
listen: "0.0.0.0:{CLIENT_PORT}"
http: "0.0.0.0:{MONITORING_PORT}"
jetstream {{ store_dir: "/data" }}
"""


@dataclass(frozen=True)
class Engine:
    """The engine that answered; or none, and why."""

    name: str = ""
    reason: str = ""


@cache
def find_engine() -> Engine:
    """Ask the engine at DOCKER_HOST, or at the usual socket, who it is."""
    try:
        client = docker.from_env(timeout=PING_TIMEOUT_S)
        try:
            parts = client.version()["Components"]
        finally:
            client.close()
    except DockerException as error:
        return Engine(reason=str(error))
    return Engine(name=f"{parts[0]['Name']} {parts[0]['Version']}")


class ContainerNats:
    """One nats-server in a container; its streams live as long as the container.

    It is reached at fixed ports of 127.0.0.1: an engine's own choice would be all interfaces,
    and another port after a restart.
    """

    replicas = 1

    def __init__(self, settings: str = "") -> None:
        self._ports = {CLIENT_PORT: free_port(), MONITORING_PORT: free_port()}
        self._settings = settings
        self._container: DockerContainer | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._ports[CLIENT_PORT]}"

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.url,)

    async def start(self) -> None:
        if self._container is None:
            self._container = self._describe()
            await asyncio.to_thread(self._container.start)
        else:
            await asyncio.to_thread(self._wrapped.start)
        await until_healthy(f"http://127.0.0.1:{self._ports[MONITORING_PORT]}")

    async def stop(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            await asyncio.to_thread(container.stop)

    async def kill(self) -> None:
        await asyncio.to_thread(self._wrapped.kill)

    async def restart(self) -> None:
        await asyncio.to_thread(self._wrapped.stop)
        await self.start()

    async def pause(self) -> None:
        await asyncio.to_thread(self._wrapped.pause)

    async def resume(self) -> None:
        await asyncio.to_thread(self._wrapped.unpause)

    def _describe(self) -> DockerContainer:
        # Not testcontainers' NatsContainer: that adds only a look at the log, once a second.
        container = DockerContainer(IMAGE)
        container.with_command(["-c", "/nats.conf"])
        container.with_copy_into_container((CONFIG + self._settings).encode(), "/nats.conf")
        for inside, outside in self._ports.items():
            container.ports[str(inside)] = ("127.0.0.1", outside)
        return container

    @property
    def _wrapped(self):
        return self._container.get_wrapped_container()
