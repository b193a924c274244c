"""How tools run a program: on the workspace, in its sandbox, as its user, without a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from agent_actors.errors import ToolError, ToolRefused
from agent_actors.tools.paths import parts_of, shown
from agent_actors.tools.registry import Surroundings
from agent_actors.tools.sandbox.command import Command, Finished, Sandbox

_VISIBLE = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"
}


async def run_program(
    surroundings: Surroundings,
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    read: Sequence[Path] = (),
    write: Sequence[Path] = (),
    timeout_s: float | None = None,
) -> Finished:
    """Run a program that may change the workspace, and nothing but it and `write`.

    Raises ToolError when it cannot be started, ToolRefused without a sandbox.
    """
    workspace = surroundings.workspace
    return await sandbox_of(surroundings).run(
        Command(
            argv=argv,
            folder=workspace.path,
            cwd=cwd or workspace.path,
            uid=workspace.uid,
            read=read,
            write=write,
            environment=environment or {},
            timeout_s=timeout_s,
        )
    )


def sandbox_of(surroundings: Surroundings) -> Sandbox:
    """Return what confines commands. Raises ToolRefused where nothing does."""
    if surroundings.sandbox is None:
        raise ToolRefused(
            f"commands are refused, for no sandbox works here: {surroundings.no_sandbox}"
        )
    return surroundings.sandbox


def folder_beneath(surroundings: Surroundings, path: str) -> Path:
    """Return the folder of this path. Raises ToolError when the workspace has no such folder.

    What it says of symlinks is a kindness to the model: it is the sandbox that holds them.
    """
    root = surroundings.workspace.path.resolve()
    folder = (root / argument_path(surroundings, path)).resolve() if path else root
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise ToolError(f"{shown(path)} is not a folder of the workspace")
    return folder


def argument_path(surroundings: Surroundings, path: str) -> str:
    """Return a path of the workspace as an argument: `./…`, which nothing takes for an option.

    Raises ToolError for one that leaves the workspace.
    """
    return "/".join((".", *parts_of(path, surroundings.workspace.path)))


def text_of(output: bytes) -> str:
    """Return a program's output as text; what would steer a terminal is written out."""
    return visible(output.decode(errors="replace").replace("\r\n", "\n"))


def visible(text: str) -> str:
    """Write out the control characters, but for tab and newline, as a terminal must not see."""
    return text.translate(_VISIBLE)


def head_and_tail(text: str, limit: int) -> str:
    """Cut the middle out of a text that is longer: what a run ends with counts most."""
    if len(text) <= limit:
        return text
    head = limit // 3
    tail = limit - head
    missing = len(text) - limit
    return f"{text[:head]}\n[… {missing} characters left out …]\n{text[-tail:]}"
