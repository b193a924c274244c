"""The ledger's rules under every schedule: an exhaustive search that drives `ledger` itself.

A world has some copies of one task in the queue and one record. In every state that can be
reached, breadth first, everything that may happen next does: any message still queued is
delivered again, any attempt takes its next step, any write is done but its answer lost, a
supervisor takes an attempt for dead and releases it, the duplicate window runs out, the
consumer is made anew, a message is purged. An attempt may keep a turn of its work first, which
is a write like any other. Somebody may replay a dead letter that is there, in the steps that
`adapters.jetstream.replaying` takes; a second one may go on where the first has stopped, or race
with it. And somebody may cancel the task, before it comes as well as under an attempt that does
not hear of it.

A crash is an attempt that takes no further step. So it needs no step of its own; instead, in
each state, one more delivery is followed to its end while all others stand still for ever.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

import msgspec
import pytest

from agent_actors import ledger
from agent_actors.ledger import (
    AckCopy,
    Announce,
    AskQueue,
    Claim,
    DeadLetterReason,
    Plea,
    Release,
    Reopen,
    Run,
    Source,
    Stale,
    Superseded,
    TaskRecord,
    Verdict,
)

NOW = datetime(2026, 11, 22, tzinfo=UTC)
WHY = DeadLetterReason(reason="StrategyCrashed", error="KeyError")

Stored = bytes | None
Begin = Callable[..., Verdict]
Replay = Callable[[TaskRecord | None, Plea], Any]


class Rules(NamedTuple):
    """What may happen in a world, and what is taken out of it to see whether that is missed."""

    copies: int
    deliveries: int
    window_expires: bool = False
    consumer_made_anew: bool = False
    one_is_purged: bool = False
    answers_to_lose: float = math.inf
    turns: int = 0
    compare_and_set: bool = True
    begin: Begin = ledger.begin
    replays: int = 0
    replay: Replay = ledger.replay
    cancels: int = 0
    heeds_marks: bool = True


class Handout(NamedTuple):
    """One handing-out of a message: which message, by which consumer, for the how-manyth time.

    `generation` is what its `Nats-Msg-Id` tells.
    """

    message: int
    consumer: int
    count: int
    generation: int = 0


# What an attempt does next: a name, and what it then needs to know.
Step = tuple[Any, ...]

READ = ("read",)
READ_AGAIN = ("read again",)
ACK = ("ack",)


class World(NamedTuple):
    """Everything outside the attempts' heads, and in `attempts` and `operators` what is in them.

    `letters` has the generation of each dead letter ever announced, `shelf` of those still there.
    `is_cancelled` says that somebody was told that a cancel is requested.
    """

    queued: tuple[bool, ...]
    generations: tuple[int, ...]
    delivered: tuple[int, ...]
    handouts: int
    consumer: int
    revision: int
    record: Stored
    results: tuple[tuple[int, bytes], ...]
    letters: tuple[int, ...]
    shelf: tuple[int, ...]
    window: frozenset[str]
    answers_to_lose: float
    kept: tuple[bytes, ...]
    attempts: tuple[tuple[Handout, Step], ...]
    replays_left: int
    operators: tuple[Step, ...]
    cancels_left: int
    is_cancelled: bool = False


class Found(NamedTuple):
    """What a search found: how many states; what is wrong in one, if anything; the way there."""

    states: int
    fault: str = ""
    path: tuple[World, ...] = ()


EVERYTHING_HAPPENS = [
    Rules(copies=1, deliveries=4),
    Rules(copies=2, deliveries=3),
    Rules(copies=2, deliveries=3, window_expires=True),
    Rules(copies=1, deliveries=3, consumer_made_anew=True),
    # Attempts at two messages that are both gone may take over from each other for as long as
    # answers get lost, so that the search would not end.
    Rules(copies=2, deliveries=3, one_is_purged=True, answers_to_lose=1),
    Rules(copies=1, deliveries=3, turns=2),
    Rules(copies=2, deliveries=3, turns=1),
    Rules(copies=1, deliveries=3, replays=1, answers_to_lose=1),
    Rules(copies=1, deliveries=3, replays=2, answers_to_lose=0),
    Rules(copies=2, deliveries=3, replays=1, answers_to_lose=0),
    Rules(copies=1, deliveries=3, cancels=1, turns=1),
    Rules(copies=2, deliveries=3, cancels=1, answers_to_lose=1),
    Rules(copies=1, deliveries=3, cancels=1, replays=1, answers_to_lose=0),
]
MORE_OF_IT = [
    Rules(copies=2, deliveries=4),
    Rules(copies=2, deliveries=4, window_expires=True),
    Rules(copies=2, deliveries=3, consumer_made_anew=True),
    Rules(copies=2, deliveries=3, one_is_purged=True, answers_to_lose=2),
    Rules(copies=3, deliveries=4),
    Rules(copies=1, deliveries=4, turns=1),
    Rules(copies=2, deliveries=3, turns=2, window_expires=True),
    Rules(copies=1, deliveries=3, replays=2, window_expires=True),
    Rules(copies=1, deliveries=4, replays=1, answers_to_lose=1),
    Rules(copies=1, deliveries=3, replays=2, answers_to_lose=1),
    Rules(copies=2, deliveries=3, replays=2, answers_to_lose=0),
    Rules(copies=1, deliveries=4, cancels=2, window_expires=True),
    Rules(copies=2, deliveries=3, cancels=1),
    Rules(copies=1, deliveries=3, cancels=1, consumer_made_anew=True),
    Rules(copies=2, deliveries=3, cancels=1, one_is_purged=True, answers_to_lose=1),
]


def happenings() -> list[Rules]:
    thorough = os.environ.get("AGENT_ACTORS_TEST_LEDGER") == "thorough"
    return EVERYTHING_HAPPENS + (MORE_OF_IT if thorough else [])


def name_of(value: Any) -> str:
    """Name a case by what is unusual in it."""
    if not isinstance(value, Rules):
        return ""
    plain = Rules(copies=0, deliveries=0)._asdict()
    unusual = {key: what for key, what in value._asdict().items() if what != plain[key]}
    return " ".join(f"{key}={getattr(what, '__name__', what)}" for key, what in unusual.items())


@pytest.mark.parametrize("rules", happenings(), ids=name_of)
@pytest.mark.timeout(600)
def test_one_result_is_announced_and_nothing_is_lost_whatever_happens(rules):
    found = search(rules)
    assert not found.fault, path_of(found)
    assert found.states > 10_000


@pytest.mark.parametrize("window_expires", [False, True])
def test_without_compare_and_set_the_search_finds_two_results(window_expires):
    rules = Rules(copies=2, deliveries=2, window_expires=window_expires, compare_and_set=False)
    assert search(rules).fault in {
        "two distinct results announced",
        "the record tells another result than was announced",
    }


def forgets_the_end(found, claim, *, rival_queued=None):
    ended = found is not None and found.is_terminal
    return ledger.begin(None if ended else found, claim, rival_queued=rival_queued)


def acks_what_is_stale(found, claim, *, rival_queued=None):
    verdict = ledger.begin(found, claim, rival_queued=rival_queued)
    return AckCopy() if verdict == Stale() else verdict


def acks_copies_unasked(found, claim, *, rival_queued=None):
    verdict = ledger.begin(found, claim, rival_queued=rival_queued)
    return AckCopy() if isinstance(verdict, AskQueue) else verdict


def waits_for_the_dead(found, claim, *, rival_queued=None):
    verdict = ledger.begin(found, claim, rival_queued=rival_queued)
    return Stale() if found is not None and found.state == "running" else verdict


def forgets_turns(found, claim, *, rival_queued=None):
    verdict = ledger.begin(found, claim, rival_queued=rival_queued)
    if isinstance(verdict, Run):
        return Run(msgspec.structs.replace(verdict.record, recent_turns=[]))
    return verdict


def forgets_marks(found, claim, *, rival_queued=None):
    verdict = ledger.begin(found, claim, rival_queued=rival_queued)
    if isinstance(verdict, Run):
        return Run(msgspec.structs.replace(verdict.record, cancelled=False))
    return verdict


def runs_a_replay_by_any_message(found, claim, *, rival_queued=None):
    """As if the message that failed, when it is handed out again, were as good as the replay's."""
    if found is not None and found.is_replayed:
        claim = msgspec.structs.replace(claim, generation=found.generation)
    return ledger.begin(found, claim, rival_queued=rival_queued)


