"""Who is left on a node: the supervisors say it, or nobody is there to say it."""

import pytest
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from agent_actors.adapters import ray_nodes
from agent_actors.adapters.ray_nodes import Nodes
from agent_actors.adapters.ray_runtime import SupervisorName
from agent_actors.errors import ServiceUnreachable

OLD, NEW = SupervisorName(1, "a"), SupervisorName(2, "b")
GONE, SILENT = ActorUnavailableError("gone", None), GetTimeoutError("silent")
Answer = list[str] | ActorUnavailableError | GetTimeoutError


class Cluster:
    """What Ray says: the supervisors there are with their answers, and the actors."""

    def __init__(self) -> None:
        self.answers: dict[SupervisorName, Answer] = {}
        self.uncared_for: list[str] = []
        self.nodes = Nodes.__new__(Nodes)
        self.nodes._namespace = "n"

    def left(self) -> list[str]:
        return self.nodes.left(60)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(ray_nodes, "supervisors_in", lambda _: list(cluster.answers))
    monkeypatch.setattr(cluster.nodes, "_stopping", lambda *_: cluster.uncared_for)
    monkeypatch.setattr(cluster.nodes, "_asked", lambda name, *_: cluster.answers[name])
    return cluster


def test_nobody_is_left_where_there_is_no_supervisor(cluster: Cluster):
    assert cluster.left() == []


def test_each_supervisor_that_answers_is_heard(cluster: Cluster):
    cluster.answers = {OLD: ["dev-0", "n/supervisor"], NEW: ["dev-1"]}
    assert cluster.left() == ["dev-0", "dev-1", "n/supervisor"]
    cluster.answers = {OLD: [], NEW: SILENT}
    assert cluster.left() == []


def test_what_no_supervisor_cares_for_is_asked_itself(cluster: Cluster):
    cluster.uncared_for = ["dev-1"]
    assert cluster.left() == ["dev-1"]
    cluster.answers = {OLD: GONE}
    assert cluster.left() == ["dev-1"]


def test_a_supervisor_that_is_silent_may_still_care(cluster: Cluster):
    cluster.answers = {OLD: GONE, NEW: SILENT}
    with pytest.raises(ServiceUnreachable, match="the supervisor does not answer: silent"):
        cluster.left()
