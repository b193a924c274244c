"""The object store for what is too big for a message, in the layout of NATS ADR-20.

`nats object get agent_artifacts NAME` reads it. It is spoken to directly: nats-py's object
store makes a consumer for each read, which clients may not, and waits for ever for a lost chunk.
"""

import base64
import contextlib
import hashlib
import secrets

import msgspec
from msgspec import Struct

from agent_actors.adapters.jetstream.connection import ApiError, Connection
from agent_actors.adapters.jetstream.tasks import NO_MESSAGE
from agent_actors.contract import ARTIFACT_BUCKET, ArtifactRef, utc_now
from agent_actors.errors import ArtifactLost, PermissionDenied

STREAM = f"OBJ_{ARTIFACT_BUCKET}"
CHUNK_BYTES = 128 * 1024
REPLACE_HEADERS = {"Nats-Rollup": "sub"}


class ObjectInfo(Struct, frozen=True, kw_only=True):
    """What the store knows of an object; `nuid` names the subject of its chunks."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str
    mtime: str = ""
    deleted: bool = False
    options: dict[str, int] = {}


class JetStreamArtifacts:
    """The object store bucket as an `ArtifactStore`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def put(self, name: str, data: bytes) -> ArtifactRef:
        """Store the bytes under the name; the same bytes again change nothing.

        The name shows the new bytes once all of them are stored, and never a part of them.
        Raises PublishFailed, PermissionDenied, StreamMissing.
        """
        sha256 = hashlib.sha256(data)
        digest = f"SHA-256={base64.urlsafe_b64encode(sha256.digest()).decode()}"
        old = await self._info(name)
        if old is None or old.digest != digest:
            await self._store(name, data, digest)
            if old is not None:
                await self._drop_chunks(old.nuid)
        return ArtifactRef(object=name, size=len(data), sha256=sha256.hexdigest())

    async def get(self, ref: ArtifactRef) -> bytes:
        """Return the bytes that the reference means.

        Raises ArtifactLost when they have expired or been replaced; PublishFailed.
        """
        info = await self._info(ref.object)
        if info is None:
            raise ArtifactLost(f"{ARTIFACT_BUCKET}/{ref.object} is not there; objects expire")
        data = await self._chunks(info)
        if len(data) != ref.size or hashlib.sha256(data).hexdigest() != ref.sha256:
            raise ArtifactLost(
                f"{ARTIFACT_BUCKET}/{ref.object} is not the object of {ref.size} bytes "
                f"with SHA-256 {ref.sha256}; it was replaced or damaged"
            )
        return data

    async def delete(self, ref: ArtifactRef) -> None:
        """Remove the object, if it is there, and free its room.

        Raises PublishFailed, PermissionDenied.
        """
        info = await self._info(ref.object)
        if info is not None:
            await self._purge(_info_subject(info.name))
            await self._purge(_chunk_subject(info.nuid))

    async def _store(self, name: str, data: bytes, digest: str) -> None:
        nuid = secrets.token_hex(11)
        # A server may be set to small messages, and answers with a chunk in base64.
        step = min(CHUNK_BYTES, self._connection.nc.max_payload // 2)
        chunks = [data[start : start + step] for start in range(0, len(data), step)]
        for chunk in chunks:
            await self._connection.publish_stored(_chunk_subject(nuid), chunk)
        info = ObjectInfo(
            name=name,
            bucket=ARTIFACT_BUCKET,
            nuid=nuid,
            size=len(data),
            chunks=len(chunks),
            digest=digest,
            mtime=utc_now().isoformat(),
            options={"max_chunk_size": step},
        )
        payload = msgspec.json.encode(info)
        await self._connection.publish_stored(_info_subject(name), payload, REPLACE_HEADERS)

    async def _drop_chunks(self, nuid: str) -> None:
        """Make room at once when we may; the chunks nobody names expire anyway."""
        with contextlib.suppress(PermissionDenied):
            await self._purge(_chunk_subject(nuid))

    async def _purge(self, subject: str) -> None:
        request = msgspec.json.encode({"filter": subject})
        await self._connection.api(f"STREAM.PURGE.{STREAM}", request)

    async def _info(self, name: str) -> ObjectInfo | None:
        found = await self._message({"last_by_subj": _info_subject(name)})
        if found is None:
            return None
        info = msgspec.json.decode(found[1], type=ObjectInfo)
        return None if info.deleted else info

    async def _chunks(self, info: ObjectInfo) -> bytes:
        parts: list[bytes] = []
        sequence = 0
        for _ in range(info.chunks):
            found = await self._message(
                {"seq": sequence + 1, "next_by_subj": _chunk_subject(info.nuid)}
            )
            if found is None:
                break
            sequence, part = found
            parts.append(part)
        return b"".join(parts)

    async def _message(self, request: dict[str, str | int]) -> tuple[int, bytes] | None:
        """Return a stored message with its sequence, from the leader."""
        payload = msgspec.json.encode(request)
        try:
            answer = await self._connection.api(f"STREAM.MSG.GET.{STREAM}", payload)
        except ApiError as error:
            if error.err_code != NO_MESSAGE:
                raise
            return None
        message = answer["message"]
        return message["seq"], base64.b64decode(message.get("data", ""))


def _chunk_subject(nuid: str) -> str:
    return f"$O.{ARTIFACT_BUCKET}.C.{nuid}"


def _info_subject(name: str) -> str:
    return f"$O.{ARTIFACT_BUCKET}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
