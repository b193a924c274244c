"""What must lie in JetStream, and which changes to it would lose something."""

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_actors.adapters.jetstream.connection import ApiError, Connection
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.adapters.jetstream.wanted import (
    FoundStream,
    WantedStream,
    covers,
    differences,
    losses,
    wanted_consumers,
    wanted_streams,
)
from agent_actors.config import Config, PoolConfig, StreamsConfig
from agent_actors.contract import subjects_overlap
from agent_actors.errors import StreamMissing

NOW = datetime(2026, 5, 1, tzinfo=UTC)
SECOND = 1_000_000_000


def wanted(name: str, **settings) -> WantedStream:
    streams = wanted_streams(Config(streams=StreamsConfig(**settings)))
    return next(stream for stream in streams if stream.name == name)


def found(config: dict, **state) -> FoundStream:
    defaults = {"messages": 0, "bytes": 0, "subjects": 0, "oldest": NOW}
    return FoundStream(config=config, **(defaults | state))


def test_the_task_queue_keeps_everything_until_it_is_answered():
    config = wanted("AGENT_TASKS").config
    assert config["subjects"] == ["agent.tasks.>"]
    assert (config["retention"], config["discard"], config["storage"]) == (
        "workqueue",
        "new",
        "file",
    )
    assert config["max_age"] == 0


def test_responses_and_dead_letters_are_kept_for_days_and_told_apart_by_their_id():
    responses, letters = wanted("AGENT_RESPONSES").config, wanted("AGENT_DEADLETTER").config
    assert responses["subjects"] == ["agent.response.completed", "agent.response.failed"]
    assert letters["subjects"] == ["agent.deadletter.>"]
    assert responses["max_age"] == 7 * 86_400 * SECOND
    assert letters["max_age"] == 30 * 86_400 * SECOND
    assert responses["duplicate_window"] == letters["duplicate_window"] == 3600 * SECOND


def test_the_ledger_is_a_bucket_read_from_its_leader():
    ledger = wanted("agent_ledger")
    assert ledger.stream == "KV_agent_ledger"
    assert ledger.config["subjects"] == ["$KV.agent_ledger.>"]
    assert ledger.config["max_msgs_per_subject"] == 1
    assert ledger.config["allow_direct"] is False
    assert ledger.config["max_age"] == wanted("AGENT_RESPONSES").config["max_age"]


def test_no_duplicate_window_is_longer_than_the_age():
    for stream in wanted_streams(
        Config(
            streams=StreamsConfig(
                responses_max_age_s=60, deadletter_max_age_s=60, artifacts_max_age_s=60
            )
        )
    ):
        if stream.config["max_age"]:
            assert stream.config["duplicate_window"] <= stream.config["max_age"]


def test_sizes_and_replicas_come_from_the_configuration():
    streams = StreamsConfig(
        replicas=3,
        tasks_max_bytes=1,
        responses_max_bytes=2,
        deadletter_max_bytes=3,
        ledger_max_bytes=4,
        artifacts_max_bytes=5,
    )
    configs = {stream.name: stream.config for stream in wanted_streams(Config(streams=streams))}
    assert {name: config["max_bytes"] for name, config in configs.items()} == {
        "AGENT_TASKS": 1,
        "AGENT_RESPONSES": 2,
        "AGENT_DEADLETTER": 3,
        "agent_ledger": 4,
        "agent_config": -1,
        "agent_artifacts": 5,
    }
    assert {config["num_replicas"] for config in configs.values()} == {3}


def test_each_pool_has_a_consumer_that_neither_counts_nor_limits():
    pools = {"dev": PoolConfig(subjects=("agent.tasks.dev", "agent.tasks.qa"), ack_wait_s=45)}
    consumer = wanted_consumers(Config(pools=pools))["dev"]
    assert consumer["durable_name"] == "dev"
    assert consumer["filter_subjects"] == ["agent.tasks.dev", "agent.tasks.qa"]
    assert consumer["ack_wait"] == 45 * SECOND
    assert consumer["max_deliver"] == consumer["max_ack_pending"] == -1
    assert not consumer["backoff"]


def test_what_the_server_leaves_out_and_what_we_do_not_set_is_no_difference():
    now = {"max_age": 5, "subjects": ["b", "a"], "placement": {"cluster": "east"}}
    assert not differences(now, {"max_age": 5, "subjects": ["a", "b"], "allow_direct": False})
    assert [str(change) for change in differences(now, {"max_age": 5 * SECOND})] == [
        "max_age: 5e-09 s -> 5 s"
    ]


