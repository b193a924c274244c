"""What is promised, judged by the story of one history: each function names what broke it.

Only what passed on the bus, and what strategies saw, is judged, against what the plan says.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from support.fakes import NOON
from support.histories import PlannedTask
from support.memory_bus import Event
from support.whole_service import MAX_ATTEMPTS, MAX_PAYLOAD_BYTES, SUBJECT, WholeService

from agent_actors.contract import TASK_STREAM, AgentResult, task_key
from agent_actors.ledger import UNQUEUED, Source, TaskRecord
from agent_actors.ports import Delivery
from agent_actors.reading import read

# The table of dispositions: whose failed results have a dead letter beside them.
WITH_DEAD_LETTER = frozenset({"InvalidTask", "StrategyCrashed", "PoisonTask"})

# How long it may take until the next supervisor has greeted an actor, and hears of its death.
UNHEARD_S = 5.0
# How soon a running task is stopped that is cancelled.
STOPPED_AFTER_S = 1.0

Found = dict[str, list[Event]]


class History:
    """A history that has ended, with what is asked of it again and again."""

    def __init__(self, service: WholeService) -> None:
        self.service = service
        self.plan = service.plan
        self.story = service.bus.story
        self.by_kind: Found = defaultdict(list)
        for event in self.story:
            self.by_kind[event.what].append(event)
        self.accepted = {event.about["seq"]: event.about for event in self.by_kind["publishes"]}
        self.ids = {about["task_id"] for about in self.accepted.values()} - {""}
        self.purged = {event.about["task_id"] for event in self.by_kind["purges"]}
        self.records = {
            task_id: record
            for task_id in service.tasks
            if (record := service.bus.stored(task_key(task_id)).record)
        }
        self.announced: dict[str, dict[str, list[Event]]] = {
            "results": defaultdict(list),
            "letters": defaultdict(list),
        }
        for event in self.by_kind["announces"]:
            self.announced[event.about["stream"]][event.about["msg_id"]].append(event)

    def of(self, what: str, task_id: str) -> list[Event]:
        return [each for each in self.by_kind[what] if each.about.get("task_id") == task_id]

    def conflicts(self) -> set[int]:
        """Return the messages whose content is not their task's."""
        several = Counter(about["task_id"] for about in self.accepted.values())
        return {
            seq
            for seq, about in self.accepted.items()
            if several[about["task_id"]] > 1
            and about["task_id"] in self.records
            and self.records[about["task_id"]].content != _content(about["payload"])
        }


def check(service: WholeService) -> list[str]:
    """Return everything in the history that breaks the promise."""
    history = History(service)
    faults = list(service.troubles)
    if not faults:
        for judge in PROMISES:
            faults += judge(history)
    return faults


def every_task_has_one_result(history: History) -> Iterator[str]:
    results = history.announced["results"]
    for task_id in history.ids - history.purged:
        yield from _one(results.get(task_key(task_id), []), f"{task_id}: result")
    for task_id in history.ids:
        record = history.records.get(task_id)
        told = results.get(task_key(task_id))
        if record and told and bytes(record.result) != told[0].about["message"].payload:
            yield f"{task_id}: the ledger has another result than was announced"


def nothing_else_is_announced(history: History) -> Iterator[str]:
    invalid = {_invalid(seq) for seq, about in history.accepted.items() if not about["task_id"]}
    known = {task_key(task_id) for task_id in history.ids} | invalid
    for msg_id in history.announced["results"].keys() - known:
        yield f"a result {msg_id!r} of no task"
    conflicts = {f"conflict:{TASK_STREAM}:{seq}" for seq in history.conflicts()}
    for msg_id in history.announced["letters"].keys() - known - conflicts:
        yield f"a dead letter {msg_id!r} of no message"


def dead_letters_are_where_the_table_says(history: History) -> Iterator[str]:
    letters = history.announced["letters"]
    for task_id, record in history.records.items():
        if not record.is_terminal:
            continue
        is_due = _result(record).error_type in WITH_DEAD_LETTER
        if is_due:
            yield from _one(letters.get(task_key(task_id), []), f"{task_id}: dead letter")
        elif task_key(task_id) in letters:
            yield f"{task_id}: a dead letter of a task that has none"
    for seq in history.conflicts():
        yield from _one(
            letters.get(f"conflict:{TASK_STREAM}:{seq}", []), f"message {seq}: dead letter"
        )
    for seq, about in history.accepted.items():
        if not about["task_id"]:
            for stream in ("results", "letters"):
                told = history.announced[stream].get(_invalid(seq), [])
                yield from _one(told, f"message {seq}: {stream}", is_recorded=False)


