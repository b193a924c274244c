"""What is configured for one server, made ready: `${NAME}` filled in, the secrets known."""

import re
from collections.abc import Collection, Iterator, Mapping
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from agent_actors.config_tools import McpServerConfig
from agent_actors.config_types import MASK
from agent_actors.errors import ConfigError
from agent_actors.observe.redaction import is_secret_name, scrub

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
INHERITED = ("PATH", "HOME", "LANG")
# A shorter value, such as `1` or `true`, is no secret, and masking it would garble texts.
SHORTEST_SECRET = 8
# What an allow-list names already: a server of such a name would be granted with it.
GROUPS = frozenset({"default", "files", "git", "http", "tests"})


class ServerSetup(Struct, frozen=True, kw_only=True):
    """One server as it is reached: `argv` for a program, else `url`. Prints without secrets."""

    name: str
    timeout_s: float
    argv: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str | None = None
    url: str = ""
    headers: dict[str, str] = {}
    read_only_tools: frozenset[str] = frozenset()
    secrets: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ServerSetup({self.name!r})"

    def masked(self, text: str) -> str:
        """Return the text without the secrets that the server was given."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        return text

    def fit_for_log(self, text: str) -> str:
        """Return the text without these secrets and without whatever looks like one."""
        return scrub(self.masked(text))


def server_setup(
    name: str,
    config: McpServerConfig,
    environment: Mapping[str, str],
    where: str,
    built_in: Collection[str] = (),
) -> ServerSetup:
    """Fill in what `config` takes from the environment. Raises ConfigError.

    `built_in` are the names of the tools that are, which no server may have.
    """
    if name in GROUPS or name in built_in:
        raise ConfigError(
            f"{where}: {name!r} is what built-in tools are called; name the server otherwise, so "
            "that a role can be given the one without the other"
        )
    _check(config, where)
    filler = _Filler(environment, where)
    env = {key: filler.fill(f"env.{key}", value.reveal()) for key, value in config.env.items()}
    headers = {
        key: filler.fill(f"headers.{key}", value.reveal()) for key, value in config.headers.items()
    }
    command = (filler.fill("command", config.command),) if config.command else ()
    args = tuple(filler.fill(f"args[{index}]", arg) for index, arg in enumerate(config.args))
    url = filler.fill("url", config.url)
    _check_filled((*command, *args), env, headers, url, where)
    inherited = {key: environment[key] for key in INHERITED if key in environment}
    found = {*filler.secrets, *_named_secrets(env | headers), *_passwords((*env.values(), url))}
    return ServerSetup(
        name=name,
        timeout_s=config.timeout_s,
        argv=(*command, *args),
        env=inherited | env,
        cwd=config.cwd or None,
        url=url,
        headers=headers,
        read_only_tools=frozenset(config.read_only_tools),
        # The longest first, since one may be a part of another.
        secrets=tuple(sorted(filter(_is_long, found), key=lambda text: (-len(text), text))),
    )


def _check(config: McpServerConfig, where: str) -> None:
    if bool(config.command) == bool(config.url):
        raise ConfigError(f"{where}: needs either a command or a url, and not both")
    if config.url and (config.args or config.env or config.cwd):
        raise ConfigError(f"{where}: args, env and cwd belong to a command, but a url is set")
    if config.command and config.headers:
        raise ConfigError(f"{where}: headers belong to a url, but a command is set")


def _check_filled(
    argv: tuple[str, ...], env: dict[str, str], headers: dict[str, str], url: str, where: str
) -> None:
    """Refuse what no process and no HTTP request can carry. Raises ConfigError."""
    for key, value in env.items():
        if "\0" in key + value or "=" in key:
            raise ConfigError(f"{where}.env.{key}: no variable can have such a name or value")
    if any("\0" in part for part in argv):
        raise ConfigError(f"{where}.args: has a zero byte, which no argument can have")
    for key, value in headers.items():
        if not value.isprintable():
            raise ConfigError(
                f"{where}.headers.{key}: has a line break or another control character; a secret "
                "read from a file often ends with one"
            )
    if url and not re.match(r"https?://[^/\s]+", url):
        raise ConfigError(f"{where}.url: must be an http:// or https:// address")


class _Filler:
    """Fills in variables, and remembers what may be a secret among them."""

    def __init__(self, environment: Mapping[str, str], where: str) -> None:
        self._environment = environment
        self._where = where
        self.secrets: set[str] = set()

    def fill(self, path: str, text: str) -> str:
        """Return the text with its variables filled in. Raises ConfigError for one not set."""

        def value_of(found: re.Match[str]) -> str:
            variable = found[1]
            if variable not in self._environment:
                raise ConfigError(
                    f"{self._where}.{path}: the environment variable {variable} is not set"
                )
            value = self._environment[variable]
            # A path is no secret: masking it would garble most of what a server says.
            if not value.startswith("/"):
                self.secrets.add(value)
            return value

        return VARIABLE.sub(value_of, text)


def _named_secrets(values: Mapping[str, str]) -> Iterator[str]:
    """Yield the values whose names say that they are secret, `Bearer` and the like taken off."""
    for name, value in values.items():
        if is_secret_name(name):
            yield value
            yield value.rpartition(" ")[2]


def _passwords(values: tuple[str, ...]) -> Iterator[str]:
    """Yield the passwords in addresses, as they are written and as they are meant."""
    for value in values:
        try:
            password = urlsplit(value).password
        except ValueError:
            continue
        if password:
            yield password
            yield unquote(password)


def _is_long(secret: str) -> bool:
    return len(secret) >= SHORTEST_SECRET
