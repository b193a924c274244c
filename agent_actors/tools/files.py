"""The tools for files: what an agent reads, writes and deletes in its workspace."""

import asyncio
import difflib
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import accumulate, islice, takewhile
from typing import Annotated, ParamSpec, TypeVar

from msgspec import Meta

from agent_actors.errors import ToolError
from agent_actors.tools.beneath import Beneath
from agent_actors.tools.finding import list_files, search_in_files
from agent_actors.tools.paths import Parts, joined
from agent_actors.tools.registry import Arguments, Surroundings, ToolOutput, tool
from agent_actors.tools.text import binary_kind, lines_of, text_of
from agent_actors.tools.threads import TOOLS

MAX_READ_BYTES = 8 * 1024 * 1024
MAX_COMPARED_LINES = 5_000
MAX_COMPARED_CHARS = 1_000_000
MAX_LINE_CHARS = 400
MAX_PLACES = 5
HEADER_CHARS = 1_000
LIKENESS = 0.5

P = ParamSpec("P")
T = TypeVar("T")

Path = Annotated[str, Meta(description="Path of the file, from the workspace: src/main.py")]
Content = Annotated[str, Meta(description="The text, exactly as the file is to have it.")]


class ReadFile(Arguments, frozen=True, kw_only=True):
    """What `read_file` takes."""

    path: Path
    start_line: Annotated[
        int, Meta(ge=1, description="First line to show; lines count from 1.")
    ] = 1
    end_line: Annotated[int | None, Meta(description="Last line to show; none: to the end.")] = None


class WriteFile(Arguments, frozen=True, kw_only=True):
    """What `write_file` takes."""

    path: Path
    content: Content


class AppendFile(Arguments, frozen=True, kw_only=True):
    """What `append_file` takes."""

    path: Path
    content: Content


class EditFile(Arguments, frozen=True, kw_only=True):
    """What `edit_file` takes."""

    path: Path
    old_text: Annotated[
        str,
        Meta(description="Text that occurs exactly once: with whole lines around it, if need be."),
    ]
    new_text: Annotated[str, Meta(description="The text to put in its place.")]


class DeleteFile(Arguments, frozen=True, kw_only=True):
    """What `delete_file` takes."""

    path: Path
    recursive: Annotated[bool, Meta(description="Delete a folder with all that is in it.")] = False


class Mkdir(Arguments, frozen=True, kw_only=True):
    """What `mkdir` takes."""

    path: Annotated[str, Meta(description="Path of the folder, from the workspace.")]


class FileInfo(Arguments, frozen=True, kw_only=True):
    """What `file_info` takes."""

    path: Path


class DiffFiles(Arguments, frozen=True, kw_only=True):
    """What `diff_files` takes."""

    path: Path
    other_path: Annotated[
        str | None, Meta(description="The file to compare with; or give other_text.")
    ] = None
    other_text: Annotated[str | None, Meta(description="A text to compare with.")] = None


@tool("files", reads=True)
async def read_file(surroundings: Surroundings, arguments: ReadFile) -> ToolOutput:
    """Read a text file, or some of its lines. The first line of the answer says which."""
    room = max(HEADER_CHARS, surroundings.settings.max_output_chars - HEADER_CHARS)
    return await TOOLS.run(_read, surroundings.workspace.files, arguments, room)


@tool("files", reads=False)
async def write_file(surroundings: Surroundings, arguments: WriteFile) -> ToolOutput:
    """Write a text file, in place of what was there. Folders that are missing are made."""
    return await _to_its_end(_write, surroundings.workspace.files, arguments)


@tool("files", reads=False)
async def append_file(surroundings: Surroundings, arguments: AppendFile) -> ToolOutput:
    """Add text to the end of a file; a missing file is made."""
    return await _to_its_end(_append, surroundings.workspace.files, arguments)


@tool("files", reads=False)
async def edit_file(surroundings: Surroundings, arguments: EditFile) -> ToolOutput:
    """Replace a piece of a text file that occurs in it exactly once."""
    return await _to_its_end(_edit, surroundings.workspace.files, arguments)


@tool("files", reads=False)
async def delete_file(surroundings: Surroundings, arguments: DeleteFile) -> ToolOutput:
    """Delete a file, a symbolic link or an empty folder; with recursive, any folder."""
    return await _to_its_end(_delete, surroundings.workspace.files, arguments)


@tool("files", reads=False)
async def mkdir(surroundings: Surroundings, arguments: Mkdir) -> ToolOutput:
    """Make a folder, and those that lead to it."""
    return await _to_its_end(_make_folder, surroundings.workspace.files, arguments)


@tool("files", reads=True)
async def file_info(surroundings: Surroundings, arguments: FileInfo) -> ToolOutput:
    """Tell a file's or folder's kind, size, lines, permissions, time of change and encoding."""
    return await TOOLS.run(_info, surroundings.workspace.files, arguments)


