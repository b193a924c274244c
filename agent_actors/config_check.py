"""What is wrong with a configuration, all of it at once, in words for who wrote it.

msgspec stops at the first mistake and does not name the keys of maps, so the tree is walked
along the Structs here and msgspec judges each single value. The value of a secret is never shown.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

import msgspec

from agent_actors.config import Config, NatsConfig, PoolConfig, StreamsConfig, VllmConfig
from agent_actors.config_keys import (
    KeyPath,
    Shape,
    Tree,
    as_tree,
    bare_type,
    dotted,
    facts_of,
    keys_of,
    quoted,
    reference,
    remedy,
    shape_of,
    single_type,
    spelled,
)
from agent_actors.config_tools import TOOL_GROUPS
from agent_actors.config_types import MASK, Secret, Section
from agent_actors.contract import subjects_overlap
from agent_actors.errors import ConfigError

SectionT = TypeVar("SectionT", bound=Section)
Problems = Iterator[tuple[KeyPath, str]]

MAX_SHOWN_CHARS = 60

# How similar a key must be to be suggested before, and after, the same key of another section.
CLOSE, ALIKE = 0.75, 0.65


# What stands before an @, and what would be a port if it were a number: wider than it need be,
# since just what is wrong in an address gets into an error.
LOGINS = (
    (re.compile(r"^(\s*[\w+.-]+://)?.*@", re.DOTALL), rf"\1{MASK}@"),
    (re.compile(r"^(\s*[\w+.-]+://)[^/@,]*:(?!\d+(?:[/,]|\Z)).*", re.DOTALL), rf"\1{MASK}"),
)


class Origin:
    """Which file, line or environment variable gives which value.

    `lines` returns the line of a path in the file, 0 for one that is not there.
    """

    def __init__(self, file: str, lines: Callable[[KeyPath], int]) -> None:
        self.variables: dict[KeyPath, str] = {}
        self._file = file
        self._lines = lines

    def place(self, path: KeyPath) -> str:
        """Return where the value is given, or where it would belong."""
        if variable := self._variable(path):
            return variable
        for end in range(len(path), 0, -1):
            if line := self._lines(path[:end]):
                return f"{self._file}:{line}"
            for known, variable in self.variables.items():
                if known[:end] == path[:end]:
                    return variable
        return self._file

    def folder(self, path: KeyPath) -> str:
        """Return the folder from which a relative path counts: the file's, or the current."""
        return "" if self._variable(path) else str(Path(self._file).parent)

    def _variable(self, path: KeyPath) -> str:
        prefixes = (path[:end] for end in range(len(path), 0, -1))
        return next((self.variables[prefix] for prefix in prefixes if prefix in self.variables), "")


class Findings:
    """The mistakes found so far."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self._paths: list[KeyPath] = []
        self._lines: list[str] = []

    def add(self, path: KeyPath, what: str, *, at: KeyPath | None = None) -> None:
        """Note what is wrong with the value at `path`; `at` is the place to name if another."""
        parts = (self.origin.place(path if at is None else at), f"{dotted(path)} {what}".strip())
        self.add_line(": ".join(filter(None, parts)), path)

    def add_line(self, line: str, path: KeyPath = ()) -> None:
        """Note a mistake in words of one's own."""
        self._paths.append(path)
        self._lines.append(line)

    def within(self, path: KeyPath) -> bool:
        """Tell whether something at or below `path` is wrong."""
        return any(found[: len(path)] == path for found in self._paths)

    def settle(self) -> None:
        """Raise ConfigError, one line for each mistake, if there are any."""
        if self._lines:
            raise ConfigError("\n".join(self._lines))


def check(tree: Tree, findings: Findings) -> Tree:
    """Return the tree as msgspec can convert it, and note what is wrong with it.

    Paths of files are made absolute, empty sections become defaults, and an API key is read
    from its file.
    """
    checked = _section(Config, tree, (), findings)
    _check_section("nats", NatsConfig, _nats_problems, checked, findings)
    _check_section("vllm", VllmConfig, _vllm_problems, checked, findings)
    _check_section("streams", StreamsConfig, _streams_problems, checked, findings)
    _check_sizes(checked.get("pools", {}), findings)
    _check_subjects(checked.get("pools", {}), findings)
    _check_tools(checked.get("pools", {}), findings)
    if not findings.within(("vllm",)):
        _read_api_key(checked.get("vllm", {}), findings)
    return checked


