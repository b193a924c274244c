"""The tools that look for files: by folder, and by what is in them."""

import re
import time
from collections.abc import Callable, Iterator
from fnmatch import translate
from itertools import islice
from typing import Annotated

import regex
from msgspec import Meta

from agent_actors.errors import ToolError
from agent_actors.tools.beneath import Beneath, Entry
from agent_actors.tools.paths import joined, shown
from agent_actors.tools.registry import Arguments, Surroundings, ToolOutput, tool
from agent_actors.tools.text import printable, text_of
from agent_actors.tools.threads import SEARCHES, TOOLS

MAX_LISTED = 1_000
MAX_LOOKED_AT = 100_000
MAX_LIST_DEPTH = 32
MAX_MATCHES = 200
MAX_SEARCHED_BYTES = 8 * 1024 * 1024
MAX_LINE_CHARS = 300
MAX_PATTERN_CHARS = 1_000
SEARCH_TIME_S = 10.0


class ListFiles(Arguments, frozen=True, kw_only=True):
    """What `list_files` takes."""

    path: Annotated[str, Meta(description="The folder, from the workspace.")] = "."
    recursive: Annotated[bool, Meta(description="List what is in its folders, too.")] = False
    max_depth: Annotated[
        int, Meta(ge=1, le=MAX_LIST_DEPTH, description="How many folders down, when recursive.")
    ] = 8


class SearchInFiles(Arguments, frozen=True, kw_only=True):
    """What `search_in_files` takes."""

    pattern: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=MAX_PATTERN_CHARS,
            description="A regular expression, found within one line.",
        ),
    ]
    path: Annotated[str, Meta(description="Folder or file to search, from the workspace.")] = "."
    glob: Annotated[
        str,
        Meta(
            max_length=MAX_PATTERN_CHARS,
            description="Which files: *.py by name, src/**/*.py by path.",
        ),
    ] = "*"
    plain_text: Annotated[bool, Meta(description="The pattern is text to be found as it is.")] = (
        False
    )
    ignore_case: Annotated[bool, Meta(description="Take upper and lower case for the same.")] = (
        False
    )
    max_matches: Annotated[
        int, Meta(ge=1, le=MAX_MATCHES, description="How many matching lines to show.")
    ] = 50


@tool("files", reads=True)
async def list_files(surroundings: Surroundings, arguments: ListFiles) -> ToolOutput:
    """List a folder: names, kinds and sizes. What is in .git is left out."""
    return await TOOLS.run(_list, surroundings.workspace.files, arguments)


@tool("files", reads=True)
async def search_in_files(surroundings: Surroundings, arguments: SearchInFiles) -> ToolOutput:
    """Find lines in text files: path, line number and the line."""
    workspace = surroundings.workspace
    async with workspace.searching:
        return await SEARCHES.run(_search, workspace.files, arguments)


def _list(files: Beneath, arguments: ListFiles) -> ToolOutput:
    parts = files.parts(arguments.path)
    depth = arguments.max_depth - 1 if arguments.recursive else 0
    found = list(islice(files.walk(parts, max_depth=depth), MAX_LOOKED_AT))
    found.sort(key=lambda entry: entry.parts)
    count = f"{'at least ' * (len(found) == MAX_LOOKED_AT)}{len(found)}"
    header = f"{joined(parts)}: {count} entries"
    if len(found) > MAX_LISTED:
        header += f", the first {MAX_LISTED} of them"
    lines = [_listed(entry) for entry in found[:MAX_LISTED]]
    return ToolOutput(text="\n".join([header, *lines]), summary=f"{count} entries")


def _listed(entry: Entry) -> str:
    name = joined(entry.parts)
    match entry.kind:
        case "folder":
            return f"{name}/"
        case "file":
            return f"{name} ({entry.status.st_size} bytes)"
        case "symbolic link":
            return f"{name} (symbolic link to {shown(entry.target)}, not followed)"
        case kind:
            return f"{name} ({kind})"


