"""What the user reads: a line now and then, tables at the end, the whole story of a broken task."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import msgspec
from chaos.history import History
from chaos.invariants import INVARIANTS, Violation

SHOWN_TASKS = 5
SHOWN_MORE = 40
SHOWN_LOG_LINES = 30


def summary(history: History, violations: Sequence[Violation]) -> Iterator[str]:
    """Yield the lines of the table at the end."""
    results = Counter(result.outcome for result in history.announced)
    tasks = {each.result_id for each in history.published}
    attempts = Counter(record.attempt for record in history.records)
    yield ""
    yield from _row("tasks", f"{len(tasks)} in {len(history.published)} messages")
    yield from _row("results", _counts(results))
    yield from _row("dead letters", _counts(Counter(each.reason for each in history.buried)))
    again = sum(count for attempt, count in attempts.items() if attempt > 1)
    yield from _row(
        "attempts", f"{again} tasks took more than one, at most {max(attempts, default=0)}"
    )
    yield from _row("model", f"{len(history.requests)} requests")
    yield from _row("faults", _counts(Counter(fault.kind for fault in history.faults)))
    broken = Counter(violation.invariant for violation in violations)
    for name, judge in INVARIANTS.items():
        promise = (judge.__doc__ or "").strip().partition("\n")[0]
        verdict = f"BROKEN {broken[name]} times" if broken[name] else "holds"
        yield f"  {verdict:18} {promise}"


def story(history: History, task_id: str) -> list[str]:
    """Return all that is known of a task, in the order of time, with the faults meanwhile."""
    seqs = {each.seq for each in history.published if each.result_id == task_id}
    lines = [
        *((e.at_s, f"published as message {e.seq} ({e.kind})") for e in history.published
          if e.seq in seqs),
        *((e.at_s, f"message {e.seq} delivered to {e.to}, time {e.num_delivered}")
          for e in history.delivered if e.seq in seqs),
        *((e.at_s, f"{e.verb} of message {e.seq} by {e.by}") for e in history.acked
          if e.seq in seqs),
        *((e.at_s, f"ledger: {e.state}, attempt {e.attempt}, {e.agent_id}; asked by {e.by}")
          for e in history.ledger_writes if e.task_id == task_id),
        *((e.at_s, f"{e.stream}: {e.by} knows that {e.msg_id} is stored")
          for e in history.confirmed if e.task_id == task_id),
        *((e.at_s, f"cancel answered: {e.answer}") for e in history.cancels
          if e.task_id == task_id),
        *((e.at_s, f"model asked ({e.conversation}): {_asked(e.status, e.fault, e.aborted)}")
          for e in history.requests if e.task_id == task_id),
        *((e.at_s, f"result {e.seq} stored: {e.outcome}, attempt {e.attempt} {e.error}")
          for e in history.announced if e.task_id == task_id),
        *((e.at_s, f"dead letter {e.seq} stored: {e.reason} of message {e.source_seq} {e.error}")
          for e in history.buried if e.task_id == task_id or e.source_seq in seqs),
    ]  # fmt: skip
    begin_s, end_s = min(lines, default=(0.0, ""))[0], max(lines, default=(0.0, ""))[0]
    for fault in history.faults:
        if fault.begin_s <= end_s and fault.end_s >= begin_s:
            lines.append((fault.begin_s, f"    FAULT {fault.kind} ({fault.detail})"))
            lines.append((fault.end_s, f"    healed: {fault.kind}"))
    found = [record for record in history.records if record.task_id == task_id]
    ends = [f"{'':9}  ledger at the end: {each.state}, attempt {each.attempt}" for each in found]
    return [f"{at_s:9.3f}  {what}" for at_s, what in sorted(lines)] + ends


def broken(violations: Sequence[Violation]) -> Iterator[tuple[str, list[str]]]:
    """Yield the first few tasks that broke something, each with what it broke."""
    by_task = sorted(violations, key=lambda each: each.task_id)
    groups = groupby(by_task, key=lambda each: each.task_id)
    for task_id, group in [(key, list(each)) for key, each in groups][:SHOWN_TASKS]:
        yield task_id, [f"{each.invariant}: {each.what}" for each in group][:SHOWN_MORE]


def table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the rows with their columns below each other."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  " + "  ".join(cells).rstrip()


def tell_numbers(numbers: object, json_file: Path | None) -> None:
    """Print the numbers as JSON, and write them to the file if there is one."""
    text = msgspec.json.encode(numbers).decode()
    say(f"\n{text}")
    if json_file:
        json_file.write_text(text + "\n")


def say(line: str) -> None:
    """Tell the user, wherever others' prints may go."""
    print(line, file=sys.__stdout__, flush=True)


def _row(name: str, text: str) -> Iterator[str]:
    yield f"  {name:18} {text}"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"


def _asked(status: int, fault: str, aborted: bool) -> str:  # noqa: FBT001 - three facts of one request
    told = f"status {status}" if status else "no answer"
    return " ".join([told, f"fault {fault}" * bool(fault), "aborted" * aborted]).strip()