def acks_what_a_replay_shuts_out(found, claim, *, rival_queued=None):
    verdict = ledger.begin(found, claim, rival_queued=rival_queued)
    return AckCopy() if found is not None and found.is_replayed and verdict == Stale() else verdict


def keeps_the_generation(found, plea):
    verdict = ledger.replay(found, plea)
    if isinstance(verdict, Reopen):
        return Reopen(msgspec.structs.replace(verdict.record, generation=plea.generation))
    return verdict


def takes_opened_for_queued(found, plea):
    verdict = ledger.replay(found, plea)
    return Superseded(found) if found is not None and found.is_unqueued else verdict


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        (
            Rules(copies=1, deliveries=2, begin=forgets_the_end),
            "the record tells another result than was announced",
        ),
        (
            Rules(copies=1, deliveries=2, begin=acks_what_is_stale),
            "every copy acked and nothing announced",
        ),
        (
            Rules(copies=2, deliveries=2, one_is_purged=True, begin=acks_copies_unasked),
            "a task that no further delivery ends",
        ),
        (
            Rules(copies=1, deliveries=2, begin=waits_for_the_dead),
            "a task that no further delivery ends",
        ),
        (
            Rules(copies=1, deliveries=2, turns=1, begin=forgets_turns),
            "a turn that was kept is lost",
        ),
        (
            Rules(copies=1, deliveries=2, turns=1, compare_and_set=False),
            "a turn that was kept is lost",
        ),
        (
            Rules(copies=1, deliveries=3, replays=1, begin=runs_a_replay_by_any_message),
            "every copy acked and nothing announced",
        ),
        (
            Rules(copies=1, deliveries=2, replays=1, replay=keeps_the_generation),
            "the record tells another result than was announced",
        ),
        (
            Rules(copies=1, deliveries=2, replays=2, replay=takes_opened_for_queued),
            "a task that no further delivery ends",
        ),
        (
            Rules(copies=1, deliveries=2, cancels=1, begin=forgets_marks),
            "a cancel is lost",
        ),
        (
            Rules(copies=1, deliveries=2, cancels=1, heeds_marks=False),
            "a cancelled task ended otherwise",
        ),
        (
            Rules(copies=1, deliveries=2, cancels=1, compare_and_set=False),
            "a cancel is lost",
        ),
    ],
    ids=name_of,
)
def test_the_search_finds_what_a_wrong_rule_breaks(rules, fault):
    assert search(rules).fault == fault


