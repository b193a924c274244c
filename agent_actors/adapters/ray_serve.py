"""The service under Ray Serve, as a RayService runs it: an application of one replica.

The replica makes sure that the supervisor of its Ray cluster is there, follows the configuration's
file, and answers for both over HTTP. It does none of the work: when it is lost, tasks go on, and
the next one finds the supervisor as it is.
"""

import asyncio
import os
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import msgspec
import structlog
from ray import serve as typed_serve
from starlette.requests import Request
from starlette.responses import Response

from agent_actors.adapters.ray_runtime import start_service
from agent_actors.config_file import load_complete
from agent_actors.contract import Health, encode
from agent_actors.errors import ConfigError, ServiceUnreachable
from agent_actors.following import FollowedConfig
from agent_actors.kept import KeptService
from agent_actors.observe.logs import configure_logs
from agent_actors.readiness import missing, works
from agent_actors.supervisor import Ending

ASK_EVERY_S = 1.0
ANSWER_WITHIN_S = 10.0
TELL_EVERY_S = 10.0
# A supervisor that was killed is back in a second or two, one whose node was lost in half a minute.
LATE_AFTER_S = 15.0
SILENT_AFTER_S = 45.0
ENDED: dict[Ending, str] = {
    "drained": "the service was drained: it stays so until this replica is started anew",
    "superseded": "another service has taken over the pools of this Ray cluster",
}

serve = cast("Any", typed_serve)  # its decorators have unknown parts in their types

log = structlog.get_logger()


class ControlArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the application is given: the configuration's file, and who makes the consumers."""

    config: str
    provisions: bool = True


def control_app(args: dict[str, Any]) -> Any:  # noqa: ANN401 - Serve's Application is untyped
    """Return the application `agent_actors.adapters.ray_serve:control_app`.

    A wrong configuration is told here, before anything is started. Raises ConfigError.
    """
    try:
        wanted = msgspec.convert(args, ControlArgs)
    except msgspec.ValidationError as error:
        raise ConfigError(f"args of the application: {error}") from error
    load_complete(wanted.config, os.environ)
    return serve.deployment(name="Control", num_replicas=1, ray_actor_options={"num_cpus": 0.1})(
        Control
    ).bind(wanted.config, provisions=wanted.provisions)


class Control:
    """The one replica. It counts as started once its service works."""

    async def __init__(self, config_file: str, *, provisions: bool) -> None:  # pyright: ignore[reportGeneralTypeIssues] - Serve awaits it
        configure_logs("control")
        followed = FollowedConfig(config_file, partial(load_complete, config_file, os.environ))
        start = partial(start_service, provisions=provisions)
        self._kept = await asyncio.to_thread(KeptService, start, followed.load())
        self._heard = self._woken = _now()
        self._ending: Ending | None = None
        self._following = asyncio.create_task(self._kept.follow(followed))
        self._tasks = [
            self._following,
            asyncio.create_task(self._listen()),
            asyncio.create_task(self._note_ending()),
        ]
        await self._until_it_works()

    async def check_health(self) -> None:
        """Have Serve replace this replica when the supervisor stays silent for long.

        Raises ServiceUnreachable, or the bug that has ended something of the replica's own.
        """
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()
        if not self._ending and self._silent_s > SILENT_AFTER_S:
            await self._wake()
            raise ServiceUnreachable(self._silence)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        answers = {"/healthz": self._healthz, "/readyz": self._readyz, "/status": self._status}
        answer = answers.get(request.url.path)
        if answer is None:
            return _told(HTTPStatus.NOT_FOUND, f"there is {', '.join(answers)}")
        if request.method not in {"GET", "HEAD"}:
            return _told(HTTPStatus.METHOD_NOT_ALLOWED, "these are only read")
        return await answer()

    async def _healthz(self) -> Response:
        """Tell whether this replica and the supervisor live, whatever keeps them from work."""
        late = not self._ending and self._silent_s > LATE_AFTER_S
        return _verdict([self._silence] if late else [])

    async def _readyz(self) -> Response:
        """Tell whether tasks are worked on just now."""
        return _verdict(await self._missing())

    async def _status(self) -> Response:
        """Tell what the service does."""
        if self._ending:
            return _told(HTTPStatus.SERVICE_UNAVAILABLE, ENDED[self._ending])
        try:
            return _json(HTTPStatus.OK, await self._kept.service.ask_status(ANSWER_WITHIN_S))
        except ServiceUnreachable as error:
            return _told(HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    async def _missing(self) -> list[str]:
        if self._ending:
            return [ENDED[self._ending]]
        try:
            return missing(await self._kept.service.ask_status(ANSWER_WITHIN_S))
        except ServiceUnreachable as error:
            return [str(error)]

    async def _until_it_works(self) -> None:
        """Wait for as long as it takes: a generation that never works gets no traffic."""
        told = _now()
        while not self._ending:
            try:
                if works(await self._kept.service.ask_status(ANSWER_WITHIN_S)):
                    log.info("service.works")
                    return
            except ServiceUnreachable:
                if self._silent_s > SILENT_AFTER_S:
                    await self._wake()
            if _now() - told > TELL_EVERY_S:
                told = _now()
                log.warning("service.not_ready", reason="; ".join(await self._missing()))
            await asyncio.sleep(ASK_EVERY_S)

    async def _listen(self) -> None:
        """Know when the supervisor has answered last."""
        while True:
            try:
                await self._kept.service.heartbeat(ANSWER_WITHIN_S)
            except ServiceUnreachable as error:
                log.warning("service.silent", reason=str(error))
            else:
                self._heard = _now()
            await asyncio.sleep(ASK_EVERY_S)

    async def _note_ending(self) -> None:
        """Stay as it is once somebody has ended the service: it was meant."""
        self._ending = await self._kept.ended()
        self._following.cancel()
        log.warning("service.ended", reason=ENDED[self._ending])

    async def _wake(self) -> None:
        """Have a supervisor that hangs started anew; one that waits for room goes on waiting.

        Ray reaches one whose code hangs; one that the kernel has frozen on another node it may not.
        """
        if _now() - self._woken > SILENT_AFTER_S:
            self._woken = _now()
            log.warning("supervisor.restarted", reason=self._silence)
            await asyncio.to_thread(self._kept.service.restart)

    @property
    def _silent_s(self) -> float:
        return _now() - self._heard

    @property
    def _silence(self) -> str:
        return f"the supervisor has not answered for {self._silent_s:.0f} s"


def _verdict(reasons: list[str]) -> Response:
    status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
    return _json(status, Health(ok=not reasons, reasons=reasons))


def _told(status: HTTPStatus, reason: str) -> Response:
    return _json(status, Health(ok=False, reasons=[reason]))


def _json(status: HTTPStatus, value: msgspec.Struct) -> Response:
    return Response(encode(value), status, media_type="application/json")


def _now() -> float:
    return asyncio.get_running_loop().time()
