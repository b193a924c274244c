"""What the model is told about a task."""

from typing import Any

import pytest

from agent_actors.contract import AgentRole, AgentTask, constraints_of
from agent_actors.ports import AgentConfig, ExecutionRequest
from agent_actors.strategies.prompts import ALTERNATIVE, ROLE_PROMPTS, RULES, messages


def request(
    constraints: dict[str, Any] | None = None,
    *,
    role: str = "DEV",
    prompt: str = "",
    description: str = "Implement a queue",
    diversity: bool = False,
) -> ExecutionRequest:
    task = AgentTask(
        task_id="t-1",
        task_description=description,
        constraints=constraints or {},
        diversity=diversity,
    )
    return ExecutionRequest(
        task=task,
        constraints=constraints_of(task),
        agent=AgentConfig(agent_id="a-1", role=role, prompt=prompt),
        timeout_s=1.0,
    )


def system(asked: ExecutionRequest) -> str:
    return messages(asked)[0].content or ""


def user(asked: ExecutionRequest) -> str:
    return messages(asked)[1].content or ""


def test_there_is_a_system_message_and_a_user_message():
    assert [message.role for message in messages(request())] == ["system", "user"]


@pytest.mark.parametrize("role", list(AgentRole))
def test_each_built_in_role_has_a_prompt_of_its_own(role: AgentRole):
    assert system(request(role=role)) == f"{ROLE_PROMPTS[role]}\n\n{RULES}"
    assert len(set(ROLE_PROMPTS.values())) == len(AgentRole)


def test_a_built_in_role_is_known_in_any_case():
    assert system(request(role="devops")) == system(request(role="DEVOPS"))


def test_another_role_gets_a_generic_prompt_that_names_it():
    assert "working in the role LEGAL." in system(request(role="LEGAL"))


def test_the_prompt_of_the_configuration_comes_before_the_built_in_one():
    assert system(request(prompt="You write haiku.")) == f"You write haiku.\n\n{RULES}"


def test_a_task_alone_is_told_alone():
    assert user(request()) == "# Task\n\nImplement a queue"


def test_everything_that_belongs_to_the_task_is_told_in_a_fixed_order():
    asked = request(
        {
            "metadata": {"story_id": "s-1"},
            "language": "python",
            "context": "A web shop.",
            "requirements": ["FIFO", "thread-safe"],
            "rubric": "Correctness first.",
        }
    )
    assert user(asked) == (
        "# Rubric\n\nCorrectness first.\n\n"
        "# Requirements\n\n- FIFO\n- thread-safe\n\n"
        "# Context\n\nA web shop.\n\n"
        "# Task\n\nImplement a queue\n\n"
        "# Metadata\n\n- story_id: s-1\n\n"
        "# Further constraints\n\n- language: python"
    )


def test_lists_and_maps_are_told_as_nested_bullets():
    rubric = {
        "weights": {"correct": 0.7, "short": 0.3},
        "must": ["compile", {"pass": True, "warn": None}],
        "note": "one\n\ntwo",
        "empty": [],
    }
    assert user(request({"rubric": rubric})).split("\n\n# Task")[0] == (
        "# Rubric\n\n"
        "- weights:\n"
        "  - correct: 0.7\n"
        "  - short: 0.3\n"
        "- must:\n"
        "  - compile\n"
        "  -\n"
        "    - pass: true\n"
        "    - warn:\n"
        "- note:\n"
        "  one\n"
        "\n"
        "  two\n"
        "- empty:"
    )


@pytest.mark.parametrize("nothing", ["", "  \n", [], {}, None])
def test_a_section_with_nothing_in_it_is_left_out(nothing: Any):
    assert user(request({"rubric": nothing})) == "# Task\n\nImplement a queue"


def test_text_is_told_as_it_is_written():
    text = "Grüße:\n  def f():\n    return '{role}'"
    assert user(request(description=text)) == f"# Task\n\n{text}"


def test_the_same_request_gives_the_same_text():
    constraints = {"rubric": {"b": 1, "a": 2}, "z": "1", "y": ["2", 3]}
    assert messages(request(constraints)) == messages(request(dict(constraints)))


def test_constraints_that_we_act_on_ourselves_are_not_told():
    asked = request(
        {
            "timeout": 5,
            "deadline": "2030-01-01T00:00:00Z",
            "max_operations": 3,
            "max_iterations": 3,
            "token_budget": 9,
            "abort_on_error": True,
            "workspace": {"git": "x"},
        }
    )
    assert user(asked) == "# Task\n\nImplement a queue"


def test_further_constraints_are_told_when_they_are_plain():
    asked = request(
        {
            "language": "python",
            "max_lines": 80,
            "strict": False,
            "libraries": ["attrs", "rich"],
            "unset": None,
            "nested": {"not": "plain"},
            "mixed": ["x", {"not": "plain"}],
        }
    )
    assert user(asked).endswith(
        "# Further constraints\n\n"
        "- language: python\n- max_lines: 80\n- strict: false\n"
        "- libraries:\n  - attrs\n  - rich"
    )


def test_diversity_asks_for_an_alternative_view():
    assert user(request(diversity=True)).endswith(f"# Alternative view\n\n{ALTERNATIVE}")


def test_the_model_is_told_the_schema_that_its_answer_must_fit():
    schema = {"type": "object", "required": ["name"]}
    asked = request(
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": schema},
            }
        }
    )
    assert user(asked).endswith(
        "# Answer format\n\nJSON only, valid against this JSON Schema:\n\n"
        '{"type":"object","required":["name"]}'
    )


def test_the_model_is_told_to_answer_with_an_object():
    asked = request({"response_format": {"type": "json_object"}})
    assert user(asked).endswith("# Answer format\n\nOne JSON object and nothing else.")


def test_free_text_needs_no_word_about_its_format():
    assert "Answer format" not in user(request({"response_format": {"type": "text"}}))