def path_of(found: Found) -> str:
    return "\n".join([found.fault, *map(str, found.path)])


def search(rules: Rules) -> Found:
    """Visit every state; stop at the first fault."""
    start = World(
        queued=(True,) * rules.copies,
        generations=(0,) * rules.copies,
        delivered=(0,) * rules.copies,
        handouts=0,
        consumer=1,
        revision=0,
        record=None,
        results=(),
        letters=(),
        shelf=(),
        window=frozenset(),
        answers_to_lose=rules.answers_to_lose,
        kept=(),
        attempts=(),
        replays_left=rules.replays,
        operators=(),
        cancels_left=rules.cancels,
    )
    before: dict[World, World | None] = {start: None}
    ahead = deque([start])
    while ahead:
        world = ahead.popleft()
        if fault := fault_in(world, rules):
            return Found(len(before), fault, tuple(way_to(world, before))[::-1])
        for after in next_worlds(world, rules):
            if after not in before:
                before[after] = world
                ahead.append(after)
    return Found(len(before))


def way_to(world: World | None, before: dict[World, World | None]) -> Iterator[World]:
    while world is not None:
        yield world
        world = before[world]


def fault_in(world: World, rules: Rules) -> str:
    """Say what must never be, if it is."""
    distinct = set(world.results)
    if len({generation for generation, _ in distinct}) < len(distinct):
        return "two distinct results announced"
    if not rules.window_expires and has_copies(world.results, world.letters):
        return "a copy inside the window"
    if not rules.one_is_purged and not is_in_hand(world):
        return "every copy acked and nothing announced"
    if not kept_in_order(world):
        return "a turn that was kept is lost"
    if world.is_cancelled and not decoded(world.record).cancelled:
        return "a cancel is lost"
    if world.record and not ended_as_asked(decoded(world.record)):
        return "a cancelled task ended otherwise"
    if any(told != committed(world) for told in distinct if told[0] == committed(world)[0]):
        return "the record tells another result than was announced"
    return "" if all(rescued(world, rules)) else "a task that no further delivery ends"


