"""What is known of a run: everything that was seen, as plain records, for the invariants to judge.

`at_s` is seconds since the run began. `order` counts all that passed between the service and NATS
and all that was published, one counter for both: of two of them the lower came first.
"""

from collections.abc import Sequence

from msgspec import Struct, field

from agent_actors.contract import TASK_STREAM


class Published(Struct, frozen=True, kw_only=True):
    """A message that JetStream accepted; `task_id` is empty when it has none that can be used."""

    at_s: float
    order: int
    seq: int
    task_id: str
    kind: str
    content: str

    @property
    def result_id(self) -> str:
        """The id under which its result is announced."""
        return self.task_id or f"unknown:{TASK_STREAM}:{self.seq}"


class Delivered(Struct, frozen=True, kw_only=True):
    """A handing-out of the message `seq`."""

    at_s: float
    order: int
    seq: int
    num_delivered: int
    to: str


class Acked(Struct, frozen=True, kw_only=True):
    """An answer to a delivery: `+ACK`, `-NAK` or `+TERM`."""

    at_s: float
    order: int
    seq: int
    verb: str
    by: str


class Confirmed(Struct, frozen=True, kw_only=True):
    """JetStream's PubAck for a result or a dead letter reached whoever had published it.

    `source_seq` is the message that a dead letter is of.
    """

    at_s: float
    order: int
    stream: str
    msg_id: str
    task_id: str
    by: str
    source_seq: int = 0


class LedgerWrite(Struct, frozen=True, kw_only=True):
    """A record that somebody asked to be written to the ledger; it may have been refused."""

    at_s: float
    order: int
    task_id: str
    state: str
    attempt: int
    agent_id: str
    by: str
    deaths: int = 0


class ModelRequest(Struct, frozen=True, kw_only=True):
    """A request that reached the model server, and what became of it; `status` 0 is no answer."""

    at_s: float
    task_id: str
    conversation: str
    status: int
    fault: str = ""
    aborted: bool = False


class Announced(Struct, frozen=True, kw_only=True):
    """A result in the stream of results; `digest` is of its bytes."""

    at_s: float
    seq: int
    msg_id: str
    task_id: str
    status: str
    digest: str
    error_type: str = ""
    error: str = ""
    attempt: int = 0
    agent_id: str = ""

    @property
    def outcome(self) -> str:
        """`completed`, or why it failed."""
        return self.status if self.status == "completed" else self.error_type


class Buried(Struct, frozen=True, kw_only=True):
    """A dead letter in the stream of them."""

    at_s: float
    seq: int
    msg_id: str
    task_id: str
    reason: str
    error: str
    source_seq: int


class Record(Struct, frozen=True, kw_only=True):
    """What the ledger holds of a task at the end; `digest` is of its result's bytes."""

    task_id: str
    state: str
    attempt: int
    digest: str = ""


class CancelAsked(Struct, frozen=True, kw_only=True):
    """A request to cancel a task, and the state that the service answered with."""

    at_s: float
    task_id: str
    answer: str


class FaultWindow(Struct, frozen=True, kw_only=True):
    """A fault, from its beginning to its end. `lane` is what it was done to."""

    kind: str
    lane: str
    begin_s: float
    end_s: float
    detail: str = ""


class Sample(Struct, frozen=True, kw_only=True):
    """A process as it was at a moment; `descriptors` is -1 where they may not be counted."""

    at_s: float
    who: str
    pid: int
    rss_bytes: int
    descriptors: int = -1


class SlotSample(Struct, frozen=True, kw_only=True):
    """A pool's slots as its supervisor told them, and the state it gave."""

    at_s: float
    slots: int
    used: int
    state: str = ""


class Leak(Struct, frozen=True, kw_only=True):
    """A planted secret that came to light."""

    secret: str
    where: str


class Leftovers(Struct, frozen=True, kw_only=True):
    """What the queue still holds after the quiet; -1 is not known."""

    queued_seqs: Sequence[int] = ()
    pending: int = 0
    unacked: int = 0


class History(Struct, kw_only=True):
    """All of one run.

    `max_asks` is how often an attempt may ask the model for one turn, `max_attempts` how many
    actors may die of a task.
    """

    max_asks: int = 1
    max_attempts: int = 1
    turns: dict[str, int] = {}
    outcomes: dict[str, frozenset[str]] = {}
    published: list[Published] = field(default_factory=list)
    delivered: list[Delivered] = field(default_factory=list)
    acked: list[Acked] = field(default_factory=list)
    confirmed: list[Confirmed] = field(default_factory=list)
    ledger_writes: list[LedgerWrite] = field(default_factory=list)
    requests: list[ModelRequest] = field(default_factory=list)
    announced: list[Announced] = field(default_factory=list)
    buried: list[Buried] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    cancels: list[CancelAsked] = field(default_factory=list)
    faults: list[FaultWindow] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    slots: list[SlotSample] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    leftovers: Leftovers = Leftovers()
