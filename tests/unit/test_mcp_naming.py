"""Names that a model can call, told apart whatever servers call theirs."""

import re

from hypothesis import given
from hypothesis import strategies as st

from agent_actors.adapters.mcp.naming import tool_names

SERVER_NAMES = st.from_regex(r"\A[A-Za-z0-9_-]{1,32}\Z")
TOOL_NAMES = st.text(max_size=80) | st.text(alphabet="ab_./", min_size=1, max_size=4)


def test_a_tool_is_named_after_its_server():
    assert tool_names([("db", "query")]) == {("db", "query"): "db__query"}


def test_other_characters_are_replaced():
    assert tool_names([("db", "tables.list/all ü")]) == {
        ("db", "tables.list/all ü"): "db__tables_list_all__"
    }


def test_of_two_the_one_really_called_so_keeps_the_name():
    names = tool_names([("db", "a.b"), ("db", "a_b")])
    assert names["db", "a_b"] == "db__a_b"
    assert re.fullmatch(r"db__a_b_[0-9a-f]{8}", names["db", "a.b"])


def test_tools_of_two_servers_are_told_apart():
    names = tool_names([("a", "b__c"), ("a__b", "c")])
    assert len(set(names.values())) == 2
    assert all(name.startswith("a__b__c_") for name in names.values())


def test_a_long_name_is_cut_and_stays_the_same():
    long = "x" * 100
    name = tool_names([("db", long)])["db", long]
    assert len(name) == 64
    assert tool_names([("db", long), ("db", "x" * 99)])["db", long] == name


@given(st.lists(st.tuples(SERVER_NAMES, TOOL_NAMES), max_size=12))
def test_every_name_can_be_called_and_is_there_once(tools: list[tuple[str, str]]):
    names = tool_names(tools)
    assert set(names) == set(tools)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names.values())
    assert len(set(names.values())) == len(names)