def ended_as_asked(record: TaskRecord) -> bool:
    return not record.is_terminal or result_of(record)["cancelled"] == record.cancelled


def has_copies(*announced: tuple[Any, ...]) -> bool:
    return any(len(set(each)) < len(each) for each in announced)


def committed(world: World) -> tuple[int, bytes]:
    record = decoded(world.record)
    return record.generation, bytes(record.result)


def is_in_hand(world: World) -> bool:
    """Tell whether the task has its answer and its letter, or something is left to bring them."""
    if any(world.queued):
        return True
    record = decoded(world.record)
    if record.is_unqueued:
        return record.generation - 1 in world.shelf
    generations = {generation for generation, _ in world.results}
    is_told = record.dead_letter is None or record.generation in world.letters
    return record.generation in generations and is_told


def kept_in_order(world: World) -> bool:
    """Tell whether the record, or the result, still has each turn whose keeping was confirmed."""
    if not world.kept:
        return True
    record = decoded(world.record)
    turns = result_of(record)["turns"] if record.is_terminal else map(str, record.recent_turns)
    there = iter(turns)
    return all(str(turn) in there for turn in world.kept)


def rescued(world: World, rules: Rules) -> Iterator[bool]:
    """For each message, deliver it once more, undisturbed, and tell whether that was enough.

    A replay that is half done is repeated first.
    """
    alone = world._replace(
        attempts=(), operators=(), handouts=0, window=frozenset(), is_cancelled=False
    )
    if world.record and decoded(world.record).is_unqueued:
        alone = replayed(alone, decoded(world.record).generation - 1, rules)
    for message, queued in enumerate(world.queued):
        if queued:
            yield ends(alone, message, rules)


@cache
def ends(world: World, message: int, rules: Rules) -> bool:
    """Tell whether one delivery acks its message, and some message or announcement is left."""
    world = deliver(world, message)
    while world.attempts:
        world = next(steps(world, 0, rules))
    return not world.queued[message] and (bool(world.results) or any(world.queued))


def replayed(world: World, letter: int, rules: Rules) -> World:
    world = world._replace(operators=(("open", letter),))
    while world.operators:
        world = operated(world, 0, rules)
    return world


