"""The service that somebody stays with: the one they started, or what replaced it since.

A configuration that was edited gets a supervisor of its own, which takes over from the one
before; the actors go on with what they do, and are replaced one after the other where the edit
asks for that. Importing this imports Ray.
"""

import asyncio
import threading
from collections.abc import Callable

import structlog
from msgspec.structs import replace

from agent_actors.adapters.ray_runtime import Service
from agent_actors.config import Config
from agent_actors.config_diff import ConfigChange, Effect, changes, paths_that_need
from agent_actors.errors import ConfigError, ServiceUnreachable
from agent_actors.following import FollowedConfig
from agent_actors.supervisor import Ending

ASK_EVERY_S = 1.0
# A supervisor for which there is no room beside the one before gets that one's.
ROOM_WITHIN_S = 20.0

log = structlog.get_logger()


class KeptService:
    """One service; `start` starts or finds that of a configuration."""

    def __init__(self, start: Callable[[Config], Service], config: Config) -> None:
        self._start = start
        self._starting = threading.Lock()
        self._successor: Service | None = None
        self.service = start(config)

    async def follow(self, followed: FollowedConfig) -> None:
        """Take over each edit, or have the service tell why not; for ever."""
        while True:
            try:
                wanted = await followed.edited()
            except ConfigError as error:
                log.warning("config.refused", reason=str(error))
                await self._tell(f"the edited configuration is wrong: {error}")
            else:
                await self._take_over(wanted)

    async def ended(self) -> Ending:
        """Return once the service was drained by others, or another than ours has taken over."""
        while True:
            asked = self.service
            try:
                ending = await asked.ended()
            except ServiceUnreachable:
                pass  # a supervisor that died is asked again when it is back
            else:
                if ending == "drained" or (asked is self.service and not self._successor):
                    return ending
            await asyncio.sleep(ASK_EVERY_S)

    def stop(self, grace_s: float | None = None) -> None:
        """Drain the service, with whichever supervisor it is. Raises ServiceUnreachable."""
        with self._starting:
            if self._successor and self._successor.give_up():
                self._successor = None
        (self._successor or self.service).stop(grace_s)

    async def _take_over(self, wanted: Config) -> None:
        running = self.service.config
        found = changes(running, wanted)
        for change in found:
            log.info("config.changed", path=change.path, effect=change.effect)
        config = replace(wanted, nats=running.nats, ray=running.ray)
        trouble = await self._replace(config) if config != running else ""
        await self._tell(trouble or _left_to_do(found))

    async def _replace(self, config: Config) -> str:
        """Have the service of this configuration take over; return why it does not, if so."""
        successor = await asyncio.to_thread(self._start_successor, config)
        began = asyncio.get_running_loop().time()
        while True:
            try:
                await asyncio.to_thread(successor.wait_started, ASK_EVERY_S)
            except ServiceUnreachable as error:
                log.info("service.not_replaced_yet", reason=str(error))
                if await asyncio.to_thread(successor.fate):
                    self._successor = None
                    return f"the edited configuration cannot be taken over: {error}"
                if asyncio.get_running_loop().time() - began > ROOM_WITHIN_S:
                    self.service.abandon()
            else:
                self.service, self._successor = successor, None
                return ""

    def _start_successor(self, config: Config) -> Service:
        """Start it, known to `stop` even when nobody waits for it any more."""
        with self._starting:
            self._successor = self._start(config)
            return self._successor

    async def _tell(self, trouble: str) -> None:
        try:
            await asyncio.to_thread(self.service.note_trouble, trouble)
        except ServiceUnreachable as error:
            log.warning("config.trouble_not_told", reason=str(error))


def _left_to_do(found: list[ConfigChange]) -> str:
    """Return what of an edit is not in force, and what brings it in force."""
    remedies: dict[Effect, str] = {
        "restart": "restart the service",
        "provision": "run `agent-actors provision`",
    }
    told = [
        f"{', '.join(paths)}: {remedy}"
        for effect, remedy in remedies.items()
        if (paths := paths_that_need(effect, found))
    ]
    return f"edited, not in force yet: {'; '.join(told)}" if told else ""
