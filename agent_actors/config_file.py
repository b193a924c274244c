"""Reading the configuration: one YAML file, then the environment, which beats it.

A variable `AGENT_ACTORS_…` sets the key that `config_keys` says. A name in its path, of a pool
or a role, is matched to an existing one without regard to case, and `-` is spelled `_`; one that
matches none is made, in lower case. A value is read by the type of its key: a list with commas
between or as JSON, a map as JSON, anything else as it stands. An empty variable sets nothing.
"""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import msgspec

from agent_actors.config import Config
from agent_actors.config_check import CLOSE, Findings, Origin, check, convert
from agent_actors.config_keys import (
    PREFIX,
    KeyPath,
    Tree,
    as_tree,
    bare_type,
    dotted,
    expected,
    keys_of,
    reference,
    remedy,
    shape_of,
    spelled,
    variable_of,
)
from agent_actors.config_types import Secret, mask_address, mask_secret
from agent_actors.errors import ConfigError

FILE_VARIABLE = "AGENT_ACTORS_CONFIG"
TEST_PREFIX = "AGENT_ACTORS_TEST_"

# Our variables that are no keys of the configuration; so is every `AGENT_ACTORS_TEST_…`. What
# each of them means stands where it is read.
OTHER_VARIABLES = frozenset(
    {
        FILE_VARIABLE,
        "AGENT_ACTORS_CACHE",
        "AGENT_ACTORS_CRD_DIR",
        "AGENT_ACTORS_ENGINE",
        "AGENT_ACTORS_LOG_FORMAT",
        "AGENT_ACTORS_LOG_LEVEL",
        "AGENT_ACTORS_NATS_IMAGE",
        "AGENT_ACTORS_VLLM_PYTHON",
    }
)

# Kubernetes tells every container of each Service in its namespace, so one that is named
# `agent-actors` or `agent-actors-nats` arrives as AGENT_ACTORS_NATS_SERVICE_HOST,
# …_SERVICE_PORT, …_SERVICE_PORT_<NAME>, …_PORT=tcp://10.0.0.1:4222, …_PORT_4222_TCP and
# …_PORT_4222_TCP_{PROTO,PORT,ADDR}. Nobody set them, so they must not be errors.
_KUBERNETES = re.compile(
    rf"{PREFIX}([A-Z0-9]+_)*"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9]+)*|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_KUBERNETES_PORT = re.compile(rf"{PREFIX}([A-Z0-9]+_)*PORT=(tcp|udp|sctp)://.*")


def load_config(
    path: str | None, environ: Mapping[str, str], *, without: Collection[str] = ()
) -> Config:
    """Return the configuration of the file at `path`, or else the one that `environ` names.

    Sections named in `without` are left as they are by default, whatever is said of them: they may
    name files that are elsewhere. Raises ConfigError with one line for each mistake.
    """
    tree, findings = _read_file(path or environ.get(FILE_VARIABLE, ""))
    tree = _overlay(tree, environ, findings)
    wanted = {section: said for section, said in tree.items() if section not in without}
    checked = check(wanted, findings)
    findings.settle()
    return convert(checked, Config)