def next_worlds(world: World, rules: Rules) -> Iterator[World]:
    """Everything that may happen next."""
    if world.handouts < rules.deliveries:
        for message, queued in enumerate(world.queued):
            if queued:
                yield deliver(world, message)
    for index in range(len(world.attempts)):
        yield from steps(world, index, rules)
    yield from replays(world, rules)
    yield from cancels(world)
    yield from releases_of_lost(world)
    if rules.window_expires and world.window:
        yield world._replace(window=frozenset())
    if rules.consumer_made_anew and world.consumer == 1:
        yield world._replace(consumer=2, delivered=(0,) * len(world.delivered))
    if rules.one_is_purged and all(world.queued):
        yield from (dequeue(world, message) for message in range(rules.copies))


def deliver(world: World, message: int) -> World:
    count = world.delivered[message] + 1
    delivered = (*world.delivered[:message], count, *world.delivered[message + 1 :])
    attempt = (Handout(message, world.consumer, count, world.generations[message]), READ)
    attempts = tuple(sorted((*world.attempts, attempt)))
    return world._replace(delivered=delivered, handouts=world.handouts + 1, attempts=attempts)


def dequeue(world: World, message: int) -> World:
    return world._replace(queued=(*world.queued[:message], False, *world.queued[message + 1 :]))


def releases_of_lost(world: World) -> Iterator[World]:
    """A supervisor takes an attempt for dead, rightly or not, and gives its task back."""
    record = decoded(world.record) if world.record else None
    if record and record.state == "running":
        yield written(world, release(world.record))
    if record is None or record.is_replayed or record.is_awaited:
        for message, count in enumerate(world.delivered):
            for earlier in range(1, count + 1):
                handout = Handout(message, world.consumer, earlier, world.generations[message])
                if given_back := give_back(world.record, handout):
                    yield written(world, given_back)


def cancels(world: World) -> Iterator[World]:
    """Somebody cancels; when the answer is lost and he asks again, that changes nothing."""
    if world.cancels_left:
        left = world.cancels_left - 1
        marked = mark(world.record)
        if decoded(marked).is_terminal:
            yield world._replace(cancels_left=left)
        else:
            after = world if marked == world.record else written(world, marked)
            yield after._replace(cancels_left=left, is_cancelled=True)


def replays(world: World, rules: Rules) -> Iterator[World]:
    """Somebody who replays takes his next step, or another one begins to."""
    for index in range(len(world.operators)):
        yield operated(world, index, rules)
    if world.replays_left:
        for letter in set(world.shelf):
            operators = tuple(sorted((*world.operators, ("open", letter))))
            yield world._replace(operators=operators, replays_left=world.replays_left - 1)


# One step of one who replays a letter. What he reads and writes by compare-and-set is one step:
# when the write loses he reads again.


def operated(world: World, index: int, rules: Rules) -> World:
    others = (*world.operators[:index], *world.operators[index + 1 :])
    after, following = operation(world, world.operators[index], rules)
    return after._replace(operators=tuple(sorted((*others, *following))))


def operation(world: World, step: Step, rules: Rules) -> tuple[World, tuple[Step, ...]]:
    """Return the world after the step, and what comes next: one step, or no more."""
    match step:
        case ("open", letter):
            match rules.replay(decoded(world.record), plea(letter)):
                case Reopen(record):
                    is_there = stored(record) == world.record
                    after = world if is_there else written(world, stored(record))
                    return after._replace(kept=()), (("publish", letter, record.generation),)
                case Superseded():
                    return world, (("remove", letter),)
                case _:
                    return world, ()
        case ("publish", letter, generation):
            msg_id = f"task#{generation}"
            if msg_id in world.window:
                message = world.generations.index(generation)
                return world, (("note", letter, generation, message, "duplicate"),)
            after = world._replace(
                queued=(*world.queued, True),
                generations=(*world.generations, generation),
                delivered=(*world.delivered, 0),
                window=world.window | {msg_id},
            )
            return after, (("note", letter, generation, len(world.queued), "first"),)
        case ("note", letter, generation, message, kind):
            record = decoded(world.record)
            if record.generation > generation or not record.is_unqueued:
                return world, (("remove", letter),)
            if kind == "duplicate" and not world.queued[message]:
                return world, ()
            noted = ledger.queue(record, message + 1, NOW)
            return written(world, stored(noted)), (("remove", letter),)
        case _:
            left = list(world.shelf)
            if step[1] in left:
                left.remove(step[1])
            return world._replace(shelf=tuple(left)), ()


