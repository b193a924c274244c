"""The stream of dead letters: finding, reading and removing what was given up on.

Reading needs the right to publish `$JS.API.STREAM.MSG.GET.AGENT_DEADLETTER`, and the same of
`OBJ_agent_artifacts` for a payload that was too big for a message; removing needs
`$JS.API.STREAM.MSG.DELETE.AGENT_DEADLETTER`, and `$JS.API.STREAM.MSG.GET.KV_agent_ledger` to see
that no replay is half done. Removing the object too takes `$JS.API.STREAM.PURGE` and `.MSG.GET`
of `OBJ_agent_artifacts`; without them the object expires in its time.
"""

import base64
import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from agent_actors.adapters.jetstream.artifacts import JetStreamArtifacts
from agent_actors.adapters.jetstream.connection import ApiError, Connection
from agent_actors.adapters.jetstream.tasks import NO_MESSAGE
from agent_actors.contract import (
    ATTEMPTS_HEADER,
    DEADLETTER_FOLDER,
    DEADLETTER_PREFIX,
    DEADLETTER_STREAM,
    ERROR_HEADER,
    GENERATION_HEADER,
    OBJECT_HEADER,
    OBJECT_SHA256_HEADER,
    OBJECT_SIZE_HEADER,
    ORIGINAL_HEADER_PREFIX,
    REASON_HEADER,
    SOURCE_HEADER,
    SUBJECT_HEADER,
    TASK_ID_HEADER,
    TRACE_HEADER,
    ArtifactRef,
    DeadLetter,
)
from agent_actors.errors import DeadLetterMissing, PermissionDenied
from agent_actors.patience import until_answered

ALL_LETTERS = f"{DEADLETTER_PREFIX}>"

# nats-server's errors.json: no such sequence in the stream, and none yet or any more.
NO_SEQUENCE = frozenset({10043, 10057})


class Choice(Struct, frozen=True, kw_only=True):
    """Which letters are meant; what is not said does not matter. Ages are in seconds."""

    role: str = ""
    reason: str = ""
    task_id: str = ""
    older_than_s: float | None = None
    newer_than_s: float | None = None

    def takes(self, letter: DeadLetter, now: datetime) -> bool:
        """Tell whether this letter is meant."""
        age_s = (now - letter.time).total_seconds()
        return (
            (not self.role or self.role.casefold() == letter.role.casefold())
            and (not self.reason or self.reason.casefold() == letter.reason.casefold())
            and (not self.task_id or self.task_id == letter.task_id)
            and (self.older_than_s is None or age_s > self.older_than_s)
            and (self.newer_than_s is None or age_s < self.newer_than_s)
        )


class DeadLetters:
    """The dead letters, read one by one from the leader of their stream."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._artifacts = JetStreamArtifacts(connection)

    async def choose(self, choice: Choice, now: datetime) -> AsyncGenerator[DeadLetter]:
        """Give the letters that are meant, oldest first, as far as they are there by now.

        Raises StreamMissing, PermissionDenied, PublishFailed without an answer.
        """
        newest = await self._message({"last_by_subj": ALL_LETTERS})
        where: dict[str, Any] = {"seq": 1}
        if choice.newer_than_s is not None:
            where = {"start_time": (now - timedelta(seconds=choice.newer_than_s)).isoformat()}
        while newest is not None:
            letter = await self._message(where | {"next_by_subj": ALL_LETTERS})
            if letter is None or letter.stream_seq > newest.stream_seq:
                return
            if choice.takes(letter, now):
                yield letter
            where = {"seq": letter.stream_seq + 1}

    async def get(self, stream_seq: int) -> DeadLetter:
        """Return one letter. Raises DeadLetterMissing, StreamMissing, PublishFailed."""
        letter = await self._message({"seq": stream_seq}) if stream_seq > 0 else None
        if letter is None:
            raise DeadLetterMissing(f"there is no dead letter {stream_seq}, or not any more")
        return letter

    async def payload(self, letter: DeadLetter) -> bytes:
        """Return the message as it came, wherever it lies. Raises ArtifactLost, PublishFailed."""
        return await self._artifacts.get(letter.object) if letter.object else letter.payload

    async def remove(self, letter: DeadLetter) -> None:
        """Delete the letter, if it is there, and then what it keeps in the object store.

        Raises PermissionDenied, PublishFailed.
        """
        await until_answered(partial(self._delete, letter.stream_seq))
        if letter.object and letter.object.object.startswith(DEADLETTER_FOLDER):
            with contextlib.suppress(PermissionDenied):
                await self._artifacts.delete(letter.object)

    async def _delete(self, stream_seq: int) -> None:
        request = msgspec.json.encode({"seq": stream_seq})
        try:
            await self._connection.api(f"STREAM.MSG.DELETE.{DEADLETTER_STREAM}", request)
        except ApiError as error:
            if error.err_code not in NO_SEQUENCE:
                raise

    async def _message(self, request: dict[str, Any]) -> DeadLetter | None:
        payload = msgspec.json.encode(request)
        try:
            answer = await self._connection.api(f"STREAM.MSG.GET.{DEADLETTER_STREAM}", payload)
        except ApiError as error:
            if error.err_code != NO_MESSAGE:
                raise
            return None
        return _letter(answer["message"])


def _letter(message: dict[str, Any]) -> DeadLetter:
    headers = _headers(base64.b64decode(message.get("hdrs", "")))
    payload = base64.b64decode(message.get("data", ""))
    moved = _reference(headers)
    return DeadLetter(
        stream_seq=message["seq"],
        time=datetime.fromisoformat(message["time"]),
        role=message["subject"].removeprefix(DEADLETTER_PREFIX).upper(),
        reason=headers.get(REASON_HEADER, ""),
        error=headers.get(ERROR_HEADER, ""),
        attempts=_number(headers.get(ATTEMPTS_HEADER, "")),
        generation=_number(headers.get(GENERATION_HEADER, "")),
        task_id=headers.get(TASK_ID_HEADER, ""),
        subject=headers.get(SUBJECT_HEADER, ""),
        source=headers.get(SOURCE_HEADER, ""),
        headers=_original(headers),
        size=moved.size if moved else len(payload),
        payload=payload,
        object=moved,
    )


def _headers(block: bytes) -> dict[str, str]:
    """Return the headers of a stored message, below the line that names their version."""
    lines = block.decode(errors="replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name: value.strip() for name, _, value in pairs}


def _original(headers: dict[str, str]) -> dict[str, str]:
    """Return the publisher's headers under the names that they had."""
    prefix = ORIGINAL_HEADER_PREFIX
    kept = {
        name.removeprefix(prefix): value
        for name, value in headers.items()
        if name.startswith(prefix)
    }
    trace = headers.get(TRACE_HEADER)
    return kept | ({TRACE_HEADER: trace} if trace else {})


def _reference(headers: dict[str, str]) -> ArtifactRef | None:
    if OBJECT_HEADER not in headers:
        return None
    return ArtifactRef(
        object=headers[OBJECT_HEADER],
        size=_number(headers.get(OBJECT_SIZE_HEADER, "")),
        sha256=headers.get(OBJECT_SHA256_HEADER, ""),
    )


def _number(text: str) -> int:
    """Return the number, 0 for what is none: somebody else may publish here too."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0