class _Search:
    """One search: what is looked for, until when, and what was found or left out."""

    def __init__(self, arguments: SearchInFiles) -> None:
        self._pattern = _compiled(arguments)
        self._max_matches = arguments.max_matches
        self._ends = time.monotonic() + SEARCH_TIME_S
        self.matches: list[str] = []
        self.searched = 0
        self.skipped = {"binary": 0, "too big": 0, "not readable": 0}

    @property
    def is_full(self) -> bool:
        """Whether more matches would not be shown."""
        return len(self.matches) >= self._max_matches

    def look_into(self, files: Beneath, entry: Entry) -> None:
        """Search one file. Raises TimeoutError when the time is over."""
        self._time_left_s()
        if entry.status.st_size > MAX_SEARCHED_BYTES:
            self.skipped["too big"] += 1
            return
        try:
            text = text_of(files.read(entry.parts, MAX_SEARCHED_BYTES))
        except ToolError:
            self.skipped["not readable"] += 1
            return
        if text is None:
            self.skipped["binary"] += 1
            return
        self.searched += 1
        self._look_through(joined(entry.parts), text)

    def _look_through(self, name: str, text: str) -> None:
        for number, line in enumerate(text.split("\n"), start=1):
            if self.is_full:
                return
            match = self._pattern.search(line, timeout=self._time_left_s(), concurrent=True)
            if match:
                self.matches.append(f"{name}:{number}: {_excerpt(line, match.start())}")

    def _time_left_s(self) -> float:
        left_s = self._ends - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s


def _search(files: Beneath, arguments: SearchInFiles) -> ToolOutput:
    search, notes = _Search(arguments), list[str]()
    wanted = _name_test(arguments.glob)
    try:
        for entry in _candidates(files, arguments.path):
            if search.is_full:
                notes.append("there may be more: only these are shown")
                break
            if entry.kind == "file" and wanted(entry):
                search.look_into(files, entry)
    except TimeoutError:
        notes.append(
            f"stopped after {SEARCH_TIME_S:g} s: search fewer files, or for something simpler"
        )
    notes.extend(f"{count} files {why}" for why, count in search.skipped.items() if count)
    found = f"{len(search.matches)} matching lines in {search.searched} files"
    header = "; ".join([found, *notes])
    return ToolOutput(text="\n".join([header, *search.matches]), summary=found)


def _candidates(files: Beneath, path: str) -> Iterator[Entry]:
    parts = files.parts(path)
    entry = files.look(parts)
    if entry.kind == "file":
        return iter([entry])
    return islice(files.walk(parts), MAX_LOOKED_AT)


def _compiled(arguments: SearchInFiles) -> regex.Pattern[str]:
    flags = regex.IGNORECASE if arguments.ignore_case else 0
    pattern = regex.escape(arguments.pattern) if arguments.plain_text else arguments.pattern
    try:
        return regex.compile(pattern, flags)
    except (regex.error, RecursionError) as error:
        raise ToolError(
            f"{arguments.pattern!r} is no regular expression: {error}; say plain_text to find it "
            "as it is"
        ) from None


def _name_test(glob: str) -> Callable[[Entry], bool]:
    """Return whether a file is meant: by its path when the glob has a slash, else by its name."""
    matches = re.compile(translate(glob.replace("**/", "*"))).match
    if "/" in glob:
        return lambda entry: matches("/".join(entry.parts)) is not None
    return lambda entry: matches(entry.parts[-1]) is not None


def _excerpt(line: str, place: int) -> str:
    """Return the part of a line around the match that is short enough to show."""
    start = max(0, place - MAX_LINE_CHARS // 3) if len(line) > MAX_LINE_CHARS else 0
    end = start + MAX_LINE_CHARS
    cut = line[start:end].rstrip("\r")
    return f"{'…' * (start > 0)}{printable(cut)}{'…' * (end < len(line))}"
