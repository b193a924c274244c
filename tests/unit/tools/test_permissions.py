"""Who may what: a role has its tools, a task can only take some away."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_actors.config import RoleConfig
from agent_actors.contract import AgentRole, Constraints
from agent_actors.tools.permissions import grant

GROUPS = {
    "read_file": "files",
    "write_file": "files",
    "git_diff": "git",
    "git_commit": "git",
    "pytest": "tests",
    "http_get": "http",
    "http_post": "http",
    "db__query": "db",
}
READING = {"read_file", "git_diff", "http_get", "db__query"}
TOOLS = [
    SimpleNamespace(name=name, group=group, reads=name in READING) for name, group in GROUPS.items()
]


def permitted(role="DEV", configured=None, **constraints):
    granted = grant(role, configured, Constraints(**constraints))
    return {tool.name for tool in TOOLS if not granted.refusal(tool)}


@pytest.mark.parametrize(
    ("role", "names"),
    [
        (AgentRole.DEV, {"read_file", "write_file", "git_diff", "git_commit", "pytest"}),
        (AgentRole.QA, {"read_file", "write_file", "pytest", "http_get"}),
        (AgentRole.ARCHITECT, {"read_file", "git_diff"}),
        (
            AgentRole.DEVOPS,
            {"read_file", "write_file", "git_diff", "git_commit", "http_get", "http_post"},
        ),
        (AgentRole.DATA, {"read_file", "write_file", "pytest"}),
        (AgentRole.TASK_EXTRACTOR, {"read_file"}),
        ("LAWYER", {"read_file"}),
        ("dev", {"read_file", "write_file", "git_diff", "git_commit", "pytest"}),
    ],
)
def test_each_role_has_its_tools(role, names):
    assert permitted(role) == names


def test_the_configuration_replaces_a_roles_tools():
    assert permitted("DEV", RoleConfig(tools=("git", "db"))) == {
        "git_diff",
        "git_commit",
        "db__query",
    }


def test_the_configuration_adds_to_a_roles_tools():
    assert permitted("ARCHITECT", RoleConfig(tools=("default", "db"))) == {
        "read_file",
        "git_diff",
        "db__query",
    }


def test_an_empty_list_leaves_a_role_without_tools():
    assert permitted("DEV", RoleConfig(tools=())) == set()


def test_the_configuration_can_let_a_role_write_or_only_read():
    assert permitted("ARCHITECT", RoleConfig(mode="full")) >= {"write_file", "git_commit"}
    assert permitted("DEV", RoleConfig(mode="read-only")) == {"read_file", "git_diff"}


def test_a_task_takes_tools_away_by_name_or_group():
    assert permitted("DEV", allowed_tools=["read_file", "git"]) == {
        "read_file",
        "git_diff",
        "git_commit",
    }
    assert permitted("DEV", tool_mode="read-only") == {"read_file", "git_diff"}
    assert permitted("DEV", allowed_tools=[]) == set()


@given(
    role=st.sampled_from([*AgentRole, "LAWYER"]),
    names=st.none() | st.lists(st.sampled_from([*GROUPS, *GROUPS.values(), "default", "*"])),
    mode=st.sampled_from([None, "read-only", "full"]),
    configured=st.builds(
        RoleConfig,
        tools=st.lists(st.sampled_from([*GROUPS, *GROUPS.values(), "default"])).map(tuple),
        mode=st.sampled_from(["default", "read-only", "full"]),
    ),
)
def test_no_task_widens_what_its_role_has(role, names, mode, configured):
    asked = permitted(role, configured, allowed_tools=names, tool_mode=mode)
    assert asked <= permitted(role, configured)


@pytest.mark.parametrize(
    ("role", "asked", "tool", "reason"),
    [
        ("QA", Constraints(), "git_diff", "git_diff is not among the tools of the role QA"),
        (
            "DEV",
            Constraints(allowed_tools=["git"]),
            "pytest",
            "pytest is not among the tools that this task allows",
        ),
        (
            "ARCHITECT",
            Constraints(),
            "git_commit",
            "git_commit changes something, and this agent may only read",
        ),
    ],
)
def test_a_refusal_says_what_stands_in_the_way(role, asked, tool, reason):
    (found,) = (candidate for candidate in TOOLS if candidate.name == tool)
    assert grant(role, None, asked).refusal(found) == reason
