"""Paths as the model writes them, and names as the model is shown them."""

import os
import unicodedata
from pathlib import Path

from agent_actors.errors import ToolError

MAX_PATH_CHARS = 4_096
MAX_NAME_BYTES = 255

Parts = tuple[str, ...]


def parts_of(path: str, root: Path) -> Parts:
    """Return the names that lead from the workspace to the path; none for the workspace itself.

    An absolute path within the workspace will do. Raises ToolError for one that leaves it, that
    no file can have, and for git's own.
    """
    relative = path
    if path.startswith("/"):
        if path != str(root) and not path.startswith(f"{root}/"):
            raise ToolError(
                f"{shown(path)} is an absolute path outside of the workspace: give a path from "
                "the workspace, such as src/main.py"
            )
        relative = path[len(str(root)) + 1 :] or "."
    if not relative:
        raise ToolError("the path is empty: give one from the workspace; . is the workspace itself")
    if len(relative) > MAX_PATH_CHARS:
        raise ToolError(f"the path is longer than {MAX_PATH_CHARS} characters")
    names = relative.removesuffix("/").split("/")
    return tuple(_checked(name, path) for name in names if name != ".")


def _checked(name: str, path: str) -> str:
    if not name:
        raise ToolError(f"{shown(path)} has an empty name between two slashes")
    if name == "..":
        raise ToolError(
            f"{shown(path)} leads upwards: .. is not allowed, give the path from the workspace"
        )
    if "\0" in name:
        raise ToolError(f"{shown(path)} has a NUL character, which no file name can have")
    if is_git_name(name):
        raise ToolError(
            f"{shown(path)} is git's own folder, which the file tools neither read nor write: "
            "use the git tools"
        )
    if len(_encoded(name, path)) > MAX_NAME_BYTES:
        raise ToolError(f"the name {shown(name[:40])}… is longer than {MAX_NAME_BYTES} bytes")
    return name


def _encoded(name: str, path: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        raise ToolError(f"{shown(path)} is no valid Unicode text") from None


def is_git_name(name: str) -> bool:
    """Tell whether some file system takes the name for `.git`.

    Git counts those in, too: other cases, invisible characters (HFS+), dots and spaces at the
    end and the short name (NTFS).
    """
    visible = "".join(char for char in name if unicodedata.category(char) != "Cf")
    return visible.rstrip(" .").casefold() in {".git", "git~1"}


def shown(name: str) -> str:
    """Return a name so that it cannot pass for anything else: quoted when it is not plain text."""
    plain = name.isprintable() and name == name.strip() and not name.startswith(("'", '"'))
    return name if plain and name else ascii(name)


def joined(parts: Parts) -> str:
    """Return the path as the model is shown it."""
    return shown("/".join(parts)) if parts else "."
