"""What an attempt keeps of its work under its lease, so that another attempt can go on from it.

The newest entries lie in the ledger's record itself, which costs one write each; once they are
many bytes, they move to the object store together, and the record keeps a reference. Either
way an entry counts from one compare-and-set on the record on: whoever has lost the task keeps
nothing more.
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from functools import partial
from itertools import count
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from agent_actors.contract import ArtifactRef
from agent_actors.errors import ArtifactLost, Cancelled
from agent_actors.leases import Lease, Leases
from agent_actors.patience import until_answered
from agent_actors.ports import ArtifactStore

log = structlog.get_logger()

# The record is written anew for each entry, so that its own part is kept small.
MAX_RECENT_BYTES = 16 * 1024

_entries = msgspec.msgpack.Decoder(list[bytes])


class LeaseJournal:
    """The journal of one attempt; each entry changes the lease, so ask for the `newest`."""

    def __init__(self, lease: Lease, leases: Leases, store: ArtifactStore) -> None:
        self._leases = leases
        self._store = store
        self._newest: asyncio.Future[Lease] = _known(lease)
        self._object_numbers = count(len(lease.record.turns))

    async def entries(self) -> Sequence[bytes]:
        """Return what earlier attempts have kept; nothing, when some of it is lost.

        Waits for NATS as long as it is away. Raises PermissionDenied, StreamMissing.
        """
        lease = await self.newest()
        try:
            kept = [entry for ref in lease.record.turns for entry in await self._load(ref)]
        except (ArtifactLost, msgspec.MsgspecError) as error:
            log.warning("journal.lost", turns=len(lease.record.turns), error=str(error))
            emptied = replace(lease.record, turns=[], recent_turns=[])
            self._newest = _known(Lease(lease.key, emptied, lease.revision))
            return []
        return [*kept, *lease.record.recent_turns]

    async def append(self, entry: bytes) -> None:
        """Return once the entry is stored; a cancellation does not stop what was begun.

        Waits for NATS as long as it is away. Raises FencedOut when another attempt has the
        task; Cancelled when it was cancelled; PermissionDenied, StreamMissing.
        """
        await self._keep(self._appended(self._newest, entry))

    async def begin_anew(self, entry: bytes) -> None:
        """Return once the entry is stored in place of all before; else as `append`."""
        await self._keep(self._begun_anew(self._newest, entry))

    async def newest(self) -> Lease:
        """Return the lease as the last entry left it, once it is known what became of that.

        Raises what `append` raises, but Cancelled: the lease tells.
        """
        return await self._newest

    async def _keep(self, storing: Coroutine[Any, Any, Lease]) -> None:
        self._newest = asyncio.ensure_future(storing)
        lease = await asyncio.shield(self._newest)
        if lease.record.cancelled:
            raise Cancelled

    async def _appended(self, before: Awaitable[Lease], entry: bytes) -> Lease:
        lease = await before
        return await self._kept(lease, lease.record.turns, [*lease.record.recent_turns, entry])

    async def _begun_anew(self, before: Awaitable[Lease], entry: bytes) -> Lease:
        """Keep the entry alone; what the record does not refer to any more is removed after."""
        lease = await before
        anew = await self._kept(lease, [], [entry])
        for ref in lease.record.turns:
            await until_answered(partial(self._store.delete, ref))
        return anew

    async def _kept(self, lease: Lease, turns: list[ArtifactRef], recent: list[bytes]) -> Lease:
        if sum(map(len, recent)) > MAX_RECENT_BYTES:
            turns, recent = [*turns, await self._stored(lease, recent)], []
        return await self._leases.keep(lease, turns, recent)

    async def _stored(self, lease: Lease, entries: list[bytes]) -> ArtifactRef:
        """Put entries into the object store, under a name that no other attempt writes."""
        name = f"{lease.key}/{lease.record.lease}/turns/{next(self._object_numbers)}"
        data = msgspec.msgpack.encode(entries)
        return await until_answered(lambda: self._store.put(name, data))

    async def _load(self, ref: ArtifactRef) -> list[bytes]:
        return _entries.decode(await until_answered(lambda: self._store.get(ref)))


def _known(lease: Lease) -> asyncio.Future[Lease]:
    future = asyncio.get_running_loop().create_future()
    future.set_result(lease)
    return future
