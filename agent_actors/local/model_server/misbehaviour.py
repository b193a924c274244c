"""What the faults do to a connection."""

import socket
import struct
from http import HTTPStatus

from aiohttp import web

from agent_actors.local.model_server.engine import Engine
from agent_actors.local.model_server.faults import Fault, Faults
from agent_actors.local.model_server.refusal import EngineDead, refusal_of

JSON = {"Content-Type": "application/json"}
GARBAGE = "<html><head><title>502 Bad Gateway</title></head><body>upstream closed</body></html>"
STATUSES = {
    Fault.TOO_MANY_REQUESTS: HTTPStatus.TOO_MANY_REQUESTS,
    Fault.INTERNAL_ERROR: HTTPStatus.INTERNAL_SERVER_ERROR,
    Fault.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}
# A socket that may not linger is reset when it is closed.
NO_LINGER = struct.pack("ii", 1, 0)


async def misbehave(
    fault: Fault, http: web.BaseRequest, engine: Engine, faults: Faults
) -> web.StreamResponse:
    """Do one of `IN_PLACE_OF_AN_ANSWER`."""
    match fault:
        case Fault.HANG:
            await engine.stopped()
            reset(http)
        case Fault.RESET:
            reset(http)
        case Fault.GARBAGE:
            return web.Response(text=GARBAGE, content_type="text/html")
        case _:
            status = STATUSES[fault]
            headers = dict(JSON)
            if faults.retry_after_s is not None and status != HTTPStatus.INTERNAL_SERVER_ERROR:
                headers["Retry-After"] = str(faults.retry_after_s)
            return web.Response(status=status, body=refusal_of(status).body(), headers=headers)
    return web.Response()


async def half_a_body(
    fault: Fault, http: web.BaseRequest, body: bytes, engine: Engine
) -> web.StreamResponse:
    """Promise the whole body and send half of it, then fall silent or hang up."""
    response = web.StreamResponse(headers=JSON | {"Content-Length": str(len(body))})
    await response.prepare(http)
    await response.write(body[: len(body) // 2])
    await break_off(fault, http, engine)
    return response


async def break_off(fault: Fault, http: web.BaseRequest, engine: Engine) -> None:
    """Let one of `HALF_WAY` happen; raises `EngineDead` when it is that one."""
    if fault is Fault.STREAM_ERROR:
        raise EngineDead
    if fault is Fault.HANG_BODY:
        await engine.stopped()
    if http.transport is not None:
        http.transport.close()


def reset(http: web.BaseRequest) -> None:
    """Reset the connection, without a byte or an end."""
    if http.transport is not None:
        connection = http.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        http.transport.abort()
