"""Servers that are web addresses: a real one, written with the SDK, in both eras of MCP."""

import asyncio
import gzip

import pytest
from support.raw_http import Exchange, raw_server, response, sends
from support.until import until

pytest.importorskip("mcp", reason="the extra agent-actors[mcp] is not installed")

from structlog.testing import capture_logs
from support.mcp_servers.running import NOWHERE, HttpServer, call, connected, tool

from agent_actors.adapters.mcp.session import Pace
from agent_actors.config_tools import McpServerConfig
from agent_actors.config_types import Secret
from agent_actors.errors import ToolError

TOKEN = "canary-2b8d4f6a"

both_eras = pytest.mark.parametrize("era", [(), ("legacy",)], ids=["modern", "legacy"])


@both_eras
async def test_tools_are_called_with_the_token_that_the_server_wants(era: tuple[str, ...]):
    with capture_logs() as logs:
        async with (
            HttpServer(*era, token=TOKEN) as server,
            connected({"shed": server.config()}) as servers,
        ):
            assert (await call(servers, "shed__add", a=1, b=2)).text == "3"
            assert TOKEN not in (await call(servers, "shed__environment")).text
            with pytest.raises(ToolError, match="the shed is locked"):
                await call(servers, "shed__fail")
    assert TOKEN not in str(logs)


async def test_a_server_that_refuses_us_is_away_with_its_status():
    async with HttpServer(token=TOKEN) as server:
        config = McpServerConfig(url=server.url, headers={"Authorization": Secret("Bearer wrong")})
        async with connected({"shed": config}) as servers:
            await until(lambda: servers.states()["shed"].startswith("away"))
            assert servers.states()["shed"].endswith("(HTTP 401 Unauthorized)")
            assert await servers.tools() == []


@both_eras
async def test_a_server_that_was_started_again_is_found_again(era: tuple[str, ...]):
    async with HttpServer(*era) as server, connected({"shed": server.config()}) as servers:
        first = (await call(servers, "shed__pid")).text
        await server.kill()
        await until(lambda: servers.states()["shed"].startswith("away"))
        assert await servers.tools() == []
        await server.start()
        assert (await call(servers, "shed__pid")).text != first


@both_eras
async def test_a_server_that_comes_back_unnoticed_is_used_at_once(era: tuple[str, ...]):
    pace = Pace(ping_every_s=600, first_pause_s=0.05)
    async with (
        HttpServer(*era) as server,
        connected({"shed": server.config()}, pace=pace) as servers,
    ):
        pid = await tool(servers, "shed__pid")
        first = (await pid.call(NOWHERE, {})).text
        await server.kill()
        await server.start()
        assert (await pid.call(NOWHERE, {})).text != first


@both_eras
async def test_a_writing_call_is_not_repeated_when_the_server_dies_in_it(
    era: tuple[str, ...], tmp_path
):
    async with HttpServer(*era) as server, connected({"shed": server.config()}) as servers:
        with pytest.raises(ToolError, match="whether the call took effect is not known"):
            await call(servers, "shed__crash", marker=str(tmp_path / "calls"))
        await server.kill()
        await server.start()
        await call(servers, "shed__pid")
        assert (tmp_path / "calls").read_text() == "called\n"


@both_eras
async def test_a_call_out_of_time_is_cancelled_at_the_server(era: tuple[str, ...]):
    async with (
        HttpServer(*era) as server,
        connected({"shed": server.config(timeout_s=1)}) as servers,
    ):
        with pytest.raises(ToolError, match="hang took longer than 1 s"):
            await call(servers, "shed__hang", name="slow")

        async def is_told() -> bool:
            return (await call(servers, "shed__cancellations")).text == "slow"

        await until(is_told)


@both_eras
async def test_the_list_of_tools_follows_the_server(era: tuple[str, ...]):
    async with (
        HttpServer(*era) as server,
        connected({"shed": server.config()}, pace=Pace()) as servers,
    ):
        await call(servers, "shed__grow", name="ladder")
        assert (await call(servers, "shed__ladder")).text == "grown"


async def test_a_huge_answer_fails_alone():
    async with HttpServer() as server, connected({"shed": server.config()}) as servers:
        assert len((await call(servers, "shed__big", size=2_000_000)).text) == 2_000_000
        with pytest.raises(ToolError, match="more than 16777216 bytes"):
            await call(servers, "shed__big", size=20_000_000)
        assert (await call(servers, "shed__add", a=1, b=2)).text == "3"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response(gzip.compress(b"{}"), content_encoding="gzip"), "compressed"),
        (response(b" " * 17_000_000), "more than 16777216 bytes"),
        (response(b"no json"), "Invalid JSON"),
        (response(b"{}", Content_Type="text/html"), "Unexpected content type: text/html"),
    ],
    ids=["compressed", "huge", "garbled", "a web page"],
)
async def test_an_unusable_answer_makes_a_server_away(answer: bytes, reason: str):
    async with (
        raw_server(sends(answer)) as server,
        connected({"odd": McpServerConfig(url=server.url)}) as servers,
    ):
        await until(lambda: servers.states()["odd"].startswith("away"))
        assert reason in servers.states()["odd"]


async def test_closing_does_not_wait_for_a_server_that_does_not_answer():
    async def never(exchange: Exchange) -> None:
        await exchange.hung_up()

    async with (
        raw_server(never) as server,
        asyncio.timeout(10),
        connected({"mute": McpServerConfig(url=server.url)}) as servers,
    ):
        await server.asked.wait()
        assert servers.states() == {"mute": "starting"}


async def test_a_server_that_does_not_answer_holds_nobody_up_for_long(
    monkeypatch: pytest.MonkeyPatch,
):
    async def never(exchange: Exchange) -> None:
        await exchange.hung_up()

    monkeypatch.setattr("agent_actors.adapters.mcp.servers.FIRST_WAIT_S", 0.3)
    async with (
        raw_server(never) as mute,
        HttpServer() as server,
        connected({"mute": McpServerConfig(url=mute.url), "shed": server.config()}) as servers,
    ):
        await tool(servers, "shed__add")
        async with asyncio.timeout(0.2):
            assert {each.group for each in await servers.tools()} == {"shed"}
