"""What nats-py is told when it connects, and what its errors mean in plain words.

nats-py would keep user and password in the URLs, from where they get into logs and are missing
for servers learnt by gossip; so they are taken out of them here.
"""

import asyncio
import base64
import random
import re
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import nkeys  # pyright: ignore[reportMissingTypeStubs] - it has none
from nats.aio.client import Server
from nats.errors import (
    Error,
    InvalidUserCredentialsError,
    OutboundBufferLimitError,
    SecureConnWantedError,
    UnexpectedEOF,
)

from agent_actors.config import NatsConfig, TlsConfig
from agent_actors.errors import ConfigError

FIRST_RETRIES = 2
FIRST_WAIT_S = 0.25
RECONNECT_BASE_S = 0.05
RECONNECT_CAP_S = 2.0
# A connection that a lost node or a router forgot says nothing; this is how soon it is missed:
# when so many pings, one each interval, are not answered.
PING_INTERVAL_S = 2
MAX_OUTSTANDING_PINGS = 2
PENDING_BYTES = 8 * 1024 * 1024

# In this order: the first class that fits speaks.
REASONS: dict[type[BaseException], str] = {
    ssl.SSLCertVerificationError: "its TLS certificate is not trusted ({error.verify_message})",
    ssl.SSLError: "the TLS handshake failed ({error.reason}): see nats.tls",
    SecureConnWantedError: "the server offers no TLS, but nats.tls or a tls:// URL asks for it",
    socket.gaierror: "the host name cannot be resolved ({error.strerror})",
    ConnectionRefusedError: "the connection is refused: nothing listens there",
    UnexpectedEOF: "the server ended the connection",
    OutboundBufferLimitError: "there is no connection just now, and no room to keep this for later",
    InvalidUserCredentialsError: "the credentials file is not what `nsc` writes",
    asyncio.TimeoutError: "no answer within {timeout_s:g} s",
}

USERINFO = re.compile(r"//[^/,\s]*@")
JWT_BLOCK = re.compile(rb"-----BEGIN NATS USER JWT-----\s+(\S+)\s+-+END NATS USER JWT-+")
SEED_BLOCK = re.compile(rb"-----BEGIN USER NKEY SEED-----\s+(\S+)\s+-+END USER NKEY SEED-+")


def wants_tls(config: NatsConfig) -> bool:
    """Tell whether the configuration asks for TLS, rather than leaving it to the server."""
    return config.tls is not None or any(url.scheme == "tls" for url in _split(config.url))


def connect_options(config: NatsConfig, name: str) -> dict[str, Any]:
    """Return the keyword arguments of `Client.connect`. Raises ConfigError.

    They make the first connection try each server three times, then fail; whoever connects
    sets `max_reconnect_attempts` to -1 after that.
    """
    options: dict[str, Any] = {
        "servers": [f"{url.scheme}://{_host(url)}" for url in _split(config.url)],
        "name": name,
        "connect_timeout": config.connect_timeout_s,
        "max_reconnect_attempts": FIRST_RETRIES,
        "reconnect_time_wait": FIRST_WAIT_S,
        "reconnect_to_server_handler": _next_server,
        "ping_interval": PING_INTERVAL_S,
        "max_outstanding_pings": MAX_OUTSTANDING_PINGS,
        "pending_size": PENDING_BYTES,
        "flush_timeout": config.request_timeout_s,
        "inbox_prefix": config.inbox_prefix,
    }
    if wants_tls(config):
        tls = config.tls or TlsConfig()
        options |= {"tls": _tls_context(tls), "tls_hostname": tls.server_name or None}
    return options | _identity(config)


def redacted(url: str) -> str:
    """Return the URLs without user, password and token."""
    return USERINFO.sub("//", url)


def explain(error: BaseException, timeout_s: float = 0.0) -> str:
    """Return what went wrong with a connection, in words that say where to look."""
    for kind, words in REASONS.items():
        if isinstance(error, kind):
            return words.format(error=error, timeout_s=timeout_s)
    text = str(error).removeprefix("nats: ").strip("' ")
    if "authorization violation" in text.lower():
        return f"the server does not let us in ({text}): see user, token, nkey or credentials"
    if "expecting INFO" in text:
        return "it does not greet like a NATS server"
    return text or type(error).__name__


