"""The proxy that chaos and fault tests stand on: what it is told to spoil, it spoils."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.tcp_proxy import HOST, PARTITIONED, Link, TcpProxy

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    """A proxy before a server that sends back whatever it gets."""
    writers: list[asyncio.StreamWriter] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while chunk := await reader.read(65_536):
                writer.write(chunk)
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    async with TcpProxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()
    for writer in writers:
        writer.close()


@asynccontextmanager
async def client_of(proxy: TcpProxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    yield reader, writer
    writer.close()


async def test_a_slow_link_takes_its_time_both_ways(proxy: TcpProxy):
    async with client_of(proxy) as (reader, writer):
        proxy.link = Link(latency_s=0.1)
        began = asyncio.get_running_loop().time()
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        assert asyncio.get_running_loop().time() - began >= 0.2


async def test_a_narrow_link_carries_so_many_bytes_a_second(proxy: TcpProxy):
    async with client_of(proxy) as (reader, writer):
        proxy.link = Link(bytes_per_s=200)
        began = asyncio.get_running_loop().time()
        writer.write(b"x" * 60)
        await reader.readexactly(60)
        assert asyncio.get_running_loop().time() - began >= 0.25


@pytest.mark.parametrize("frozen", [PARTITIONED, Link(frozen=frozenset({"down"}))])
async def test_what_is_frozen_comes_when_the_link_is_healthy_again(proxy: TcpProxy, frozen: Link):
    async with client_of(proxy) as (reader, writer):
        proxy.link = frozen
        writer.write(b"later")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.readexactly(1)
        proxy.link = Link()
        assert await reader.readexactly(5) == b"later"


async def test_refused_connections_end_and_new_ones_are_taken_later(proxy: TcpProxy):
    async with client_of(proxy) as (reader, writer):
        writer.write(b"a")
        await reader.readexactly(1)
        await proxy.refuse()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, proxy.port)
    await proxy.accept()
    async with client_of(proxy) as (reader, writer):
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"


async def test_a_forgotten_connection_is_open_and_carries_nothing_while_new_ones_do(
    proxy: TcpProxy,
):
    async with client_of(proxy) as (reader, writer):
        writer.write(b"a")
        await reader.readexactly(1)
        proxy.forget()
        writer.write(b"b")
        async with client_of(proxy) as (new_reader, new_writer):
            new_writer.write(b"c")
            assert await new_reader.readexactly(1) == b"c"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.readexactly(1)


async def test_a_message_is_cut_in_the_midst(proxy: TcpProxy):
    carried: list[int] = []
    proxy._on_bytes = lambda _number, way, piece: way == "up" and carried.append(len(piece))
    async with client_of(proxy) as (reader, writer):
        proxy.cut("up", 100)
        writer.write(b"too small")
        assert await reader.readexactly(9) == b"too small"
        writer.write(b"x" * 200)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(200)
        assert carried == [9, 100]
