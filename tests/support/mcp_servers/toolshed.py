"""A server with a tool for everything that can go right or wrong: `toolshed.py [stdio|http PORT]`.

Over HTTP it wants the bearer token in TOOLSHED_TOKEN, when that is set. `legacy` as a last word
makes it one of those that know no protocol after 2025-11-25, as most do.
"""

import asyncio
import base64
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import anyio
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server
from mcp.types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
    ToolAnnotations,
)

READS = ToolAnnotations(read_only_hint=True)
server = MCPServer("toolshed", log_level="ERROR")
cancelled: list[str] = []


@server.tool(annotations=READS)
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def fail() -> str:
    """Fail."""
    raise ToolError("the shed is locked")


@server.tool(annotations=READS)
def environment() -> str:
    """Tell the environment and the command line of this process, and of its parent."""
    parent = Path(f"/proc/{os.getppid()}/environ").read_text()
    return json.dumps({"own": dict(os.environ), "parent": parent, "argv": sys.argv})


@server.tool(annotations=READS)
def pid() -> int:
    """Tell the process id."""
    return os.getpid()


@server.tool(annotations=READS)
async def hang(name: str) -> str:
    """Take for ever; tell of it in `cancellations` when given up."""
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        cancelled.append(name)
        raise
    return "never"


@server.tool(annotations=READS)
def cancellations() -> list[str]:
    """Tell which hanging calls were given up."""
    return cancelled


@server.tool()
def freeze() -> str:
    """Stop the whole process, as a server does that waits for a lock."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return "went on"


@server.tool()
def crash(marker: str) -> str:
    """Die during the call, after writing to a file that the call came."""
    return _die(marker)


@server.tool(annotations=READS)
def crash_once(marker: str) -> str:
    """Die during the first call."""
    if Path(marker).exists():
        return "survived"
    return _die(marker)


def _die(marker: str) -> str:
    with Path(marker).open("a") as file:
        file.write("called\n")
    sys.stderr.write("out of cheese\n")
    sys.stderr.flush()
    os._exit(3)


@server.tool(annotations=READS)
def big(size: int) -> str:
    """Answer with so many characters."""
    return "x" * size


@server.tool(annotations=READS)
def complain(text: str) -> str:
    """Write to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    return "complained"


@server.tool(annotations=READS)
def chatter() -> str:
    """Print to standard output, where only messages belong."""
    os.write(1, b"hello from a careless library\n")
    return "chattered"


@server.tool(annotations=READS, structured_output=False)
def media() -> CallToolResult:
    """Answer with all kinds of content."""
    data = base64.b64encode(b"0123456789").decode()
    text = TextResourceContents(uri="file:///note", text="a note")
    blob = BlobResourceContents(uri="file:///blob", blob=data, mime_type="application/zip")
    return CallToolResult(
        content=[
            TextContent(text="first"),
            ImageContent(data=data, mime_type="image/png"),
            AudioContent(data=data, mime_type="audio/wav"),
            ResourceLink(name="log", uri="file:///log", mime_type="text/plain"),
            EmbeddedResource(resource=text),
            EmbeddedResource(resource=blob),
        ]
    )


@server.tool(annotations=READS, structured_output=False)
def structured() -> CallToolResult:
    """Answer with structured content alone."""
    return CallToolResult(content=[], structured_content={"rows": [1, 2]})


@server.tool()
async def grow(name: str, context: Context) -> str:
    """Have one more tool from now on."""
    server.add_tool(lambda: "grown", name=name, description="A new one.", annotations=READS)
    await _tell_of_change(context)
    return f"there is {name}"


@server.tool()
async def shrink(name: str, context: Context) -> str:
    """Have one tool less."""
    server.remove_tool(name)
    await _tell_of_change(context)
    return f"{name} is gone"


async def _tell_of_change(context: Context) -> None:
    await context.notify_tools_changed()
    await context.session.send_tool_list_changed()


@server.tool(annotations=READS)
def spawn() -> int:
    """Start a process that ends neither with its input nor by SIGTERM, in a session of its own."""
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
        os._exit(0)
    return child


@server.tool()
async def stay() -> str:
    """Outlive the end of the input, and SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=time.sleep, args=(60,)).start()
    return "stays"


async def serve_stdio(*, legacy: bool) -> None:
    if not legacy:
        return await server.run_stdio_async()
    inner = server._lowlevel_server
    options = inner.create_initialization_options(NotificationOptions(tools_changed=True))
    async with stdio_server() as (reading, writing), inner.lifespan(inner) as state:
        return await serve_loop(inner, reading, writing, lifespan_state=state, init_options=options)


async def serve_http(port: int, *, legacy: bool) -> None:
    import uvicorn  # takes a while

    listening = socket.create_server(("127.0.0.1", port))
    app = Doorkeeper(server.streamable_http_app(), os.environ.get("TOOLSHED_TOKEN"), legacy=legacy)
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=0)
    await uvicorn.Server(config).serve(sockets=[listening])


class Doorkeeper:
    """Lets in who has the token, and when it is legacy, who speaks an older protocol."""

    def __init__(self, app, token: str | None, *, legacy: bool):
        self.app = app
        self.token = token
        self.legacy = legacy

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and (status := self.refusal(dict(scope["headers"]))):
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self.app(scope, receive, send)

    def refusal(self, headers: dict[bytes, bytes]) -> int:
        if self.token and headers.get(b"authorization", b"").decode() != f"Bearer {self.token}":
            return 401
        if self.legacy and headers.get(b"mcp-protocol-version") == b"2026-07-28":
            return 400
        return 0


if __name__ == "__main__":
    transport, *rest = [word for word in sys.argv[1:] if word != "legacy"] or ["stdio"]
    is_legacy = "legacy" in sys.argv
    if transport == "http":
        asyncio.run(serve_http(int(rest[0]), legacy=is_legacy))
    else:
        asyncio.run(serve_stdio(legacy=is_legacy))