def results_are_stored_before_the_ack(history: History) -> Iterator[str]:
    """A conflict may go with its letter; a copy if there was another message of its task.

    That one is looked for after the copy is taken; it may be purged since.
    """
    stored: set[str] = set()
    queued: dict[int, dict[str, Any]] = {}
    seen: dict[int, dict[int, dict[str, Any]]] = {}
    conflicts = history.conflicts()
    for event in history.story:
        match event.what:
            case "publishes":
                for each in (queued, *seen.values()):
                    each[event.about["seq"]] = event.about
            case "announces":
                stored.add(f"{event.about['stream']} {event.about['msg_id']}")
            case "takes":
                seen[event.about["seq"]] = dict(queued)
            case "purges":
                del queued[event.about["seq"]]
            case "ack" | "term" if not event.about["late"]:
                seq = event.about["seq"]
                about = queued.pop(seq)
                others = {other: its for other, its in seen[seq].items() if other != seq}
                if not _may_go(history, seq, about, others, stored, conflicts):
                    yield f"message {seq} is taken off the queue before its result is stored"


def nothing_is_left(history: History) -> Iterator[str]:
    found = history.service.found
    if not found or not found.is_at_rest:
        yield f"not at rest: {found}"
    for task_id, record in history.records.items():
        may_wait = task_id in history.purged or (record.is_awaited and task_id not in history.ids)
        if not record.is_terminal and not may_wait:
            yield f"{task_id}: is {record.state} in the ledger"


def results_have_a_cause(history: History) -> Iterator[str]:
    for task_id, record in history.records.items():
        if record.is_terminal:
            yield from _outcome(history, history.service.tasks[task_id], record)


def no_lease_runs_twice(history: History) -> Iterator[str]:
    begun = Counter((e.about["task_id"], e.about["attempt"]) for e in history.by_kind["begins"])
    for (task_id, attempt), times in begun.items():
        if times > 1:
            yield f"{task_id}: attempt {attempt} was begun {times} times"


def attempts_are_counted(history: History) -> Iterator[str]:
    """Each lease is an attempt; what counts as a failure, a wait or a death has happened."""
    leases: dict[str, list[str]] = defaultdict(list)
    seen: Counter[tuple[str, str]] = Counter()
    ended = 0
    for event in history.story:
        match event.what:
            case "crashes" | "finds no model":
                seen[event.about["task_id"], event.what] += 1
            case "kills" | "loses":
                ended += 1
            case "writes":
                record: TaskRecord = event.about["record"]
                task_id, known = record.task_id, leases[record.task_id]
                if record.lease and record.lease not in known:
                    known.append(record.lease)
                if record.attempt != len(known):
                    yield f"{task_id}: attempt {record.attempt} of {len(known)} leases"
                if record.failures > seen[task_id, "crashes"]:
                    yield f"{task_id}: {record.failures} failures, and it crashed less often"
                if record.postponed > seen[task_id, "finds no model"]:
                    yield f"{task_id}: {record.postponed} waits, and the model was away less often"
                if record.deaths > ended:
                    yield f"{task_id}: {record.deaths} deaths of fewer actors"


def kept_turns_stay(history: History) -> Iterator[str]:
    """An attempt finds every turn that those before it knew to be kept."""
    kept: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    for event in history.story:
        about = event.about
        if event.what == "has kept":
            kept[about["task_id"]].append((about["attempt"], about["entry"]))
        elif event.what == "begins":
            expected = [entry for by, entry in kept[about["task_id"]] if by < about["attempt"]]
            if not set(expected) <= set(about["kept"]) or len(set(about["kept"])) < len(
                about["kept"]
            ):
                yield f"{about['task_id']}: attempt {about['attempt']} finds {about['kept']}"


def nobody_lets_go_of_a_task_that_is_his(history: History) -> Iterator[str]:
    for event in history.by_kind["settles"]:
        about = event.about
        if about["mine"] and about["how"] in {"fenced", "stale", "copy", "conflict"}:
            yield f"message {about['seq']} is {about['how']} for {event.who}, who has its task"
        if about["how"] == "stale" and about["later"]:
            yield f"message {about['seq']} is stale for {event.who}, though it came later"
        if about["how"] == "raised":
            yield f"settling message {about['seq']} raised, in {event.who}"


