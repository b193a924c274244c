"""The promise as eight functions of a history, each of which names what broke it.

Only what was seen is judged: nothing here knows how the service works inside.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from chaos.history import Acked, Announced, History, Published, Sample
from msgspec import Struct

from agent_actors.contract import RESPONSE_STREAM

# The table of design section 5: whose failed results have a dead letter beside them.
WITH_DEAD_LETTER = frozenset({"InvalidTask", "StrategyCrashed", "PoisonTask"})
CONFLICT = "TaskIdConflict"
# Given up after the deaths of so many actors, which chaos may cause as well as the task.
POISONED = "PoisonTask"
DEADLY = frozenset({"actor killed", "actor terminated", "all actors killed", "actor frozen"})

MEGABYTE = 1_000_000
# A process is still importing and opening its connections for so long.
WARM_UP_S = 10.0
MAX_GROWTH_BYTES = 64 * MEGABYTE
MAX_NEW_DESCRIPTORS = 64
# What makes an attempt ask again: a model that does not answer, and sleeping through its answer.
SLEEP = "actor frozen"
# What a fault of the model server has done may be met for so long after it.
AFTERMATH_S = 2.0

Item = TypeVar("Item")


class Violation(Struct, frozen=True, kw_only=True):
    """What broke an invariant; `task_id` is empty when it was no single task."""

    invariant: str
    what: str
    task_id: str = ""


Check = Callable[[History], Iterable[Violation]]


def check(history: History) -> list[Violation]:
    """Return everything in the history that breaks an invariant."""
    return [violation for judge in INVARIANTS.values() for violation in judge(history)]


def one_result(history: History) -> Iterator[Violation]:
    """I1: exactly one distinct terminal result for every accepted task."""
    results = _grouped(history.announced, lambda each: each.task_id)
    records = {record.task_id: record for record in history.records}
    for result_id in _result_ids(history):
        found = results.get(result_id, [])
        distinct = {each.digest for each in found}
        if not found:
            yield Violation(invariant="I1", task_id=result_id, what="has no result")
        elif len(distinct) > 1:
            what = f"has {len(distinct)} different results"
            yield Violation(invariant="I1", task_id=result_id, what=what)
        elif len(found) > 1:
            what = f"its result was stored {len(found)} times within the duplicate window"
            yield Violation(invariant="I1", task_id=result_id, what=what)
        record = records.get(result_id)
        if found and record is not None and record.digest not in distinct:
            what = f"the ledger has another result ({record.state}) than the one announced"
            yield Violation(invariant="I1", task_id=result_id, what=what)


def no_result_without_a_task(history: History) -> Iterator[Violation]:
    """I2: no result without a task, and no dead letter without a message."""
    known = _result_ids(history)
    for result in history.announced:
        if result.task_id not in known:
            what = f"a result ({result.outcome}) of a task that nobody published"
            yield Violation(invariant="I2", task_id=result.task_id, what=what)
    sources = {each.seq for each in history.published}
    for letter in history.buried:
        if letter.source_seq not in sources:
            what = f"a dead letter ({letter.reason}) of message {letter.source_seq}, never stored"
            yield Violation(invariant="I2", task_id=letter.task_id, what=what)


def result_before_ack(history: History) -> Iterator[Violation]:
    """I3: the result's PubAck comes before the task's ack.

    A copy of a task may be acked while the other message of that task still is in the queue, and
    a conflicting one once its dead letter is stored.
    """
    published = {each.seq: each for each in history.published}
    confirmed = _grouped(history.confirmed, lambda each: each.task_id)
    buried = {each.source_seq: each for each in reversed(history.confirmed) if each.source_seq}
    first_ack: dict[int, Acked] = {}
    for ack in history.acked:
        if ack.verb != "-NAK":
            first_ack.setdefault(ack.seq, ack)
    siblings = _grouped(history.published, lambda each: each.result_id)
    for seq, ack in first_ack.items():
        task = published.get(seq)
        if task is None:
            continue
        known = confirmed.get(task.result_id, [])
        if any(each.stream == RESPONSE_STREAM and each.order < ack.order for each in known):
            continue
        if seq in buried and buried[seq].order < ack.order:
            continue
        others = (first_ack.get(each.seq) for each in siblings[task.result_id] if each.seq != seq)
        if any(other is None or other.order > ack.order for other in others):
            continue
        what = f"message {seq} was acked by {ack.by} before its result was stored"
        yield Violation(invariant="I3", task_id=task.result_id, what=what)


def model_asked_no_more_than_needed(history: History) -> Iterator[Violation]:
    """I4: model calls at most attempts times turns; exactly one a turn when no fault hit the task.

    A turn is known by the fingerprint of its conversation. While the model is ill, a request may
    be repeated in place, `max_asks` times in all; what reached the server counts, whatever came
    of it.
    """
    attempts = {record.task_id: record.attempt for record in history.records}
    ill = _met_ill_model(history)
    outcomes = {result.task_id: result.outcome for result in history.announced}
    asked = _grouped(history.requests, lambda each: each.task_id)
    untouched = _untouched(history)
    kinds = {each.task_id: each.kind for each in history.published}
    for task_id, requests in asked.items():
        turns = Counter(request.conversation for request in requests)
        most = max(turns.values())
        allowed = attempts.get(task_id, 0) * (history.max_asks if task_id in ill else 1)
        if most > allowed:
            what = f"one turn was asked for {most} times, {allowed} are allowed by its attempts"
            yield Violation(invariant="I4", task_id=task_id, what=what)
        expected = history.turns.get(kinds.get(task_id, ""), len(turns))
        if len(requests) > allowed * expected:
            what = (
                f"asked {len(requests)} times, {allowed} for each of {expected} turns are allowed"
            )
            yield Violation(invariant="I4", task_id=task_id, what=what)
        if task_id not in untouched:
            continue
        if outcomes.get(task_id) == "completed" and len(turns) != expected:
            what = f"no fault hit it, yet it took {len(turns)} turns in place of {expected}"
            yield Violation(invariant="I4", task_id=task_id, what=what)


def nothing_left(history: History) -> Iterator[Violation]:
    """I5: at the end nothing is pending, unacked or in the ledger as running."""
    left = history.leftovers
    published = {each.seq: each for each in history.published}
    for seq in left.queued_seqs:
        task_id = published[seq].result_id if seq in published else ""
        what = f"message {seq} is still in the queue"
        yield Violation(invariant="I5", task_id=task_id, what=what)
    if left.pending or left.unacked:
        what = f"the consumer has {left.pending} messages pending and {left.unacked} unacked"
        yield Violation(invariant="I5", what=what)
    for record in history.records:
        if record.state not in {"completed", "failed"}:
            what = f"is {record.state} in the ledger"
            yield Violation(invariant="I5", task_id=record.task_id, what=what)
    if history.slots and history.slots[-1].used:
        what = f"{history.slots[-1].used} slots are in use though nothing is left to do"
        yield Violation(invariant="I5", what=what)


def bounded(history: History) -> Iterator[Violation]:
    """I6: memory, descriptors and slots bounded."""
    for sample in history.slots:
        if sample.used > sample.slots:
            what = f"{sample.used} of {sample.slots} slots in use at {sample.at_s:.1f} s"
            yield Violation(invariant="I6", what=what)
    for (who, pid), all_samples in _grouped(history.samples, lambda s: (s.who, s.pid)).items():
        warm = [each for each in all_samples if each.at_s >= all_samples[0].at_s + WARM_UP_S]
        if len(warm) < 2:
            continue
        grown = warm[-1].rss_bytes - warm[0].rss_bytes
        if grown > MAX_GROWTH_BYTES:
            what = f"{who} (process {pid}) grew by {grown / MEGABYTE:.0f} MB {_span(warm)}"
            yield Violation(invariant="I6", what=what)
        opened = warm[-1].descriptors - warm[0].descriptors
        if opened > MAX_NEW_DESCRIPTORS:
            what = f"{who} (process {pid}) opened {opened} descriptors more {_span(warm)}"
            yield Violation(invariant="I6", what=what)


def no_secret_told(history: History) -> Iterator[Violation]:
    """I7: no planted secret in any log, result or event."""
    for leak in history.leaks:
        yield Violation(invariant="I7", what=f"the {leak.secret} stands in {leak.where}")


def failures_have_reasons(history: History) -> Iterator[Violation]:
    """I8: every failed result has its reason, and a dead letter where the table says so.

    And each task ends as its kind and its cancel must: chaos may delay it, but not make it fail.
    """
    letters = Counter(letter.msg_id for letter in history.buried if letter.reason != CONFLICT)
    kinds = _grouped(history.published, lambda each: each.result_id)
    for result in history.announced:
        if result.status == "failed" and not (result.error_type and result.error):
            yield Violation(invariant="I8", task_id=result.task_id, what="failed without a reason")
        due = int(result.status == "failed" and result.error_type in WITH_DEAD_LETTER)
        if letters[result.msg_id] != due:
            what = f"{result.outcome}: has {letters[result.msg_id]} dead letters, {due} is due"
            yield Violation(invariant="I8", task_id=result.task_id, what=what)
        expected = _expected(history, kinds.get(result.task_id, ()))
        if result.outcome == POISONED and _may_be_poisoned(history, result):
            continue
        if expected and result.outcome not in expected:
            what = f"ended as {result.outcome} ({result.error}), expected {', '.join(expected)}"
            yield Violation(invariant="I8", task_id=result.task_id, what=what)
    yield from _cancels(history)
    yield from _conflicts(history)


def _cancels(history: History) -> Iterator[Violation]:
    """What the service answers to a cancel is what becomes of the task."""
    outcomes = {result.task_id: result.outcome for result in history.announced}
    for asked in history.cancels:
        outcome = outcomes.get(asked.task_id, "")
        is_promised = asked.answer in {"cancel_requested", "cancelled"}
        if outcome and is_promised != (outcome == "Cancelled"):
            what = f"ended as {outcome} though its cancel was answered with {asked.answer}"
            yield Violation(invariant="I8", task_id=asked.task_id, what=what)


def _conflicts(history: History) -> Iterator[Violation]:
    """Of an id with several contents one stands; each other message is a dead letter, once."""
    letters = Counter(each.source_seq for each in history.buried if each.reason == CONFLICT)
    for result_id, messages in _grouped(history.published, lambda e: e.result_id).items():
        contents = _grouped(messages, lambda each: each.content)
        refused = [
            content
            for content, same in contents.items()
            if all(letters[each.seq] == 1 for each in same)
        ]
        some = sum(letters[each.seq] for each in messages)
        if len(refused) != len(contents) - 1 or some != sum(len(contents[c]) for c in refused):
            what = f"{len(contents)} contents under one id, but {some} dead letters {CONFLICT}"
            yield Violation(invariant="I8", task_id=result_id, what=what)


def _expected(history: History, messages: Sequence[Published]) -> list[str]:
    known = [history.outcomes[each.kind] for each in messages if each.kind in history.outcomes]
    return sorted(frozenset().union(*known)) if known else []


def _may_be_poisoned(history: History, result: Announced) -> bool:
    """Tell whether chaos itself has killed as many actors in a task's life as are its limit."""
    begin_s = min(each.at_s for each in history.published if each.result_id == result.task_id)
    deaths = [
        fault
        for fault in history.faults
        if fault.kind in DEADLY and begin_s <= fault.end_s and fault.begin_s <= result.at_s
    ]
    return len(deaths) >= history.max_attempts


