"""What a test run came to, read from what its program writes: counts where it tells any.

Tests can write anything, so the counts are a convenience; whether the run succeeded is told by
the exit code.
"""

import re
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct

Outcome = Literal["passed", "failed", "error", "timeout"]


class Counts(Struct, frozen=True, kw_only=True):
    """How many tests ended how; `errors` are those that could not run as they should."""

    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: int = 0

    @property
    def ran(self) -> int:
        """How many there were."""
        return self.passed + self.failed + self.errors + self.skipped


class RunResult(Struct, frozen=True, kw_only=True):
    """One entry of `artifacts.tests`; a count is None where the program told none."""

    tool: str
    outcome: Outcome
    exit_code: int
    duration_s: float
    passed: int | None = None
    failed: int | None = None
    errors: int | None = None
    skipped: int | None = None


_PYTEST_SUMMARY = re.compile(
    r"^=*[ ]?((?:\d+[ ][a-z]+(?:,[ ])?)+|no[ ]tests[ ]ran)[ ]in[ ][\d.]+s", re.MULTILINE
)
_PYTEST_WORDS = {
    "passed": "passed",
    "xpassed": "passed",
    "failed": "failed",
    "error": "errors",
    "errors": "errors",
    "skipped": "skipped",
    "xfailed": "skipped",
}


def pytest_counts(text: str) -> Counts | None:
    """Read the last line of pytest."""
    summaries = _PYTEST_SUMMARY.findall(text)
    if not summaries:
        return None
    counts = dict.fromkeys(_PYTEST_WORDS.values(), 0)
    for number, word in re.findall(r"(\d+) ([a-z]+)", summaries[-1]):
        if word in _PYTEST_WORDS:
            counts[_PYTEST_WORDS[word]] += int(number)
    return Counts(**counts)


_CARGO_SUMMARY = re.compile(
    r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;", re.MULTILINE
)


def cargo_counts(text: str) -> Counts | None:
    """Add up the summaries of cargo's test programs: one of each."""
    found = [[int(number) for number in line] for line in _CARGO_SUMMARY.findall(text)]
    if not found:
        return None
    passed, failed, skipped = (sum(column) for column in zip(*found, strict=True))
    return Counts(passed=passed, failed=failed, skipped=skipped)


# node --test, as TAP (#) or for people (an i in a circle); jest and vitest; mocha.
_NODE = {
    name: re.compile(rf"^[#\u2139] {word} (\d+)$", re.MULTILINE)
    for name, word in (("passed", "pass"), ("failed", "fail"), ("skipped", "skipped"))
}
_NODE_CANCELLED = re.compile(r"^[#\u2139] cancelled (\d+)$", re.MULTILINE)
_JEST = re.compile(r"^\s*Tests:?\s+((?:\d+ \w+[,| ]*)+)", re.MULTILINE)
_MOCHA = {
    name: re.compile(rf"^\s+(\d+) {word}\b", re.MULTILINE)
    for name, word in (("passed", "passing"), ("failed", "failing"), ("skipped", "pending"))
}


def javascript_counts(text: str) -> Counts | None:
    """Read the summary of node's test runner, of jest and vitest, or of mocha."""
    if _NODE["passed"].search(text):
        counts = _last(_NODE, text)
        return Counts(**counts, errors=_last({"errors": _NODE_CANCELLED}, text)["errors"])
    if jest := _JEST.findall(text):
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", jest[-1])}
        return Counts(
            passed=counts.get("passed", 0),
            failed=counts.get("failed", 0),
            skipped=counts.get("skipped", 0) + counts.get("todo", 0),
        )
    return Counts(**_last(_MOCHA, text)) if _MOCHA["passed"].search(text) else None


def _last(patterns: dict[str, re.Pattern[str]], text: str) -> dict[str, int]:
    found = {name: pattern.findall(text) for name, pattern in patterns.items()}
    return {name: int(numbers[-1]) if numbers else 0 for name, numbers in found.items()}


def any_counts(text: str) -> Counts | None:
    """Read whichever summary there is: make runs something that it does not name."""
    return pytest_counts(text) or cargo_counts(text) or javascript_counts(text)


class GoEvent(Struct, frozen=True, rename=str.capitalize):
    """A line of `go test -json`; see `go doc test2json`."""

    action: str
    package: str = ""
    test: str = ""
    output: str = ""


_GO_ENDS = {"pass": "passed", "fail": "failed", "skip": "skipped"}


def go_report(text: str) -> tuple[str, Counts]:
    """Return what a reader wants of `go test -json`, without the tests that passed; and counts."""
    lines = [_go_event(line) for line in text.splitlines()]
    ends = {
        (event.package, event.test): _GO_ENDS[event.action]
        for event in lines
        if isinstance(event, GoEvent) and event.test and event.action in _GO_ENDS
    }
    words = "".join(
        line if isinstance(line, str) else line.output
        for line in lines
        if isinstance(line, str) or ends.get((line.package, line.test), "failed") == "failed"
    )
    return words, _counted(ends.values())


def _go_event(line: str) -> GoEvent | str:
    try:
        return msgspec.json.decode(line, type=GoEvent)
    except msgspec.DecodeError:
        return f"{line}\n"


def _counted(ends: Iterable[str]) -> Counts:
    counts: dict[str, Any] = dict.fromkeys(_GO_ENDS.values(), 0)
    for end in ends:
        counts[end] += 1
    return Counts(**counts)
