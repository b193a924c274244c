"""Who is left on a node, by what supervisors say, and by what is left of them when they do not."""

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
        self.actors: list[str] = []
        self.nodes = Nodes.__new__(Nodes)
        self.nodes._namespace, self.nodes._left = "n", {}

    def left(self) -> list[str]:
        return self.nodes.left("a", 60)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(ray_nodes, "supervisors_in", lambda _: list(cluster.answers))
    monkeypatch.setattr(ray_nodes, "actors_in", lambda _: cluster.actors)
    monkeypatch.setattr(cluster.nodes, "_asked", lambda name, *_: cluster.answers[name])
    return cluster


def test_nobody_is_left_where_there_is_no_supervisor(cluster: Cluster):
    assert cluster.left() == []


def test_each_supervisor_that_answers_is_heard(cluster: Cluster):
    cluster.answers = {OLD: ["dev-0", "n/supervisor"], NEW: ["dev-1"]}
    assert cluster.left() == ["dev-0", "dev-1", "n/supervisor"]
    cluster.answers = {OLD: [], NEW: SILENT}
    assert cluster.left() == []


@pytest.mark.parametrize("answer", [GONE, SILENT], ids=["gone", "silent"])
def test_one_that_never_answered_says_nothing_about_the_node(cluster: Cluster, answer: Answer):
    cluster.answers = {OLD: answer}
    with pytest.raises(ServiceUnreachable, match="the supervisor does not answer"):
        cluster.left()


def test_one_that_has_left_and_found_no_place_leaves_whoever_is_there_still(cluster: Cluster):
    cluster.answers = {OLD: ["dev-0", "dev-1", "n/supervisor"]}
    cluster.left()
    cluster.answers, cluster.actors = {OLD: GONE}, ["dev-1", "dev-7"]
    assert cluster.left() == ["dev-1"]
    cluster.actors = []
    assert cluster.left() == []


def test_one_that_is_silent_has_not_left(cluster: Cluster):
    cluster.answers = {OLD: ["n/supervisor"]}
    cluster.left()
    cluster.answers = {OLD: SILENT}
    with pytest.raises(ServiceUnreachable, match="the supervisor does not answer"):
        cluster.left()