def who_has_lost_a_task_says_nothing(history: History) -> Iterator[str]:
    """No ack, no nak: they would reach whoever has the message by now."""
    silent = {
        (event.who, event.about["id"])
        for event in history.by_kind["settles"]
        if event.about["how"] in {"fenced", "stale"}
    }
    for verb in ("ack", "nak", "term"):
        for event in history.by_kind[verb]:
            if (event.who, event.about["id"]) in silent:
                yield f"{event.who} has lost message {event.about['seq']}, and answers {verb}"


def only_what_is_released_is_handed_out_again(history: History) -> Iterator[str]:
    """But for a supervisor that reads the ledger from a leader that lags."""
    for event in history.by_kind["gives away"]:
        if event.who.startswith("supervisor") and "lagging_reads" in history.plan.odds:
            continue
        yield f"message {event.about['seq']} is handed out again while it runs, by {event.who}"


def nobody_releases_what_a_living_actor_runs(history: History) -> Iterator[str]:
    """But for one that is silent, or that a call to was lost; a later delivery may have it."""
    if history.by_kind["freezes"] or history.by_kind["loses"]:
        return
    ended: set[str] = set()
    running: dict[str, tuple[str, Source]] = {}
    for event in history.story:
        if event.what in {"kills", "ends"}:
            ended.add(event.about["process"].name)
        elif event.what == "writes":
            record: TaskRecord = event.about["record"]
            by, source = running.pop(record.task_id, (event.who, record.source))
            is_released = record.state == "waiting" and record.source == source
            if record.state == "running":
                who = by if event.who == "operator" else event.who
                running[record.task_id] = who, record.source
            elif is_released and by != event.who and by not in ended:
                yield f"{record.task_id}: {event.who} takes it from {by}, which runs it"


def suspects_run_alone(history: History) -> Iterator[str]:
    alone = {
        held
        for event in history.by_kind["hands over"]
        if event.about["alone"]
        for held in event.about["held"]
    }
    running: dict[str, set[str]] = defaultdict(set)
    if not alone:
        return
    for event in history.story:
        if event.what == "takes":
            mine = running[event.who]
            mine.add(event.about["id"])
            if len(mine) > 1 and mine & alone:
                yield f"a suspect is not alone in {event.who}: {sorted(mine)}"
        elif event.what == "settles":
            running[event.who].discard(event.about["id"])


def nobody_waits_for_ack_wait(history: History) -> Iterator[str]:
    """While nothing gets lost, every message is handed out again by somebody's nak.

    But for what an actor takes down with it while it passes from one supervisor to the next:
    nobody listens to it then. Nor can all be known of several deaths while nobody looked.
    """
    dies_unheard = any(
        abs(kill.at_s - change.at_s) < UNHEARD_S
        for change in history.by_kind["reconfigures"]
        for kill in history.by_kind["kills"]
    )
    dies_unseen = history.by_kind["freezes"] and len(history.by_kind["kills"]) > 1
    if history.plan.gentle and not dies_unheard and not dies_unseen:
        for event in history.by_kind["has waited for ack_wait"]:
            yield f"message {event.about['seq']} comes back only after ack_wait"


def cancels_stop_what_runs(history: History) -> Iterator[str]:
    """While nothing else happens to it, a task that runs is stopped at once."""
    troubles = ("kills", "freezes", "drains", "is away")
    if not history.plan.gentle or any(history.by_kind[each] for each in troubles):
        return
    running: dict[str, bool] = {}
    due: dict[str, float] = {}
    for event in history.story:
        if event.what == "writes":
            record: TaskRecord = event.about["record"]
            running[record.task_id] = record.state == "running"
            if record.is_terminal and event.at_s > due.get(record.task_id, event.at_s):
                yield f"{record.task_id}: ran on after it was cancelled"
        elif event.what == "cancels" and running.get(event.about["task_id"]):
            due.setdefault(event.about["task_id"], event.at_s + STOPPED_AFTER_S)


def nobody_is_overtaken(history: History) -> Iterator[str]:
    """While no process ends, a message is handed out again only once it is given back."""
    if history.plan.gentle and not history.by_kind["kills"] and not history.by_kind["freezes"]:
        for event in history.by_kind["settles"]:
            if event.about["how"] in {"fenced", "stale"}:
                yield f"message {event.about['seq']} is {event.about['how']}, for no reason"


PROMISES: tuple[Callable[[History], Iterable[str]], ...] = (
    every_task_has_one_result,
    nothing_else_is_announced,
    dead_letters_are_where_the_table_says,
    results_are_stored_before_the_ack,
    nothing_is_left,
    results_have_a_cause,
    no_lease_runs_twice,
    attempts_are_counted,
    kept_turns_stay,
    nobody_lets_go_of_a_task_that_is_his,
    who_has_lost_a_task_says_nothing,
    only_what_is_released_is_handed_out_again,
    nobody_releases_what_a_living_actor_runs,
    suspects_run_alone,
    nobody_waits_for_ack_wait,
    nobody_is_overtaken,
    cancels_stop_what_runs,
)


