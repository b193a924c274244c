"""One server: a session with it that is made anew whenever it is lost, and its list of tools.

The SDK's contexts have to be left by the task that entered them, so one task owns a session
from its beginning to its end, and others only send requests over it.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import cast

import anyio
import structlog
from mcp import Client, MCPError
from mcp.client import IncomingMessage, Transport
from mcp.client.subscriptions import SubscriptionLost
from mcp.types import (
    CONNECTION_CLOSED,
    METHOD_NOT_FOUND,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    Implementation,
    InputRequiredResult,
    Tool,
    ToolListChangedNotification,
)
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS
from msgspec import Struct
from pydantic import TypeAdapter, ValidationError

from agent_actors import __version__
from agent_actors.adapters.mcp.configured import ServerSetup
from agent_actors.adapters.mcp.http import http_transport
from agent_actors.adapters.mcp.offer import Offer, offers_of
from agent_actors.adapters.mcp.stdio import StdioTransport
from agent_actors.errors import AgentActorsError, ToolError
from agent_actors.tools.threads import UPKEEP

READY = "ready"
STARTING = "starting"

MAX_TOOLS = 500
MAX_REASON_CHARS = 500
LISTEN_PAUSE_S = 5.0
# A server may tell of changes without end.
LIST_GAP_S = 0.2
CLOSE_S = 10.0

US = Implementation(name="agent-actors", version=__version__)
ANSWER: TypeAdapter[CallToolResult | InputRequiredResult] = TypeAdapter(
    CallToolResult | InputRequiredResult
)

log = structlog.get_logger()


class Pace(Struct, frozen=True, kw_only=True):
    """How long things may take, and how often they are tried; seconds.

    A start is long because launchers download the program first. Pauses between starts double
    from the first to the longest, and begin anew after a session that has lasted `steady_s`.
    """

    start_s: float = 120.0
    ping_every_s: float = 15.0
    ping_s: float = 10.0
    list_s: float = 30.0
    return_s: float = 15.0
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    steady_s: float = 30.0


class ServerLost(AgentActorsError):
    """The session ended during a call."""


class ServerSession:
    """Keeps a session with one server for as long as it is not closed."""

    def __init__(self, setup: ServerSetup, pace: Pace) -> None:
        self.setup = setup
        self.state = STARTING
        self.offers: Sequence[Offer] = ()
        # Set once the first try has come to something.
        self.tried = asyncio.Event()
        self._pace = pace
        self._client: Client | None = None
        self._ready = asyncio.Event()
        # What the owner is woken for: the session has ended, or its tools have changed.
        self._wake = asyncio.Event()
        self._ended = ""
        self._stale = False
        self._refusal = ""
        self._calls = 0
        self._left_out: dict[str, str] = {}
        self._told_away = False
        self._closing = False
        self._owner: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether its tools can be called now."""
        return self._client is not None

    def start(self) -> None:
        """Begin; returns at once."""
        self._owner = asyncio.create_task(self._keep_session(), name=f"mcp {self.setup.name}")

    async def close(self) -> None:
        """End the session, and the server when it is a program of ours."""
        self._closing = True
        while self._owner and not self._owner.done():
            self._owner.cancel()
            await asyncio.wait([self._owner], timeout=CLOSE_S)

    async def call(self, tool: str, arguments: dict[str, object], *, reads: bool) -> CallToolResult:
        """Make the call; one that only `reads` is made again when the server is lost meanwhile.

        Cancelled, or out of time, the server is told so. Raises ToolError.
        """
        client = await self._present()
        try:
            return await self._call(client, tool, arguments)
        except ServerLost as lost:
            if not reads:
                raise ToolError(
                    f"the MCP server {self.setup.name} was lost during the call ({lost}); whether "
                    "the call took effect is not known"
                ) from lost
        client = await self._present()
        try:
            return await self._call(client, tool, arguments)
        except ServerLost as lost:
            raise ToolError(
                f"the MCP server {self.setup.name} was lost during the call, twice ({lost})"
            ) from lost

    async def _call(
        self, client: Client, tool: str, arguments: dict[str, object]
    ) -> CallToolResult:
        """Make the call once. Raises ServerLost, ToolError."""
        request = CallToolRequest(params=CallToolRequestParams(name=tool, arguments=arguments))
        self._calls += 1
        try:
            async with asyncio.timeout(self.setup.timeout_s):
                # Not `call_tool`, which checks structured content by patterns without a limit.
                answer = await client.session.send_request(request, ANSWER)
        except TimeoutError:
            self._wake.set()  # to see whether it still lives
            raise ToolError(
                f"{tool} took longer than {self.setup.timeout_s:g} s and was given up; what it has "
                "done by then is not known"
            ) from None
        except ValidationError as error:
            raise ToolError(
                f"{tool} was answered with what is no result: {self._told(error)}"
            ) from error
        except MCPError as error:
            await self._judge(client, error)
            raise ToolError(self._told(error)) from error
        finally:
            self._calls -= 1
        if isinstance(answer, InputRequiredResult):
            raise ToolError(f"{tool} asks for a person's answer, and there is no person here")
        return answer

    async def _judge(self, client: Client, error: MCPError) -> None:
        """Raise ServerLost if the error means that; else what the server offers may have changed.

        The SDK tells a refusal of the server from a lost connection by codes that servers use
        too, so the server is asked.
        """
        # One that has been given up by now cannot be asked any more.
        lives = self._client is client and await self._answers(client)
        if not lives:
            self._end(client, self._told(error))
        if not lives or error.code == CONNECTION_CLOSED:
            raise ServerLost(self._ended or self._told(error)) from error
        self._ask_for_tools()

    async def _answers(self, client: Client) -> bool:
        try:
            async with asyncio.timeout(self._pace.ping_s):
                if client.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
                    await client.session.send_ping()
                else:  # later ones have no ping
                    await client.session.send_discover(client.protocol_version)
        except MCPError as error:
            return error.code == METHOD_NOT_FOUND
        except (TimeoutError, ValidationError):
            return False
        return True

    async def _present(self) -> Client:
        """Wait a while for a server that is away. Raises ToolError when it does not come back."""
        try:
            async with asyncio.timeout(self._pace.return_s):
                while self._client is None:
                    await self._ready.wait()
                return self._client
        except TimeoutError:
            raise ToolError(
                f"the MCP server {self.setup.name} is {self.state}; it may be back later"
            ) from None

    async def _keep_session(self) -> None:
        """Have one session after the other, until closed: the task that owns them."""
        pause_s = self._pace.first_pause_s
        while not self._closing:
            began_s = time.monotonic()
            try:
                await self._have_session()
            except Exception as error:  # noqa: BLE001 - whatever server and SDK come up with, try again
                self._tell_away(error)
            if time.monotonic() - began_s > self._pace.steady_s:
                pause_s = self._pace.first_pause_s
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            pause_s = min(2 * pause_s, self._pace.longest_pause_s)

    async def _have_session(self) -> None:
        """Have one session for as long as it lasts. Raises whatever ended it."""
        self._ended, self._refusal, self._stale = "", "", False
        self._wake.clear()
        client = Client(
            self._transport(), message_handler=self._on_message, client_info=US, cache=None
        )
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._pace.start_s):
                await stack.enter_async_context(client)
                await self._learn_tools(client)
            self._begin(client)
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._listen, client)
                    await self._watch(client)
            finally:
                self._end(client, "")

    def _transport(self) -> Transport:
        if self.setup.argv:
            return StdioTransport(self.setup, self._on_end)
        return http_transport(self.setup, self._on_refusal)

    def _begin(self, client: Client) -> None:
        self._client = client
        self._refusal = ""
        self._told_away = False
        self.state = READY
        self._ready.set()
        self.tried.set()
        log.info(
            "mcp.ready",
            server=self.setup.name,
            tools=len(self.offers),
            protocol=client.protocol_version,
        )

    def _end(self, client: Client, reason: str) -> None:
        """Have nobody call over this session any more, and its owner give it up."""
        if self._client is client:
            self._client = None
            self._ready.clear()
            self._on_end(reason)
            self.state = f"away: {self._ended or 'the session has ended'}"

    def _on_end(self, reason: str) -> None:
        self._ended = self._ended or reason
        self._wake.set()

    def _on_refusal(self, status: str) -> None:
        self._refusal = status

    async def _on_message(self, message: IncomingMessage) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._ask_for_tools()

    def _ask_for_tools(self) -> None:
        self._stale = True
        self._wake.set()

    async def _listen(self, client: Client) -> None:
        """Hear of changed tools from a server that has to be asked to tell; others just do."""
        able = client.server_capabilities.tools
        if client.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS or not (
            able and able.list_changed
        ):
            return
        while True:
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    self._ask_for_tools()  # what came before we listened
                    async for _ in changes:
                        self._ask_for_tools()
            except MCPError as error:
                if error.code == METHOD_NOT_FOUND:
                    return
            except SubscriptionLost:
                pass
            await asyncio.sleep(LISTEN_PAUSE_S)

    async def _watch(self, client: Client) -> None:
        """See that the session lives, and that we know its tools. Raises what ended it."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.ping_every_s):
                    await self._wake.wait()
            self._wake.clear()
            if self._ended:
                raise ServerLost(self._ended)
            if self._stale:
                self._stale = False
                async with asyncio.timeout(self._pace.list_s):
                    await self._learn_tools(client)
                await asyncio.sleep(LIST_GAP_S)
            # A server may be too busy with calls to answer, and those have their own limit.
            elif not self._calls and not await self._answers(client):
                raise ServerLost("it does not answer any more")

    async def _learn_tools(self, client: Client) -> None:
        """Ask for the list of tools, page by page."""
        tools: list[Tool] = []
        page = await client.list_tools()
        tools.extend(page.tools)
        while page.next_cursor and len(tools) < MAX_TOOLS:
            page = await client.list_tools(cursor=page.next_cursor)
            tools.extend(page.tools)
        # Schemas take a while to prepare, and calls of others go on meanwhile.
        offers, left_out = await UPKEEP.run(offers_of, tools[:MAX_TOOLS], self.setup)
        for name, reason in left_out.items() - self._left_out.items():
            log.warning("mcp.tool_left_out", server=self.setup.name, tool=name, reason=reason)
        if self.is_ready and offers != self.offers:
            log.info("mcp.tools_changed", server=self.setup.name, tools=len(offers))
        self._left_out = left_out
        self.offers = offers

    def _tell_away(self, error: BaseException) -> None:
        reason = self._ended or self._told(_first(error))
        if self._refusal and not self._ended:
            reason = f"{reason} ({self._refusal})"
        self.state = f"away: {reason}"
        tell = log.debug if self._told_away else log.warning
        tell("mcp.away", server=self.setup.name, reason=reason)
        self._told_away = True
        self.tried.set()

    def _told(self, error: BaseException) -> str:
        """Return an error of the SDK or the server in one line that may be shown."""
        match error:
            case MCPError():
                text = str(error)
            case TimeoutError():
                text = "it took too long to answer"
            case ServerLost():
                text = str(error)
            case _:
                text = f"{type(error).__name__}: {error}"
        return self.setup.fit_for_log(" ".join(text.split()))[:MAX_REASON_CHARS]


def _first(error: BaseException) -> BaseException:
    """Return what a group of errors began with."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error