# One step of one attempt: what settlement does with a delivery, with the ledger's own verdicts.


def steps(world: World, index: int, rules: Rules) -> Iterator[World]:
    """Take the attempt's next step, in each way it can go; the undisturbed one comes first."""
    handout, step = world.attempts[index]
    others_before, others_after = world.attempts[:index], world.attempts[index + 1 :]
    for after, following in outcomes(world, handout, step, rules):
        mine = tuple((handout, next_step) for next_step in following)
        yield after._replace(attempts=(*others_before, *mine, *others_after))


def outcomes(
    world: World, handout: Handout, step: Step, rules: Rules
) -> Iterator[tuple[World, tuple[Step, ...]]]:
    """Return the world after the step and what the attempt does next: one step, or no more."""
    match step:
        case ("read",) if handout.count == 1:  # a first delivery guesses that there is no record
            yield world, judged(rules.begin, 0, None, handout)
        case ("read" | "read again",):
            yield world, judged(rules.begin, world.revision, world.record, handout)
        case ("ask", revision, record, rival):
            queued = world.queued[rival - 1]
            yield world, judged(rules.begin, revision, record, handout, rival_queued=queued)
        case ("write", *_):
            yield from writes(world, handout, step, rules)
        case ("run", revision, record):
            yield world, (("write", revision, commit(record, handout), "announce", record),)
            if decoded(record).cancelled and rules.heeds_marks:
                return
            yield world, (("write", revision, release(record), "nak", record),)
            if turns_of(record, handout) < rules.turns:
                yield world, (("write", revision, keep(record, handout), "go on", record),)
        case ("announce", record):
            letter = ("letter", record) if decoded(record).dead_letter else ACK
            yield announced(world, record), (letter,)
        case ("letter", record):
            yield lettered(world, record), (ACK,)
        case _:
            yield dequeue(world, handout.message), ()


def writes(
    world: World, handout: Handout, step: Step, rules: Rules
) -> Iterator[tuple[World, tuple[Step, ...]]]:
    """Compare and set: it wins, or its answer is lost, or it finds another one's write."""
    _, revision, record, following, leased = step
    if world.revision == revision or not rules.compare_and_set:
        after = written(world, record)
        yield told(after, record, following), resolved(following, after.revision, record)
        if world.answers_to_lose:  # the same write again
            yield after._replace(answers_to_lose=world.answers_to_lose - 1), (step,)
    elif ledger.was_written(decoded(record), decoded(world.record)):
        yield told(world, record, following), resolved(following, world.revision, world.record)
    elif following == "run":
        yield world, (READ_AGAIN,)
    elif ledger.was_marked(decoded(leased), decoded(world.record)):
        yield world, (marked_meanwhile(world, handout, step, rules),)
    else:  # fenced out
        yield world, ()


def marked_meanwhile(world: World, handout: Handout, step: Step, rules: Rules) -> Step:
    """Return what follows when only a mark has come: a turn is kept on it, all else ends here."""
    _, _, record, following, _ = step
    if following == "go on":
        return ("write", world.revision, keep(world.record, handout), "go on", world.record)
    if not rules.heeds_marks:
        stubborn = msgspec.structs.replace(decoded(record), cancelled=True)
        return ("write", world.revision, stored(stubborn), following, world.record)
    return ("run", world.revision, world.record)


def resolved(following: str, revision: int, record: bytes) -> tuple[Step, ...]:
    """Return what comes after a write that won. A nak brings what any message may expect."""
    match following:
        case "run" | "go on":
            return (("run", revision, record),)
        case "announce":
            return (("announce", record),)
        case _:
            return ()


