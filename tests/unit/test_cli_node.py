"""How a node is left, over a scripted cluster: what `drain --node` waits for, and for how long."""

from collections.abc import Sequence
from typing import TypeVar

import pytest

from agent_actors.cli import node
from agent_actors.errors import ServiceUnreachable

T = TypeVar("T")
Answer = Sequence[str] | ServiceUnreachable
SILENT = ServiceUnreachable("the supervisor does not answer")


class ScriptedNodes:
    """Nodes of which a script tells, an entry each time that somebody asks, or longer."""

    def __init__(
        self, left: Sequence[Answer] = ([],), *, others_leave: Sequence[bool] = (False,)
    ) -> None:
        self.closed_for: float | None = None
        self.graces: list[float] = []
        self._left = list(left)
        self._others_leave = list(others_leave)

    def close_this(self, grace_s: float) -> None:
        self.closed_for = grace_s

    def others_leave(self) -> bool:
        return _next(self._others_leave)

    def left(self, grace_s: float) -> list[str]:
        self.graces.append(grace_s)
        answer = _next(self._left)
        if isinstance(answer, ServiceUnreachable):
            raise answer
        return list(answer)


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, pause_s: float) -> None:
        self.now += pause_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(node, "time", clock)
    return clock


def _next(answers: list[T]) -> T:
    return answers.pop(0) if len(answers) > 1 else answers[0]


def test_a_node_is_closed_and_waited_for_until_nobody_is_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
):
    here = ["dev-0", "supervisor"]
    nodes = ScriptedNodes([here, here, SILENT, ["supervisor"], []])
    node._leave(nodes, 60.0)
    assert nodes.closed_for == 60.0
    assert nodes.graces == [60.0, 59.5, 59.0, 58.5, 58.0]
    assert capsys.readouterr().err.splitlines() == [
        "Leaving this node: dev-0, supervisor.",
        "Leaving this node: supervisor.",
        "Nothing of the service is on this node.",
    ]


def test_who_stays_beyond_the_time_of_grace_is_told(clock: Clock):
    nodes = ScriptedNodes([["dev-0"]])
    with pytest.raises(ServiceUnreachable, match="dev-0: still on this node"):
        node._leave(nodes, 60.0)
    assert nodes.graces[-1] == 0.0
    assert clock.now == pytest.approx(100 + 60 + node.MARGIN_S, abs=1)


def test_a_supervisor_that_does_not_come_back_is_told(clock: Clock):
    nodes = ScriptedNodes([["dev-0"], SILENT])
    with pytest.raises(ServiceUnreachable, match="does not answer"):
        node._leave(nodes, 600.0)
    assert clock.now == pytest.approx(100 + node.LOST_AFTER_S, abs=2)


def test_the_head_stays_until_all_others_are_left(clock: Clock, capsys: pytest.CaptureFixture[str]):
    begin = int(node.OTHERS_BEGIN_WITHIN_S / node.ASK_EVERY_S)
    nodes = ScriptedNodes(others_leave=[False, True, False, *[True] * begin, False])
    node._wait_for_others(nodes, 60.0)
    assert clock.now == 100 + (begin + 3) * node.ASK_EVERY_S
    assert capsys.readouterr().err == "The head stays while other nodes are being drained.\n"


def test_a_head_alone_waits_only_to_see_whether_others_begin(clock: Clock):
    node._wait_for_others(ScriptedNodes(), 60.0)
    assert clock.now == pytest.approx(100 + node.OTHERS_BEGIN_WITHIN_S, abs=1)


def test_the_head_waits_no_longer_than_it_may(clock: Clock):
    node._wait_for_others(ScriptedNodes(others_leave=[True]), 60.0)
    assert clock.now == pytest.approx(160, abs=1)