def _untouched(history: History) -> set[str]:
    """Return the tasks that met no fault: one attempt, one delivery, a model in good health."""
    attempts = {record.task_id: record.attempt for record in history.records}
    messages = {each.seq: each.task_id for each in history.published}
    again = {messages.get(each.seq) for each in history.delivered if each.num_delivered > 1}
    once = {task_id for task_id, count in attempts.items() if count == 1}
    return once - again - _met_ill_model(history)


def _met_ill_model(history: History) -> set[str]:
    """Return the tasks that asked the model while it, or their actor, may have lost an answer."""
    ill = [each for each in history.faults if each.lane == "model" or each.kind == SLEEP]
    ends = {result.task_id: result.at_s for result in history.announced}
    met = {request.task_id for request in history.requests if request.fault}
    for task_id, requests in _grouped(history.requests, lambda each: each.task_id).items():
        begin_s, end_s = requests[0].at_s, max(ends.get(task_id, 0.0), requests[-1].at_s)
        if any(e.begin_s <= end_s and begin_s <= e.end_s + AFTERMATH_S for e in ill):
            met.add(task_id)
    return met


def _result_ids(history: History) -> set[str]:
    return {each.result_id for each in history.published}


def _span(samples: Sequence[Sample]) -> str:
    return f"from {samples[0].at_s:.0f} s to {samples[-1].at_s:.0f} s"


Key = TypeVar("Key")


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> Mapping[Key, list[Item]]:
    groups: defaultdict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


INVARIANTS: dict[str, Check] = {
    "I1": one_result,
    "I2": no_result_without_a_task,
    "I3": result_before_ack,
    "I4": model_asked_no_more_than_needed,
    "I5": nothing_left,
    "I6": bounded,
    "I7": no_secret_told,
    "I8": failures_have_reasons,
}
