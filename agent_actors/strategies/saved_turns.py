"""What the journal keeps of a task with tools: what happened, as entries, several to a page.

The number in a tag is the form's version. A page of a form that this version does not know cannot
be read, and the task starts anew: better than to go on from something misunderstood.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent_actors.contract import AuditEvent, Operation, Usage
from agent_actors.ports import ChatMessage, ChatReply
from agent_actors.strategies.budget import Spent
from agent_actors.tools.workspace import WorkspaceId

Flaw = Literal["cut_off", "unreadable_call", "empty", "wrong_form"]


class Opened(Struct, frozen=True, kw_only=True, tag="opened.1"):
    """Work began: in which workspace, with which messages, after what was spent in vain."""

    workspace: WorkspaceId
    messages: Sequence[ChatMessage]
    spent: Spent = Spent()


class Trimmed(Struct, frozen=True, kw_only=True, tag="trimmed.1"):
    """The outputs in these messages were dropped."""

    indices: Sequence[int]


class Shortened(Struct, frozen=True, kw_only=True, tag="shortened.1"):
    """The arguments of the calls in these messages were shortened."""

    indices: Sequence[int]


class Replied(Struct, frozen=True, kw_only=True, tag="replied.1"):
    """The model answered; these are its words and calls as they came.

    `estimate` is what counts for a reply whose server has counted no tokens.
    """

    reply: ChatReply
    estimate: Usage | None = None


class CallBegun(Struct, frozen=True, kw_only=True, tag="call_begun.1"):
    """A call that may change something is about to run."""

    call_id: str


class CallDone(Struct, frozen=True, kw_only=True):
    """What came of one call: what the model is told, and what the record keeps."""

    call_id: str
    told: str
    operation: Operation
    artifacts: dict[str, list[Any]] = {}


class CallsDone(Struct, frozen=True, kw_only=True, tag="calls_done.1"):
    """What came of some calls of the last reply, in the order of the calls."""

    results: Sequence[CallDone]


class Warned(Struct, frozen=True, kw_only=True, tag="warned.1"):
    """The model was told, beneath the last result, that its budget is nearly used up."""

    text: str


class AskedAgain(Struct, frozen=True, kw_only=True, tag="asked_again.1"):
    """The answer would not do, and the model was told why."""

    flaw: Flaw
    text: str


Entry = Opened | Trimmed | Shortened | Replied | CallBegun | CallsDone | Warned | AskedAgain


class Page(Struct, frozen=True, kw_only=True):
    """What is stored at once: entries in their order, and what the audit trail gained meanwhile."""

    entries: Sequence[Entry]
    audit_trail: Sequence[AuditEvent] = ()

    @property
    def opened(self) -> Opened | None:
        """The beginning of the work, if this page has it."""
        first = self.entries[0] if self.entries else None
        return first if isinstance(first, Opened) else None


_encode = msgspec.json.Encoder().encode
_pages = msgspec.json.Decoder(Page)


def written(page: Page) -> bytes:
    """Return a page as the journal keeps it."""
    return _encode(page)


def read_pages(stored: Sequence[bytes]) -> list[Page]:
    """Return the pages of the newest beginning; none when one of them cannot be read."""
    pages: list[Page] = []
    for page in map(_read, stored):
        if page is None:
            pages = []
        elif page.opened:
            pages = [page]
        elif pages:
            pages.append(page)
    return pages


def spent_in(stored: Sequence[bytes]) -> Spent:
    """Return what has been spent by the end of these pages, as far as they can be read."""
    spent = Spent()
    for page in map(_read, stored):
        for entry in page.entries if page else ():
            spent = spent_after(spent, entry)
    return spent


def spent_after(spent: Spent, entry: Entry) -> Spent:
    """Return what has been spent once the entry has happened."""
    match entry:
        case Opened():
            return entry.spent
        case Replied(reply=reply, estimate=estimate):
            usage = spent.usage + (estimate or reply.usage)
            return replace(spent, turns=spent.turns + 1, usage=usage)
        case CallsDone(results=results):
            return replace(spent, operations=spent.operations + len(results))
        case _:
            return spent


def _read(stored: bytes) -> Page | None:
    try:
        return _pages.decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