@tool("files", reads=True)
async def diff_files(surroundings: Surroundings, arguments: DiffFiles) -> ToolOutput:
    """Compare a text file with another one, or with a text: a unified diff."""
    return await TOOLS.run(_diff, surroundings.workspace.files, arguments)


FILE_TOOLS = (
    read_file,
    write_file,
    append_file,
    edit_file,
    list_files,
    search_in_files,
    delete_file,
    mkdir,
    file_info,
    diff_files,
)


async def _to_its_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what writes in a thread; when cancelled, wait for it: nothing writes after its task."""
    work = asyncio.wrap_future(TOOLS.start(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _read(files: Beneath, arguments: ReadFile, room: int) -> ToolOutput:
    parts = files.parts(arguments.path)
    text, size = _text(files, parts)
    lines = lines_of(text)
    is_cut = len(text.encode()) < size
    if not lines:
        return ToolOutput(text=f"{joined(parts)} is empty", summary="0 lines")
    start, end = arguments.start_line, min(arguments.end_line or len(lines), len(lines))
    if start > len(lines) or end < start:
        raise ToolError(
            f"{joined(parts)} has {len(lines)} lines: {start} to {end} are none of them"
        )
    shown = _fitting(lines[start - 1 : end], room)
    last = start + len(shown) - 1
    notes = [f"lines {start} to {last} of {'at least ' * is_cut}{len(lines)}"]
    if last < end:
        notes.append(f"go on with start_line={last + 1}")
    if is_cut:
        notes.append(f"only the first {MAX_READ_BYTES} of its {size} bytes can be read")
    if len(shown[-1]) < len(lines[last - 1]):
        notes.append(f"line {last} is cut, {len(lines[last - 1]) - room} characters are left out")
    if "\r\n" in shown[0]:
        notes.append("lines end with CR LF")
    summary = f"lines {start} to {last} of {len(lines)}"
    return ToolOutput(
        text=f"{joined(parts)}: {'; '.join(notes)}\n{''.join(shown)}", summary=summary
    )


def _fitting(lines: list[str], room: int) -> list[str]:
    """Return as many whole lines as there is room for; one at least, cut if need be."""
    lengths = accumulate(map(len, lines))
    count = sum(1 for _ in takewhile(lambda length: length <= room, lengths))
    return lines[:count] or [lines[0][:room]]


def _write(files: Beneath, arguments: WriteFile) -> ToolOutput:
    parts, data = files.parts(arguments.path), arguments.content.encode()
    old = files.write(parts, data)
    done = "created" if old is None else f"replaced {old.status.st_size} bytes of"
    count = len(lines_of(arguments.content))
    told = f"{done} {joined(parts)}: {len(data)} bytes, {count} lines"
    return ToolOutput(text=told, summary=told)


def _append(files: Beneath, arguments: AppendFile) -> ToolOutput:
    parts = files.parts(arguments.path)
    try:
        files.look(parts)
    except ToolError:
        return _write(files, WriteFile(path=arguments.path, content=arguments.content))
    old, added = _whole_text(files, parts), arguments.content
    files.write(parts, (old + added).encode())
    told = (
        f"appended {len(added.encode())} bytes to {joined(parts)}, which has "
        f"{len(lines_of(old + added))} lines now"
    )
    return ToolOutput(text=told, summary=told)


def _edit(files: Beneath, arguments: EditFile) -> ToolOutput:
    parts = files.parts(arguments.path)
    text = _whole_text(files, parts)
    old, new = arguments.old_text, arguments.new_text
    if not old:
        raise ToolError("old_text is empty: give the text to replace, or use write_file")
    if old not in text and "\r\n" in text and "\r" not in old:
        old, new = old.replace("\n", "\r\n"), new.replace("\r\n", "\n").replace("\n", "\r\n")
    place = text.find(old)
    if place < 0:
        raise ToolError(_not_found(joined(parts), text, arguments.old_text))
    if text.find(old, place + 1) >= 0:
        raise ToolError(_ambiguous(joined(parts), text, old))
    files.write(parts, (text[:place] + new + text[place + len(old) :]).encode())
    line = text.count("\n", 0, place) + 1
    told = (
        f"edited {joined(parts)} from line {line} on: {len(lines_of(old))} lines became "
        f"{len(lines_of(new))}"
    )
    return ToolOutput(text=told, summary=told)


def _ambiguous(name: str, text: str, old: str) -> str:
    places = list(islice(_places(text, old), MAX_PLACES + 1))
    lines = [str(text.count("\n", 0, place) + 1) for place in places[:MAX_PLACES]]
    more = ", …" if len(places) > MAX_PLACES else ""
    times = max(len(places), text.count(old))
    return (
        f"old_text occurs {times} times in {name} (lines {', '.join(lines)}{more}), and it must "
        "occur once: give more of the text around it"
    )


def _places(text: str, old: str) -> Iterator[int]:
    place = text.find(old)
    while place >= 0:
        yield place
        place = text.find(old, place + 1)


def _not_found(name: str, text: str, old: str) -> str:
    wanted = next((line for line in lines_of(old) if line.strip()), old)[:MAX_LINE_CHARS]
    lines = [line[:MAX_LINE_CHARS] for line in lines_of(text)[:MAX_COMPARED_LINES]]
    close = difflib.get_close_matches(wanted, lines, n=1, cutoff=LIKENESS)
    if not close:
        return f"old_text does not occur in {name}, nor anything like it: read the file again"
    number = lines.index(close[0]) + 1
    return (
        f"old_text does not occur in {name}: white space counts. The line most like its first is "
        f"line {number}: {close[0].rstrip()!r}"
    )


def _delete(files: Beneath, arguments: DeleteFile) -> ToolOutput:
    parts = files.parts(arguments.path)
    entry = files.delete(parts, recursive=arguments.recursive)
    told = f"deleted the {entry.kind} {joined(parts)}"
    return ToolOutput(text=told, summary=told)


def _make_folder(files: Beneath, arguments: Mkdir) -> ToolOutput:
    parts = files.parts(arguments.path)
    is_new = files.make_folder(parts)
    told = f"made the folder {joined(parts)}" if is_new else f"{joined(parts)} was there already"
    return ToolOutput(text=told, summary=told)


def _info(files: Beneath, arguments: FileInfo) -> ToolOutput:
    parts = files.parts(arguments.path)
    entry = files.look(parts)
    changed = datetime.fromtimestamp(entry.status.st_mtime, UTC)
    facts = [
        f"kind: {entry.kind}",
        f"mode: {stat.filemode(entry.status.st_mode)}",
        f"modified: {changed:%Y-%m-%dT%H:%M:%SZ}",
    ]
    if entry.kind == "symbolic link":
        facts.append(f"points to: {joined((entry.target,))} (links are not followed)")
    if entry.kind == "file":
        facts.insert(1, f"size: {entry.status.st_size} bytes")
        facts.extend(_facts_of_content(files, parts, entry.status.st_size))
    return ToolOutput(text=f"{joined(parts)}\n" + "\n".join(facts), summary=", ".join(facts[:2]))


def _facts_of_content(files: Beneath, parts: Parts, size: int) -> list[str]:
    data = files.read(parts, MAX_READ_BYTES)
    is_cut = len(data) < size
    text = text_of(data, is_cut=is_cut)
    if text is None:
        return [f"content: {binary_kind(data) or 'neither UTF-8 text nor anything known'}"]
    mark = " with a byte order mark" if text.startswith("\ufeff") else ""
    ends = ", lines end with CR LF" if "\r\n" in text else ""
    return [
        f"content: text, UTF-8{mark}{ends}",
        f"lines: {'at least ' * is_cut}{len(lines_of(text))}",
    ]


def _diff(files: Beneath, arguments: DiffFiles) -> ToolOutput:
    if (arguments.other_path is None) == (arguments.other_text is None):
        raise ToolError("give either other_path or other_text")
    parts = files.parts(arguments.path)
    own, name, other_name = _whole_text(files, parts), joined(parts), "other_text"
    if arguments.other_path is not None:
        other_parts = files.parts(arguments.other_path)
        other, other_name = _whole_text(files, other_parts), joined(other_parts)
    else:
        other = arguments.other_text or ""
    for text in (own, other):
        if len(text) > MAX_COMPARED_CHARS or text.count("\n") > MAX_COMPARED_LINES:
            raise ToolError(
                f"too long to compare: at most {MAX_COMPARED_LINES} lines and "
                f"{MAX_COMPARED_CHARS} characters"
            )
    found = difflib.unified_diff(lines_of(own), lines_of(other), name, other_name)
    lines = [_ended(line) for line in found]
    if not lines:
        return ToolOutput(text=f"{name} and {other_name} are the same", summary="no difference")
    return ToolOutput(text="".join(lines), summary=f"{len(lines)} lines of difference")


def _ended(line: str) -> str:
    return line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _whole_text(files: Beneath, parts: Parts) -> str:
    """Return a file that is to be worked on as a whole."""
    text, size = _text(files, parts)
    if size > MAX_READ_BYTES:
        raise ToolError(f"{joined(parts)} has {size} bytes, more than {MAX_READ_BYTES}")
    return text


def _text(files: Beneath, parts: Parts) -> tuple[str, int]:
    """Return the beginning of a text file, and how many bytes it has in all."""
    with files.opened(parts) as file:
        data = file.read(MAX_READ_BYTES)
        size = max(len(data), file.seek(0, 2))
    text = text_of(data, is_cut=len(data) < size)
    if text is None:
        kind = binary_kind(data) or "not UTF-8"
        raise ToolError(f"{joined(parts)} is not text: {kind}, {size} bytes")
    return text, size
