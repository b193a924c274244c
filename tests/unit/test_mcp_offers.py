"""A server's list of tools, and what of it is offered."""

import pytest

pytest.importorskip("mcp", reason="the extra agent-actors[mcp] is not installed")

from mcp.types import Tool, ToolAnnotations

from agent_actors.adapters.mcp.configured import ServerSetup
from agent_actors.adapters.mcp.offer import offers_of

ANY = {"type": "object"}
SETUP = ServerSetup(name="db", timeout_s=1, read_only_tools=frozenset({"listed"}))


def test_a_tool_reads_when_the_server_or_the_configuration_says_so():
    hints = {
        "hinted": ToolAnnotations(read_only_hint=True),
        "writing": ToolAnnotations(read_only_hint=False),
        "listed": ToolAnnotations(read_only_hint=False),
        "silent": None,
    }
    tools = [Tool(name=name, input_schema=ANY, annotations=hint) for name, hint in hints.items()]
    offers, left_out = offers_of(tools, SETUP)
    assert {offer.tool: offer.reads for offer in offers} == {
        "hinted": True,
        "writing": False,
        "listed": True,
        "silent": False,
    }
    assert left_out == {}


def test_a_long_description_is_cut_and_a_title_stands_in_for_none():
    tools = [
        Tool(name="long", input_schema=ANY, description="x" * 10_000),
        Tool(name="titled", input_schema=ANY, title="List tables"),
    ]
    (long, titled), _ = offers_of(tools, SETUP)
    assert long.description == "x" * 4_000 + "…"
    assert titled.description == "List tables"


def test_a_broken_schema_leaves_out_its_tool_alone():
    tools = [
        Tool(name="good", input_schema=ANY),
        Tool(name="bad", input_schema={"type": "array"}),
    ]
    offers, left_out = offers_of(tools, SETUP)
    assert [offer.tool for offer in offers] == ["good"]
    assert left_out == {"bad": 'its inputSchema.type: must be "object"'}


def test_a_schema_of_many_levels_leaves_out_its_tool_alone():
    deep: dict[str, object] = {"type": "object"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}}
    tools = [Tool(name="good", input_schema=ANY), Tool(name="deep", input_schema=deep)]
    offers, left_out = offers_of(tools, SETUP)
    assert [offer.tool for offer in offers] == ["good"]
    assert left_out == {"deep": "its inputSchema is nested too deeply"}


def test_the_same_list_again_is_no_change():
    tools = [Tool(name="good", input_schema=ANY, description="a")]
    changed = [Tool(name="good", input_schema=ANY, description="b")]
    assert offers_of(tools, SETUP) == offers_of(tools, SETUP)
    assert offers_of(tools, SETUP) != offers_of(changed, SETUP)