def load_complete(path: str | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration of a service that starts nothing of its own. Raises ConfigError."""
    config = load_config(path, environ)
    needed = {("nats", "url"): config.nats.url, ("vllm", "urls"): config.vllm.urls}
    absent = [
        f"{'.'.join(path)} ({variable_of(path)})" for path, value in needed.items() if not value
    ]
    if absent:
        raise ConfigError(
            f"{' and '.join(absent)}: must be set, since `serve` starts nothing of its own; "
            "`agent-actors up` does"
        )
    return config


def effective(config: Config) -> dict[str, Any]:
    """Return the configuration as plain values, secrets and logins in addresses as `***`."""
    return cast("dict[str, Any]", plain(config))


def plain(value: object) -> object:
    """Return a value of the configuration as plain values, secrets and logins as `***`."""
    return _without_logins(msgspec.to_builtins(value, enc_hook=mask_secret))


def to_yaml(config: Config) -> str:
    """Return the effective configuration as YAML that `load_config` takes."""
    from agent_actors import config_yaml  # noqa: PLC0415 - PyYAML takes 15 ms to import

    return config_yaml.dump(effective(config))


def _without_logins(value: object) -> object:
    match value:
        case dict():
            return {name: _without_logins(inner) for name, inner in cast("Tree", value).items()}
        case list() | tuple():
            return [_without_logins(inner) for inner in cast("list[object]", value)]
        case str():
            return mask_address(value)
        case _:
            return value


def _read_file(name: str) -> tuple[Tree, Findings]:
    if not name:
        return {}, Findings(Origin("", lambda _: 0))
    from agent_actors import config_yaml  # noqa: PLC0415 - whoever has no file need not wait

    document, twice = config_yaml.parse(name, _read_text(name))
    findings = Findings(Origin(name, document.line))
    for path, line in twice:
        findings.add(path, f"is given twice, first on line {line}; keep one")
    tree = as_tree({} if document.value is None else document.value)
    if tree is None:
        findings.add((), f"holds no keys; it should be {expected(Config)}")
    return tree or {}, findings


def _read_text(name: str) -> str:
    try:
        return Path(name).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
    raise ConfigError(f"{name}:{line}: is not UTF-8 text; save the file as UTF-8")


def _overlay(tree: Tree, environ: Mapping[str, str], findings: Findings) -> Tree:
    """Return the tree with what the environment sets, whole sections before their keys."""
    for name in sorted(environ, key=lambda name: (len(name), name)):
        text = environ[name]
        if not name.startswith(PREFIX) or _is_other(name, text):
            continue
        found = _find(Config, name.removeprefix(PREFIX).lower(), tree, ("__", "_"))
        if found is None:
            findings.add_line(f"{name}: matches no key; {_meant(name)}")
        elif text:
            tree = _set_from(name, text, *found, tree, findings)
    return tree


def _is_other(name: str, text: str) -> bool:
    return (
        name in OTHER_VARIABLES
        or name.startswith(TEST_PREFIX)
        or _KUBERNETES.fullmatch(name) is not None
        or _KUBERNETES_PORT.fullmatch(f"{name}={text}") is not None
    )


def _find(
    annotation: object, rest: str, given: object, separators: tuple[str, ...] = ("__",)
) -> tuple[KeyPath, object] | None:
    """Return path and type of the key that the rest of a variable's name, lowered, spells."""
    for name, inner in _next_keys(annotation, rest, given).items():
        if rest == spelled(name):
            return (name,), inner
        for separator in separators:
            start = spelled(name) + separator
            if rest.startswith(start):
                below = (as_tree(given) or {}).get(name)
                if found := _find(inner, rest.removeprefix(start), below):
                    return (name, *found[0]), found[1]
    return None


def _next_keys(annotation: object, rest: str, given: object) -> dict[str, object]:
    """Return the keys that may come next: a section's, or the names there are and a new one."""
    shape = shape_of(annotation)
    if shape.section:
        return {name: info.type for name, info in keys_of(shape.section).items()}
    if not shape.named_sections:
        return {}
    names = [name for name in as_tree(given) or {} if isinstance(cast("object", name), str)]
    return dict.fromkeys((*names, rest.partition("__")[0]), shape.values)


def _meant(name: str) -> str:
    """Return the variable that `name` may be a slip of, with the names that it has in it."""
    given = name.removeprefix(PREFIX).split("__")
    likely = [
        "__".join(
            given[index] if part.startswith("<") and index < len(given) else part
            for index, part in enumerate(key.variable.removeprefix(PREFIX).split("__"))
        )
        for key in reference()
    ]
    if close := get_close_matches("__".join(given), likely, n=1, cutoff=CLOSE):
        return f"did you mean {PREFIX}{close[0]}?"
    return "`agent-actors config show --reference` lists those that do"


def _set_from(
    name: str, text: str, path: KeyPath, annotation: object, tree: Tree, findings: Findings
) -> Tree:
    """Return the tree with the value at `path` that the variable `name` gives."""
    if (earlier := findings.origin.variables.setdefault(path, name)) != name:
        findings.add_line(f"{name}: sets {dotted(path)}, as {earlier} does; keep one")
        return tree
    if above := _single_above(path, tree, findings):
        findings.add_line(f"{name}: sets {dotted(path)}, but {above} gives no map; keep one")
        return tree
    try:
        return _with(Config, tree, path, _from_text(annotation, text))
    except UnicodeEncodeError:
        findings.add(path, "is not UTF-8 text")
    except msgspec.DecodeError as error:
        findings.add(path, f"is not JSON ({error}); it should be {remedy(annotation)}")
    return tree


def _single_above(path: KeyPath, tree: Tree, findings: Findings) -> str:
    """Return the variable that gives a single value in place of the map that `path` is in."""
    value: object = tree
    for part in path[:-1]:
        value = (as_tree(value) or {}).get(str(part))
    is_single = value is not None and as_tree(value) is None
    return findings.origin.variables.get(path[:-1], "") if is_single else ""


def _from_text(annotation: object, text: str) -> object:
    text.encode()  # what is not UTF-8 in the environment Python hands on as lone surrogates
    shape, kind = shape_of(annotation), bare_type(annotation)
    if shape.single and not text.lstrip().startswith("{"):
        return _from_text(shape.single, text)
    if shape.section or shape.values or (shape.items and text.lstrip().startswith("[")):
        return msgspec.json.decode(text)
    if shape.items:
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind in (str, Secret):
        return text
    try:
        return msgspec.convert(text.strip(), kind, strict=False)
    except msgspec.ValidationError:
        return text  # the check says what is wrong with it


def _with(annotation: object, tree: Tree, path: KeyPath, value: object) -> Tree:
    """Return the tree with `value` at `path`; the tree itself stays, YAML may share its parts."""
    name, below = str(path[0]), path[1:]
    if not below:
        return {**tree, name: value}
    shape, given = shape_of(annotation), tree.get(name)
    kind = keys_of(shape.section)[name].type if shape.section else shape.values
    inner = as_tree(given)
    if given is None or (inner is None and shape_of(kind).single):
        inner = {}
    if inner is None:
        return tree  # the check says that this is no section
    return {**tree, name: _with(kind, inner, below, value)}