def convert(value: object, kind: type[SectionT]) -> SectionT:
    """Return the section that a checked tree describes."""
    return msgspec.convert(value, kind, dec_hook=_decode_secret)


def _decode_secret(kind: type, value: object) -> Secret:
    if kind is Secret and isinstance(value, str):
        # Files and mounted secrets end in a line break that belongs to no password.
        return Secret(value.rstrip("\r\n"))
    raise TypeError(f"{kind.__name__} cannot be made from {type(value).__name__}")


def _value(annotation: object, value: object, path: KeyPath, findings: Findings) -> object:
    shape = shape_of(annotation)
    if value is None and shape.optional:
        return None
    if shape.single and as_tree(value) is None:
        return _single(annotation, value, path, findings)
    if shape.section:
        return _section(shape.section, value, path, findings)
    if shape.values is not None:
        return _map(annotation, value, path, findings)
    if shape.items is not None:
        return _list(annotation, value, path, findings)
    return _single(annotation, value, path, findings)


def _section(section: type[Section], value: object, path: KeyPath, findings: Findings) -> Tree:
    given = as_tree(value)
    if given is None:
        _wrong(section, value, path, findings)
        return {}
    keys = keys_of(section)
    checked: Tree = {}
    for name, inner in given.items():
        if name not in keys:
            findings.add((*path, str(name)), f"is no key; {_meant(str(name), keys)}")
        elif inner is not None or not _is_table(shape_of(keys[name].type)):
            checked[name] = _value(keys[name].type, inner, (*path, name), findings)
    for name, info in keys.items():
        if info.required and name not in given:
            findings.add((*path, name), f"is missing; it should be {remedy(info.type)}")
    return checked


def _is_table(shape: Shape) -> bool:
    """Tell whether a heading with nothing below it, as in YAML `nats:`, means the defaults."""
    has_names = shape.section is not None or shape.values is not None
    return has_names and not shape.optional and not shape.single


def _as_list(value: object) -> list[object] | None:
    return cast("list[object]", value) if isinstance(value, list) else None


def _meant(name: str, keys: Iterable[str]) -> str:
    for cutoff in (CLOSE, ALIKE):
        if similar := get_close_matches(spelled(name), keys, n=1, cutoff=cutoff):
            return f"did you mean `{similar[0]}`?"
        for key in reference():
            if key.path.split(".")[-1] == name:
                return f"did you mean `{key.path}`?"
    return f"the keys here are {', '.join(keys)}"


def _map(annotation: object, value: object, path: KeyPath, findings: Findings) -> Tree:
    given = as_tree(value)
    if given is None or (not given and facts_of(annotation).filled):
        _wrong(annotation, value, path, findings)
        return {}
    shape = shape_of(annotation)
    checked: Tree = {}
    names: dict[str, str] = {}
    for name, inner in given.items():
        at = (*path, str(name))
        if problem := _problem(shape.names, name):
            findings.add(path, f"has a name that {problem}", at=at)
            continue
        if shape.named_sections and (twin := names.setdefault(spelled(name), name)) != name:
            findings.add(
                at, f"and {dotted((*path, twin))} differ only in case, - and _; rename one"
            )
        section: object = {} if inner is None and shape.named_sections else inner
        kept = name.upper() if facts_of(shape.names).upper else name
        checked[kept] = _value(shape.values, section, at, findings)
    return checked


def _list(annotation: object, value: object, path: KeyPath, findings: Findings) -> list[object]:
    given = _as_list(value)
    if given is None or (not given and facts_of(annotation).filled):
        _wrong(annotation, value, path, findings)
        return []
    items = shape_of(annotation).items
    return [_value(items, item, (*path, index), findings) for index, item in enumerate(given)]


