"""YAML with the line of every value, and without PyYAML's habit to let the last twin win."""

import re
from collections.abc import Iterator
from typing import Any, cast

import yaml

from agent_actors.config_keys import KeyPath
from agent_actors.errors import ConfigError


class Document:
    """What a YAML file says, and where."""

    def __init__(self, value: object, root: yaml.Node | None) -> None:
        self.value = value
        self._root = root

    def line(self, path: KeyPath) -> int:
        """Return the line on which the value at `path` begins, 0 if there is none."""
        node, line = self._root, 0
        for part in path:
            # The last of several wins, and after those that `<<` has merged come a map's own.
            for name, key, child in reversed([*_children(node)]):
                if name == part:
                    node, line = child, _line(key)
                    break
            else:
                return 0
        return line


def parse(file: str, text: str) -> tuple[Document, list[tuple[KeyPath, int]]]:
    """Return the one document in `text`, and each key given twice with the line of its first.

    Raises ConfigError with the line and column of what is not YAML.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        twice = list(_repeated(root, (), set()))
        value = cast("Any", loader).construct_document(root) if root else None
        return Document(value, root), twice
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        problem = _without_values(error.problem or "")
    except yaml.reader.ReaderError as error:
        place = f"{file}:{text.count(chr(10), 0, error.position) + 1}"
        problem = f"has the character #x{error.character:04x}, which cannot be printed"
    except RecursionError:
        place, problem = file, "is nested too deeply"
    except ValueError:
        place, problem = file, "has a date or a number that does not exist"
    raise ConfigError(f"{place}: is not YAML: {problem}")


def dump(value: object) -> str:
    """Return the value as YAML, in its own order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """PyYAML's, but for the line breaks of Unicode, which it writes so that they are lost.

    Lists are indented, as yamllint wants them.
    """

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - PyYAML's signature
        super().increase_indent(flow, indentless=False)


def _text_node(_dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


def _children(node: yaml.Node | None) -> Iterator[tuple[str | int, yaml.Node, yaml.Node]]:
    """Yield name or index of each value in the node, where it begins, and the value."""
    match node:
        case yaml.MappingNode():
            for key, value in node.value:
                yield str(key.value), key, value
        case yaml.SequenceNode():
            for index, value in enumerate(node.value):
                yield index, value, value
        case _:
            return


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _repeated(
    node: yaml.Node | None, path: KeyPath, seen: set[int]
) -> Iterator[tuple[KeyPath, int]]:
    if id(node) in seen:  # an alias, perhaps of what it stands in
        return
    seen.add(id(node))
    first: dict[tuple[str, Any], yaml.Node] = {}
    for name, key, child in _children(node):
        if first.setdefault((key.tag, name), key) is not key and isinstance(name, str):
            yield (*path, name), _line(first[key.tag, name])
        yield from _repeated(child, (*path, name), seen)


def _without_values(problem: str) -> str:
    """Return PyYAML's words without what they quote of the file, which may be a secret."""
    words = re.sub(r"""\s*(['"])((?:\\.|(?!\1).)*)\1""", _harmless, problem, flags=re.DOTALL)
    if r"'\t'" in words:
        return f"{words}; indent with spaces, not with tabs"
    if words.startswith(("found undefined", "could not determine", "found character")):
        return f"{words}; a text that begins with one of * & ! % @ ` needs quotes around it"
    return words


def _harmless(quoted: re.Match[str]) -> str:
    """Keep a single character and the name of a token, such as `<block end>`."""
    return quoted[0] if re.fullmatch(r"<[a-z ]+>|\\?.", quoted[2]) else ""
