"""The routes: vLLM's own, and those under `/simulated` that tests and demos use."""

import hashlib
import secrets
import time
from uuid import uuid4

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from msgspec import UNSET, Struct, UnsetType

from agent_actors.config_types import Secret
from agent_actors.local.model_server.chat import ChatService
from agent_actors.local.model_server.faults import Faults
from agent_actors.local.model_server.misbehaviour import JSON
from agent_actors.local.model_server.settings import (
    SIMULATED_VERSION,
    Latency,
    ModelServerSettings,
)
from agent_actors.local.model_server.wire import ModelCard, ModelList, ModelPermission, encode

MAX_BODY_BYTES = 64 * 1024 * 1024
METRICS = {"Content-Type": "text/plain; version=1.0.0; charset=utf-8"}
GUARDED = ("/v1", "/simulated")
SHOWN_REQUESTS = "20"


class BehaviourChange(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /simulated/faults`: what is given replaces that part whole."""

    latency: Latency | UnsetType = UNSET
    faults: Faults | UnsetType = UNSET
    healthy: bool | UnsetType = UNSET


def build_app(service: ChatService, settings: ModelServerSettings) -> web.Application:
    """Return the application that serves `service`."""
    routes = _Routes(service, settings)
    middlewares: list[Middleware] = [_worded_as_vllm]
    if settings.api_key:
        middlewares.append(_authenticated(settings.api_key))
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(_no_type_without_body)
    app.router.add_post("/v1/chat/completions", service.chat)
    for path, handler in {
        "/v1/models": routes.models,
        "/health": routes.health,
        "/ping": routes.health,
        "/version": routes.version,
        "/load": routes.load,
        "/metrics": routes.metrics,
        "/simulated/requests": routes.requests,
        "/simulated/faults": routes.behaviour,
    }.items():
        app.router.add_get(path, handler, allow_head=False)
    app.router.add_post("/simulated/faults", routes.change_behaviour)
    return app


class _Routes:
    """Everything but the chat."""

    def __init__(self, service: ChatService, settings: ModelServerSettings) -> None:
        self._service = service
        self._settings = settings
        self._started = int(time.time())

    async def models(self, _http: web.Request) -> web.Response:
        cards = [
            ModelCard(
                id=name,
                created=self._started,
                max_model_len=self._settings.max_model_len,
                permission=[
                    ModelPermission(id=f"modelperm-{uuid4().hex[:16]}", created=self._started)
                ],
            )
            for name in self._settings.model_names
        ]
        return _json(ModelList(data=cards))

    async def health(self, _http: web.Request) -> web.Response:
        return web.Response(status=200 if self._service.behaviour.healthy else 503)

    async def version(self, _http: web.Request) -> web.Response:
        return _json({"version": SIMULATED_VERSION})

    async def load(self, _http: web.Request) -> web.Response:
        engine = self._service.engine
        return _json({"server_load": engine.running + engine.waiting})

    async def metrics(self, _http: web.Request) -> web.Response:
        return web.Response(body=self._service.metrics.text(), headers=METRICS)

    async def requests(self, http: web.Request) -> web.Response:
        last = http.query.get("last", SHOWN_REQUESTS)
        if not last.isdecimal():
            return _json({"detail": f"last: must be a number, not {last!r}"}, status=400)
        return _json(self._service.requests.summary(int(last)))

    async def behaviour(self, _http: web.Request) -> web.Response:
        return _json(self._service.behaviour)

    async def change_behaviour(self, http: web.Request) -> web.Response:
        try:
            change = msgspec.json.decode(await http.read(), type=BehaviourChange)
        except msgspec.DecodeError as error:
            return _json({"detail": str(error)}, status=400)
        given = {
            name: value
            for name in change.__struct_fields__
            if (value := getattr(change, name)) is not UNSET
        }
        self._service.behaviour = msgspec.structs.replace(self._service.behaviour, **given)
        return _json(self._service.behaviour)


@web.middleware
async def _worded_as_vllm(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the web framework's own errors the body that vLLM's framework gives them."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _json({"detail": error.reason}, status=error.status)


def _authenticated(api_key: Secret) -> Middleware:
    """Return what lets only requests with the key pass to the routes that need one."""
    expected = _digest(api_key.reveal())

    @web.middleware
    async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        known = scheme.lower() == "bearer" and secrets.compare_digest(_digest(token), expected)
        if known or request.method == "OPTIONS" or not request.path.startswith(GUARDED):
            return await handler(request)
        return _json({"error": "Unauthorized"}, status=401)

    return authenticated


async def _no_type_without_body(_http: web.BaseRequest, response: web.StreamResponse) -> None:
    if response.content_length == 0:
        response.headers.popall("Content-Type", None)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=encode(value), headers=JSON)
