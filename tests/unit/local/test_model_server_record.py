import asyncio

from agent_actors.local.model_server.record import RequestRecord
from agent_actors.local.model_server.wire import ChatRequest, Message


def arrive(record: RequestRecord, task: str) -> None:
    seen = record.arrived(headers={}, body=b'{"x": 1}')
    seen.chat = ChatRequest(messages=[Message(role="user", content=task)])


def test_only_the_last_requests_are_kept_but_all_are_counted():
    record = RequestRecord(keep=2)
    for task in ("a", "b", "c"):
        arrive(record, task)
    assert [seen.task for seen in record] == ["b", "c"]
    assert [seen.number for seen in record] == [2, 3]
    assert (record.total, len(record), record[-1].task) == (3, 2, "c")


def test_the_summary_counts_tasks_and_conversations():
    record = RequestRecord(keep=10)
    for task in ("a", "b", "a"):
        arrive(record, task)
    summary = record.summary(last=1)
    assert summary["by_task"] == {"a": 2, "b": 1}
    assert sorted(summary["by_conversation"].values()) == [1, 2]
    assert [seen["task"] for seen in summary["last"]] == ["a"]
    assert summary["last"][0]["body"] == '{"x": 1}'
    assert record.summary(last=0)["last"] == []


def test_a_refused_body_counts_as_a_request_for_no_task():
    record = RequestRecord(keep=10)
    seen = record.arrived(headers={}, body=b"\xff")
    assert (seen.task, seen.conversation) == ("", "")
    assert record.summary(last=1)["by_task"] == {}


async def test_a_condition_is_waited_for():
    record = RequestRecord(keep=10)
    waiting = asyncio.create_task(record.until(lambda seen: seen.total == 2))
    arrive(record, "a")
    await asyncio.sleep(0)  # one turn of the loop: it has looked and gone on waiting
    assert not waiting.done()
    arrive(record, "b")
    await asyncio.wait_for(waiting, 5)