def _one(told: list[Event], what: str, *, is_recorded: bool = True) -> Iterator[str]:
    """See that something was stored once, however often it was announced, and always the same.

    What no ledger records is made anew each time, and the duplicate window alone drops it.
    """
    times = sum(not event.about["is_copy"] for event in told)
    if times != 1:
        yield f"{what} is stored {times} times"
    if is_recorded and len({event.about["message"].payload for event in told}) > 1:
        yield f"{what} is announced in several versions"


def _may_go(
    history: History,
    seq: int,
    about: dict[str, Any],
    queued: dict[int, dict[str, Any]],
    stored: set[str],
    conflicts: set[int],
) -> bool:
    task_id = about["task_id"]
    if not task_id:
        return {f"results {_invalid(seq)}", f"letters {_invalid(seq)}"} <= stored
    if seq in conflicts:
        return f"letters conflict:{TASK_STREAM}:{seq}" in stored
    needed = {f"results {task_key(task_id)}"}
    if task_id in history.records and history.records[task_id].dead_letter:
        needed.add(f"letters {task_key(task_id)}")
    siblings = {other for other, its in queued.items() if its["task_id"] == task_id} - conflicts
    return needed <= stored or bool(siblings)


def _outcome(history: History, task: PlannedTask, record: TaskRecord) -> Iterator[str]:
    result = _result(record)
    outcome = result.error_type or "completed"
    crashes = len(history.of("crashes", task.task_id))
    is_marked = any(not e.about["ended"] for e in history.of("cancels", task.task_id))
    if is_marked and outcome != "Cancelled":
        yield f"{task.task_id}: {outcome}, though it was told to be cancelled"
    killings = len(history.by_kind["kills"]) + len(history.by_kind["loses"])
    is_rough = not history.plan.gentle
    possible = {
        "completed": task.payload_kind == "task"
        and not task.kills
        and record.failures < MAX_ATTEMPTS
        and (crashes == record.failures or is_rough or bool(killings))
        and (is_rough or not _is_too_late(task, result)),
        "Cancelled": is_marked or _is_being_cancelled(history, task),
        "InvalidTask": task.payload_kind != "task",
        "StrategyCrashed": crashes == record.failures + 1 == MAX_ATTEMPTS
        or ((is_rough or bool(killings)) and crashes >= record.failures + 1 == MAX_ATTEMPTS),
        "PoisonTask": killings >= record.deaths >= MAX_ATTEMPTS
        and (task.kills or killings - _own_killings(history) >= MAX_ATTEMPTS),
        "DeadlineExceeded": task.deadline_s is not None,
        "TaskTimeout": task.timeout_s is not None and (is_rough or task.think_s > task.timeout_s),
    }
    if not possible.get(outcome):
        yield f"{task.task_id}: {outcome} ({result.error}) of {task} and {record}"


def _is_too_late(task: PlannedTask, result: AgentResult) -> bool:
    """Tell whether a limit was over by the end of the attempt that did it all."""
    late_s = (result.timestamp - NOON).total_seconds()
    is_over = task.deadline_s is not None and late_s > task.deadline_s + 0.1
    takes_too_long = task.timeout_s is not None and task.think_s > task.timeout_s
    return not task.turns and task.think_s > 0.1 and (is_over or takes_too_long)


def _is_being_cancelled(history: History, task: PlannedTask) -> bool:
    """Tell whether a mark was written whose writer was never answered, or tried again later."""
    return any(
        event.about["record"].cancelled and event.about["record"].task_id == task.task_id
        for event in history.by_kind["writes"]
    )


def _own_killings(history: History) -> int:
    return sum(task.kills for task in history.plan.tasks) and len(history.by_kind["kills"])


def _result(record: TaskRecord) -> AgentResult:
    return msgspec.json.decode(record.result, type=AgentResult)


def _invalid(seq: int) -> str:
    return f"invalid:{TASK_STREAM}:{seq}"


def _content(payload: bytes) -> str:
    message = Delivery(
        subject=SUBJECT, reply="", payload=payload, headers={}, stream=TASK_STREAM, source=UNQUEUED
    )
    return read(message, max_payload_bytes=MAX_PAYLOAD_BYTES).content