def _split(urls: str) -> list[SplitResult]:
    parts = [part.strip() for part in urls.split(",") if part.strip()]
    if not parts:
        raise ConfigError("nats.url: is not set; it reads nats://HOST:PORT[,nats://HOST:PORT...]")
    return [_split_one(part) for part in parts]


def _split_one(text: str) -> SplitResult:
    url = urlsplit(text if "://" in text else f"nats://{text}")
    try:
        usable = url.scheme in {"nats", "tls"} and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"nats.url: {redacted(text)!r} is no URL like nats://HOST:PORT or tls://")
    return url


def _host(url: SplitResult) -> str:
    return url.netloc.rpartition("@")[2]


def _identity(config: NatsConfig) -> dict[str, Any]:
    if config.credentials_file:
        return _credentials(Path(config.credentials_file))
    if config.nkey_seed_file:
        return _nkey(Path(config.nkey_seed_file))
    if config.user:
        return {"user": config.user, "password": config.password.reveal()}
    if config.token:
        return {"token": config.token.reveal()}
    return _identity_in_url(config.url)


def _identity_in_url(urls: str) -> dict[str, Any]:
    found = {url.netloc.rpartition("@")[0] for url in _split(urls)} - {""}
    if len(found) > 1:
        raise ConfigError("nats.url: the URLs name different users; name one in nats.user")
    if not found:
        return {}
    user, colon, password = found.pop().partition(":")
    if colon:
        return {"user": unquote(user), "password": unquote(password)}
    return {"token": unquote(user)}


def _credentials(path: Path) -> dict[str, Any]:
    """Return callbacks that read the file anew each time, since such files are rotated."""
    try:
        _sign(_find(SEED_BLOCK, path), "")
        _find(JWT_BLOCK, path)
    except (OSError, Error) as error:
        raise ConfigError(f"nats.credentials_file: {_trouble(path, error)}") from error

    def user_jwt() -> bytes:
        return _find(JWT_BLOCK, path)

    def signature(nonce: str) -> bytes:
        return _sign(_find(SEED_BLOCK, path), nonce)

    return {"user_jwt_cb": user_jwt, "signature_cb": signature}


def _nkey(path: Path) -> dict[str, Any]:
    try:
        seed = path.read_bytes().strip()
        _sign(seed, "")
    except (OSError, Error) as error:
        raise ConfigError(f"nats.nkey_seed_file: {_trouble(path, error)}") from error
    return {"nkeys_seed_str": seed.decode()}


def _find(block: re.Pattern[bytes], path: Path) -> bytes:
    found = block.search(path.read_bytes())
    if found is None:
        raise InvalidUserCredentialsError
    return found[1]


def _sign(seed: bytes, nonce: str) -> bytes:
    try:
        key = nkeys.from_seed(bytearray(seed))  # pyright: ignore[reportUnknownMemberType]
        return base64.b64encode(key.sign(nonce.encode()))  # pyright: ignore[reportUnknownMemberType]
    except (nkeys.NkeysError, ValueError) as error:
        raise InvalidUserCredentialsError from error


def _trouble(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{path} cannot be read: {error.strerror}"
    return f"{path} does not hold what `nsc` or `nk` writes there"


def _tls_context(tls: TlsConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca_file or None)
        if tls.cert_file:
            context.load_cert_chain(tls.cert_file, tls.key_file or None)
    except OSError as error:
        raise ConfigError(f"nats.tls: {_tls_files(tls)}: {error.strerror or error}") from error
    return context


def _tls_files(tls: TlsConfig) -> str:
    return ", ".join(file for file in (tls.ca_file, tls.cert_file, tls.key_file) if file)


def _next_server(servers: Sequence[Server], info: dict[str, Any]) -> tuple[Server, float]:  # noqa: ARG001 - nats-py's signature
    """Return where to reconnect and after how many seconds: a random time below a growing one.

    nats-py alone would have every client come back at the same moment.
    """
    server = min(servers, key=lambda server: server.reconnects)
    longest_s = min(RECONNECT_CAP_S, RECONNECT_BASE_S * 2 ** min(server.reconnects, 10))
    return server, random.uniform(0, longest_s)  # noqa: S311 - no secret