def told(world: World, record: bytes, following: str) -> World:
    """Note which turns an attempt knows to be kept: those nobody may lose from now on."""
    return (
        world._replace(kept=tuple(decoded(record).recent_turns)) if following == "go on" else world
    )


def written(world: World, record: bytes) -> World:
    return world._replace(revision=world.revision + 1, record=record)


def announced(world: World, record: bytes) -> World:
    ended = decoded(record)
    msg_id = f"result#{ended.generation}"
    if msg_id in world.window:
        return world
    result = (ended.generation, bytes(ended.result))
    return world._replace(results=(*world.results, result), window=world.window | {msg_id})


def lettered(world: World, record: bytes) -> World:
    generation = decoded(record).generation
    msg_id = f"letter#{generation}"
    if msg_id in world.window:
        return world
    return world._replace(
        letters=(*world.letters, generation),
        shelf=(*world.shelf, generation),
        window=world.window | {msg_id},
    )


# The ledger's own functions, on records as they are stored.


@cache
def judged(
    begin: Begin,
    revision: int,
    record: Stored,
    handout: Handout,
    *,
    rival_queued: bool | None = None,
) -> tuple[Step, ...]:
    """Return what a delivery does next after `begin`."""
    found = decoded(record) if record else None
    match begin(found, claim(handout), rival_queued=rival_queued):
        case Run(mine):
            return (("write", revision, stored(mine), "run", None),)
        case Announce(ended):
            return (("announce", stored(ended)),)
        case AskQueue(rival):
            return (("ask", revision, record, rival),)
        case AckCopy():
            return (ACK,)
        case verdict:
            assert verdict == Stale()
            return ()


@cache
def commit(record: bytes, handout: Handout) -> bytes:
    running = decoded(record)
    turns = [str(turn) for turn in running.recent_turns]
    result = msgspec.json.encode({"by": handout, "turns": turns, "cancelled": running.cancelled})
    due = None if running.cancelled else WHY
    return stored(ledger.commit(running, "failed", result, NOW, due))


@cache
def keep(record: bytes, handout: Handout) -> bytes:
    running = decoded(record)
    turns = [*running.recent_turns, turn_of(handout)]
    return stored(ledger.keep(running, running.turns, turns, NOW))


@cache
def turns_of(record: bytes, handout: Handout) -> int:
    return decoded(record).recent_turns.count(turn_of(handout))


def turn_of(handout: Handout) -> bytes:
    return msgspec.json.encode(handout)


def result_of(record: TaskRecord) -> dict[str, Any]:
    return msgspec.json.decode(record.result)


@cache
def release(record: bytes) -> bytes:
    return stored(ledger.release(decoded(record), NOW))


@cache
def mark(record: Stored) -> bytes:
    return stored(ledger.cancel(decoded(record) if record else None, "t", NOW))


@cache
def give_back(record: Stored, handout: Handout) -> Stored:
    found = decoded(record) if record else None
    match ledger.give_back(found, claim(handout)):
        case Release(given_back):
            return stored(given_back)
        case _:
            return None


def plea(letter: int) -> Plea:
    return Plea(task_id="t", generation=letter, stream_seq=1, content="hash", now=NOW)


def claim(handout: Handout) -> Claim:
    return Claim(
        task_id="t",
        source=Source(
            stream_seq=handout.message + 1,
            consumer="default",
            consumer_created=handout.consumer,
            num_delivered=handout.count,
        ),
        content="hash",
        agent_id="default-0",
        lease="-".join(map(str, handout)),
        now=NOW,
        generation=handout.generation,
    )


@cache
def decoded(record: bytes) -> TaskRecord:
    return msgspec.json.decode(record, type=TaskRecord)


def stored(record: TaskRecord) -> bytes:
    return msgspec.json.encode(record)