def _single(annotation: object, value: object, path: KeyPath, findings: Findings) -> object:
    if problem := _problem(annotation, value):
        findings.add(path, problem)
    elif facts_of(annotation).file and isinstance(value, str) and value:
        return _existing_file(value, path, findings)
    return value


def _wrong(annotation: object, value: object, path: KeyPath, findings: Findings) -> None:
    findings.add(path, f"is {_shown(annotation, value)}; it should be {remedy(annotation)}")


def _problem(annotation: object, value: object) -> str:
    """Return what is wrong with a single value, or nothing."""
    if isinstance(value, str) and _is_masked(annotation, value):
        return f"holds the {MASK} that `agent-actors config show` prints; it should be the real one"
    if isinstance(value, str) and bare_type(annotation) is Secret:
        if value.rstrip("\r\n").isprintable():
            return ""
        return "has a character that cannot be printed, such as a line break; take it out"
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        hint = _hint(annotation, value)
        return f"is {_shown(annotation, value)}; it should be {remedy(annotation)}{hint}"
    return ""


def _is_masked(annotation: object, text: str) -> bool:
    return text == MASK if bare_type(annotation) is Secret else f"://{MASK}@" in text


def _hint(annotation: object, value: object) -> str:
    """Return what else helps: quotes, which in YAML tell a text from a number, or nothing."""
    kind = single_type(annotation)
    if value is None:
        return ", or left out"
    if kind in (str, Secret) and isinstance(value, (bool, int, float, date)):
        return ", in quotes"
    number = r"-?\d+" if kind is int else r"-?\d+(\.\d+)?"
    if kind in (int, float) and isinstance(value, str) and re.fullmatch(number, value):
        return ", without quotes"
    return ""


def _shown(annotation: object, value: object) -> str:
    """Return a value for an error; of a secret, and of what should have keys, only the kind."""
    kind, shape = single_type(annotation), shape_of(annotation)
    if kind is Secret or (shape.section and not shape.single) or shape.values:
        return _kind(value)
    match value:
        case None | list() | dict():
            return _kind(cast("object", value))
        case str():
            return _without_login(value) + ("" if kind is str else f", {_kind(value)}")
        case bool():
            return f"{str(value).lower()}, {_kind(value)}"
        case int() | float() if kind in (int, float):
            return str(value)
        case _:
            return f"{value}, {_kind(value)}"


