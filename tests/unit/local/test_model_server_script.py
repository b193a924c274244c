from pathlib import Path

import pytest

from agent_actors.errors import ConfigError
from agent_actors.local.model_server.faults import Fault
from agent_actors.local.model_server.script import (
    Rule,
    Script,
    ScriptedReply,
    ScriptPlayer,
    When,
    load_script,
)
from agent_actors.local.model_server.wire import ChatRequest, Message


def asked(task: str, system: str = "You are a developer") -> ChatRequest:
    return ChatRequest(
        messages=[
            Message(role="system", content=system),
            Message(role="user", content=f"# Task\n\n{task}"),
        ]
    )


def said(player: ScriptPlayer, *tasks: str) -> list[str | None]:
    return [player.reply_to(asked(task)).content for task in tasks]


def reply(content: str, times: int | None = None) -> ScriptedReply:
    return ScriptedReply(content=content, times=times)


def test_replies_come_in_order_and_then_the_default():
    script = Script(replies=(reply("one"), reply("two", times=2)), default=reply("rest"))
    assert said(ScriptPlayer(script), *"abcde") == ["one", "two", "two", "rest", "rest"]


def test_without_a_default_the_rest_is_left_to_the_simulation():
    assert ScriptPlayer(Script()).reply_to(asked("a")) == ScriptedReply()


def test_a_rule_comes_before_the_list_and_uses_none_of_it_up():
    script = Script(
        rules=(Rule(when=When(task="tree"), reply=reply("leaves")),), replies=(reply("one"),)
    )
    assert said(ScriptPlayer(script), "a tree", "a list", "a tree") == ["leaves", "one", "leaves"]


def test_the_first_rule_that_matches_wins_as_long_as_it_has_turns_left():
    script = Script(
        rules=(
            Rule(when=When(task="tree"), reply=reply("first", times=1)),
            Rule(when=When(), reply=reply("second")),
        )
    )
    assert said(ScriptPlayer(script), "tree", "tree", "list") == ["first", "second", "second"]


def test_a_rule_can_be_for_the_nth_request():
    script = Script(rules=(Rule(when=When(request=2), reply=reply("hit")),))
    assert said(ScriptPlayer(script), "a", "b", "c") == [None, "hit", None]


def test_a_rule_can_be_for_the_nth_time_that_a_conversation_is_sent():
    script = Script(rules=(Rule(when=When(repeat=1), reply=reply("new")),), default=reply("again"))
    assert said(ScriptPlayer(script), "a", "b", "a", "b") == ["new", "new", "again", "again"]


def test_a_rule_can_be_for_a_text_anywhere_and_a_task_is_only_the_task():
    rules = (
        Rule(when=When(task="developer"), reply=reply("task")),
        Rule(when=When(text="developer"), reply=reply("text")),
    )
    assert said(ScriptPlayer(Script(rules=rules)), "sort", "ask a developer") == ["text", "task"]


def test_all_that_a_rule_says_must_hold():
    script = Script(rules=(Rule(when=When(task="tree", request=2), reply=reply("hit")),))
    assert said(ScriptPlayer(script), "tree", "list") == [None, None]
    assert said(ScriptPlayer(script), "list", "tree") == [None, "hit"]


YAML = """
replies:
  - content: "A first answer"
  - status: 429
    headers: {Retry-After: "1"}
    error: {message: "slow down", type: "Too Many Requests", param: null, code: 429}
    times: 2
  - tool_calls: [{name: write_file, arguments: {path: a.py, content: "x = 1"}}]
rules:
  - when: {task: "binary search", repeat: 1}
    reply: {fault: hang}
  - when: {text: "OWASP", request: 7}
    reply: {content: "Cut", finish_reason: length, delay_ms: 250,
            usage: {prompt_tokens: 10, completion_tokens: 2}}
default: {content: "Anything else"}
"""


def test_a_file_says_all_of_it(tmp_path: Path):
    file = tmp_path / "script.yaml"
    file.write_text(YAML)
    script = load_script(file)
    first, error, calls = script.replies
    assert first.content == "A first answer"
    assert (error.status, error.headers, error.times) == (429, {"Retry-After": "1"}, 2)
    assert calls.tool_calls[0].arguments == {"path": "a.py", "content": "x = 1"}
    hang, cut = script.rules
    assert (hang.when.task, hang.when.repeat, hang.reply.fault) == ("binary search", 1, Fault.HANG)
    assert (cut.reply.finish_reason, cut.reply.delay_ms) == ("length", 250)
    assert cut.reply.usage.completion_tokens == 2
    assert script.default.content == "Anything else"


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("rules: [{when: {task: x}, reply: {fault: flood}}]", "rules[0].reply.fault", "flood"),
        ("replies: [{contents: x}]", "replies[0]", "unknown field `contents`"),
        ("replies: [{content: 5}]", "replies[0].content", "Expected `str | null`, got `int`"),
        ("replies: [{status: 200}]", "replies[0].status", ">= 400"),
        ("replies: [{status: 503, content: x}]", "replies[0]", "`status` is an error"),
        ("replies: [{error: boom}]", "replies[0]", "`error` needs a `status`"),
        ("replies: [{content: x, times: 0}]", "replies[0].times", ">= 1"),
        ("rules: [{reply: {content: x}}]", "rules[0]", "missing required field `when`"),
        ("replies: [", "the file", "flow"),
        ("- a", "the file", "Expected `object`"),
    ],
)
def test_a_wrong_file_is_told_with_its_name_and_the_place(
    tmp_path: Path, text: str, place: str, problem: str
):
    file = tmp_path / "script.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as wrong:
        load_script(file)
    assert str(wrong.value).startswith(f"{file}: {place}: ")
    assert problem in str(wrong.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file"):
        load_script(tmp_path / "gone.yaml")