@pytest.mark.parametrize(
    ("name", "settings", "was", "state", "words"),
    [
        (
            "AGENT_RESPONSES",
            {"responses_max_age_s": 3600.0},
            {"max_age": 7200 * SECOND},
            {"messages": 12, "oldest": NOW - timedelta(seconds=3700)},
            ["7200 s -> 3600 s", "oldest of 12 stored", "streams.responses_max_age_s"],
        ),
        (
            "AGENT_TASKS",
            {"tasks_max_bytes": 1000},
            {"max_bytes": -1},
            {"messages": 1, "bytes": 1001},
            ["max_bytes: no limit -> 1000", "1001 bytes are stored", "streams.tasks_max_bytes"],
        ),
        ("AGENT_TASKS", {}, {"retention": "limits"}, {}, ["limits -> workqueue", "back it up"]),
        ("AGENT_TASKS", {}, {"storage": "memory"}, {}, ["memory -> file", "cannot be changed"]),
        (
            "agent_ledger",
            {},
            {"max_msgs_per_subject": 5},
            {"messages": 3, "subjects": 2},
            ["bucket agent_ledger", "max_msgs_per_subject: 5 -> 1", "2 messages"],
        ),
        (
            "AGENT_RESPONSES",
            {},
            {"subjects": ["agent.response.*"]},
            {"messages": 2, "counts": {"agent.response.failed": 1, "agent.response.odd": 1}},
            ["subjects: agent.response.* ->", "1 messages are stored on subjects that would go"],
        ),
    ],
)
def test_a_change_that_would_lose_messages_is_told(name, settings, was, state, words):
    stream = wanted(name, **settings)
    (reason,) = losses(found(stream.config | was, **state), stream, NOW)
    assert name in reason
    for word in words:
        assert word in reason


@pytest.mark.parametrize(
    ("name", "settings", "was", "state"),
    [
        (
            "AGENT_RESPONSES",
            {"responses_max_age_s": 3600.0},
            {"max_age": 7200 * SECOND},
            {"messages": 12, "oldest": NOW - timedelta(seconds=3500)},
        ),
        ("AGENT_RESPONSES", {}, {"max_age": SECOND}, {"messages": 1, "oldest": NOW}),
        ("AGENT_TASKS", {"tasks_max_bytes": 1000}, {"max_bytes": -1}, {"bytes": 1000}),
        ("AGENT_TASKS", {}, {"max_bytes": 10}, {"bytes": 10}),
        ("agent_ledger", {}, {"max_msgs_per_subject": 5}, {"messages": 2, "subjects": 2}),
        ("AGENT_RESPONSES", {}, {"subjects": ["agent.response.odd"]}, {"messages": 0}),
        ("AGENT_TASKS", {"replicas": 3}, {"num_replicas": 1}, {"messages": 9}),
    ],
)
def test_a_change_that_loses_nothing_is_let_through(name, settings, was, state):
    stream = wanted(name, **settings)
    assert differences(stream.config | was, stream.config)
    assert not losses(found(stream.config | was, **state), stream, NOW)


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.>", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.>", "a.>", True),
        ("a.>", "a.*", True),
        ("a.*", "a.b", True),
        ("a.*", "a.*", True),
        ("a.*", "a.>", False),
        ("a.*", "a.b.c", False),
        ("a.b", "a.*", False),
        ("a.b", "a.b", True),
        ("a.b.c", "a.b", False),
        (">", "a.b", True),
    ],
)
def test_a_pattern_covers_what_it_matches_all_of(pattern, subject, expected):
    assert covers(pattern, subject) is expected


PATTERNS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3).flatmap(
    lambda parts: st.sampled_from([".".join(parts), ".".join([*parts, ">"])])
)
SUBJECTS = [".".join(parts) for size in range(1, 6) for parts in product("abc", repeat=size)]


@given(wide=PATTERNS, narrow=PATTERNS)
def test_covering_is_to_match_whatever_the_other_matches(wide, narrow):
    matched = [subject for subject in SUBJECTS if subjects_overlap(narrow, subject)]
    assert covers(wide, narrow) == all(subjects_overlap(wide, subject) for subject in matched)


class StartingJetStream:
    """An empty JetStream whose cluster has no leader until it was asked to make something."""

    def __init__(self, *, asks_before_ready: int) -> None:
        self.left = asks_before_ready
        self.made: list[str] = []

    async def api(self, request: str, payload: bytes, timeout_s: float) -> dict[str, Any]:
        if not request.startswith(("STREAM.CREATE", "CONSUMER.CREATE")):
            raise StreamMissing(request)
        if self.left:
            self.left -= 1
            raise ApiError("temporarily unavailable", code=503, err_code=10008)
        self.made.append(request)
        return {}


async def test_a_cluster_that_just_starts_is_asked_again():
    starting = StartingJetStream(asks_before_ready=2)
    changes = await provision(cast("Connection", starting), Config())
    assert len(starting.made) == len(changes) == 7


async def test_a_cluster_that_does_not_start_is_given_up_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agent_actors.adapters.jetstream.streams.ALL_ANSWERS_TIMEOUT_S", 0.1)
    starting = StartingJetStream(asks_before_ready=1_000)
    with pytest.raises(ApiError, match="temporarily unavailable"):
        await provision(cast("Connection", starting), Config())
    assert starting.left > 900