def _without_login(text: str) -> str:
    """Return the text in quotes, cut short, and without what may be a login in an address."""
    for login, mask in LOGINS:
        text = login.sub(mask, text)
    return quoted(text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…")


def _kind(value: object) -> str:
    match value:
        case None:
            return "empty"
        case list() | dict() if not value:
            return "empty"
        case bool():
            return "a true-or-false value"
        case str():
            return "a text"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case dict():
            return "a map"
        case date():
            return "a date"
        case _:
            return "something else"


def _existing_file(name: str, path: KeyPath, findings: Findings) -> str:
    try:
        absolute = Path(findings.origin.folder(path), Path(name).expanduser()).absolute()
        with absolute.open("rb"):
            return str(absolute)
    except OSError as error:
        findings.add(path, f"names a file that cannot be read: {error.filename}: {error.strerror}")
    except RuntimeError as error:
        findings.add(path, f"names a file that cannot be found: {error}")
    return name


def _check_section(
    name: str,
    kind: type[SectionT],
    problems: Callable[[SectionT], Problems],
    tree: Tree,
    findings: Findings,
) -> None:
    """Note what is wrong between the keys of a section whose single values are right."""
    if not findings.within((name,)):
        for path, what in problems(convert(tree.get(name, {}), kind)):
            findings.add((name, *path), what)


def _nats_problems(nats: NatsConfig) -> Problems:
    ways = {
        "credentials_file": nats.credentials_file,
        "nkey_seed_file": nats.nkey_seed_file,
        "user": nats.user or nats.password,
        "token": nats.token,
        "url": re.search(r"://[^/,]*@", nats.url),
    }
    given = [name for name, value in ways.items() if value]
    if len(given) > 1:
        others = " and ".join(f"nats.{name}" for name in given[1:])
        yield (given[0],), f"and {others} each say who we are; keep one"
    if bool(nats.user) != bool(nats.password):
        there, missing = ("user", "password") if nats.user else ("password", "user")
        yield (there,), f"is set without nats.{missing}; set both or neither"
    if nats.tls and bool(nats.tls.cert_file) != bool(nats.tls.key_file):
        pair = ("cert_file", "key_file")
        there, missing = pair if nats.tls.cert_file else reversed(pair)
        yield ("tls", there), f"is set without nats.tls.{missing}; set both or neither"


def _vllm_problems(vllm: VllmConfig) -> Problems:
    if vllm.api_key and vllm.api_key_file:
        yield ("api_key_file",), "and vllm.api_key are both set; keep one"
    if not vllm.api_key.reveal().isascii():
        yield ("api_key",), "has a character beyond ASCII, which an HTTP header cannot carry"
    if vllm.min_in_flight > vllm.max_in_flight:
        most = f"vllm.max_in_flight, {vllm.max_in_flight}"
        yield ("min_in_flight",), f"is {vllm.min_in_flight}, more than {most}"


def _streams_problems(streams: StreamsConfig) -> Problems:
    ages = {
        name: getattr(streams, name) for name in ("responses_max_age_s", "deadletter_max_age_s")
    }
    shortest = min(ages, key=lambda name: ages[name])
    if streams.duplicate_window_s > ages[shortest]:
        what = f"is {streams.duplicate_window_s:.15g}, longer than messages are kept"
        limit = f"it may be at most streams.{shortest}, {ages[shortest]:.15g}"
        yield ("duplicate_window_s",), f"{what}; {limit}"


def _check_sizes(pools: Tree, findings: Findings) -> None:
    """Note a pool that is to have at least more actors than at most."""
    for name, given in pools.items():
        if findings.within(("pools", name)):
            continue
        scale = convert(given, PoolConfig).autoscale
        if scale and scale.min > scale.max:
            path = ("pools", name, "actors", "min")
            findings.add(path, f"is {scale.min}, more than pools.{name}.actors.max, {scale.max}")


def _check_subjects(pools: Tree, findings: Findings) -> None:
    """Note a subject that two pools serve, or one pool twice: a work queue refuses both."""
    seen: list[tuple[str, str]] = []
    # Whoever named no subjects is the one to be told.
    for name, given in sorted(pools.items(), key=lambda pool: "subjects" not in pool[1]):
        if findings.within(("pools", name)):
            continue
        for subject in convert(given, PoolConfig).subjects:
            clash = (entry for entry in seen if subjects_overlap(subject, entry[1]))
            for other, taken in islice(clash, 1):
                has = "has" if "subjects" in given else "is not given and so has"
                whose = "of the same pool; drop one" if other == name else f"of pools.{other}"
                rule = "" if other == name else "; a subject can have one pool only"
                what = f"{has} {subject}, which overlaps {taken} {whose}{rule}"
                findings.add(("pools", name, "subjects"), what)
            seen.append((name, subject))


def _check_tools(pools: Tree, findings: Findings) -> None:
    """Note an MCP server that cannot be reached, or told from our own tools."""
    for pool, given in pools.items():
        servers = (as_tree(given.get("tools")) or {}).get("mcpServers")
        for name, server in (as_tree(servers) or {}).items():
            path = ("pools", pool, "tools", "mcpServers", name)
            if findings.within(path):
                continue
            if name in TOOL_GROUPS:
                taken = "has the name of a group of tools that is there already; rename it"
                findings.add(path, taken)
            if not server.get("command") and not server.get("url"):
                needed = "needs a command, for a stdio server, or a url, for an HTTP server"
                findings.add(path, needed)
            elif server.get("command") and server.get("url"):
                findings.add(path, "has a command and a url; keep one")


def _read_api_key(vllm: Tree, findings: Findings) -> None:
    path = ("vllm", "api_key_file")
    if not vllm.get("api_key_file"):
        return
    try:
        key = Path(vllm["api_key_file"]).read_text(encoding="ascii").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        key = ""
    if not key or not key.isprintable():
        findings.add(path, "names a file that should hold one line of ASCII text, the key")
    vllm["api_key"] = key
