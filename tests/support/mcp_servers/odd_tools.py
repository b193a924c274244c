"""A server whose tools have schemas that no careful client takes, beside some that it does."""

import anyio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import ListToolsResult, Tool

SCHEMAS = {
    "good": {"type": "object", "properties": {"x": {"type": "integer"}}},
    "by_pattern": {
        "type": "object",
        "patternProperties": {"^(a+)+$": {"type": "string"}},
        "additionalProperties": False,
    },
    "no_schema": {"type": "object", "properties": {"x": {"type": "colour"}}},
    "remote": {"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:9/schema"}}},
    "endless": {"type": "object", "$ref": "#"},
    "huge": {"type": "object", "description": "z" * 100_000},
}


async def list_tools(_context, _params) -> ListToolsResult:
    return ListToolsResult(
        tools=[Tool(name=name, input_schema=schema) for name, schema in SCHEMAS.items()]
    )


async def main() -> None:
    server = Server("odd", on_list_tools=list_tools)
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
