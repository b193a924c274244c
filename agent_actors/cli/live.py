"""A task as it is being worked on, shown on stderr: on a terminal live, else line by line."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Protocol, cast

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from agent_actors.cli.plain import call_line, one_line, plain, seconds
from agent_actors.client import AgentClient, Watch
from agent_actors.contract import TaskEvent
from agent_actors.errors import AgentActorsError

# How long what was on its way when the result came may take to be shown.
LAST_NEWS_S = 0.5
WORDS_LINES = 12
FRAMES_A_SECOND = 8
SPINNER_WIDTH = 2


class View(Protocol):
    """Something that shows events."""

    def show(self, event: TaskEvent) -> None:
        """Show what the event tells."""
        ...


async def news_of(client: AgentClient, task_id: str) -> Watch[TaskEvent] | None:
    """Return the task's events from now on; nothing to whoever may not see them."""
    try:
        return await client.events(task_id).__aenter__()
    except AgentActorsError:
        return None


@asynccontextmanager
async def shown(news: Watch[TaskEvent] | None) -> AsyncGenerator[None]:
    """Show the news for as long as this lasts; nothing, when there are none to be had."""
    if news is None:
        yield
        return
    console = Console(stderr=True, highlight=False)
    async with news, AsyncExitStack() as stack:
        view: View = Lines()
        if console.is_terminal:
            view = screen = Screen(console)
            stack.enter_context(screen.live)
        await stack.enter_async_context(_following(news, view))
        yield


class Lines:
    """Tool calls, their results and retries as plain lines."""

    def show(self, event: TaskEvent) -> None:
        """Print the event's line, if it has one."""
        if line := line_of(event):
            click.echo(line, err=True)


class Screen:
    """Lines as on paper, above the model's words as they come, and where the task stands."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._words = ""
        self._where = "waiting for an agent"
        self._began = time.monotonic()
        self._spinner = Spinner("dots")
        self.live = Live(
            get_renderable=self.picture,
            console=console,
            refresh_per_second=FRAMES_A_SECOND,
            transient=True,
        )

    def picture(self) -> RenderableType:
        """Return what stands below the lines at this moment."""
        last_lines = plain(self._words).strip().splitlines()[-WORDS_LINES:]
        words = [Text("\n".join(last_lines), style="dim")] if last_lines else []
        status = f"{time.monotonic() - self._began:.0f} s  {self._where}"
        self._spinner.update(text=self._line(status))
        return Group(*words, self._spinner)

    def show(self, event: TaskEvent) -> None:
        """Change the picture as the event says."""
        match event.kind:
            case "token":
                text = str(event.detail.get("text", ""))
                self._words = self._words + text if text else ""  # empty: it begins anew
            case "started":
                self._where = _agent(event)
            case "tool_call":
                self._keep_words()
                self._console.print(self._line(line_of(event), style="dim"))
                self._where = _call(event)
            case "tool_result":
                style = "green" if event.detail.get("success") else "red"
                self._console.print(self._line(line_of(event), style=style))
                self._where = _agent(event)
            case "retry":
                self._words = ""
                self._where = line_of(event)
            case "finished":
                self._words = ""  # the result has them
                self._where = "done"
            case _:
                pass  # a kind that a newer service has

    def _keep_words(self) -> None:
        """Print what the model said before its call; what it says next begins anew."""
        if words := plain(self._words).strip():
            self._console.print(Text(words))
        self._words = ""

    def _line(self, text: str, style: str = "") -> Text:
        """Return the text cut at the terminal's edge, with room for the spinner."""
        line = Text(plain(text), style=style)
        line.truncate(self._console.width - SPINNER_WIDTH, overflow="ellipsis")
        return line


def line_of(event: TaskEvent) -> str:
    """Return an event on one line; empty for those that are no news by themselves."""
    match event.kind:
        case "tool_call":
            return f"→ {_call(event)}"
        case "tool_result":
            return _outcome(event)
        case "retry":
            error = event.detail.get("error") or "no answer"
            return one_line(f"waiting for another attempt: {error}")
        case _:
            return ""


def _agent(event: TaskEvent) -> str:
    return f"running on {event.agent_id}, attempt {event.attempt}"


def _call(event: TaskEvent) -> str:
    params: Any = event.detail.get("params")
    named = cast("dict[str, Any]", params) if isinstance(params, dict) else {}
    return call_line(_said(event, "tool"), _said(event, "operation"), named)


def _outcome(event: TaskEvent) -> str:
    what = f"{_said(event, 'tool')}.{_said(event, 'operation')}"
    said = _said(event, "summary") or _said(event, "error")
    duration_ms: Any = event.detail.get("duration_ms")
    took = f" ({seconds(duration_ms)})" if isinstance(duration_ms, int | float) else ""
    mark = "✓" if event.detail.get("success") else "✗"
    return f"{mark} {one_line(f'{what} {said}')}{took}"


def _said(event: TaskEvent, name: str) -> str:
    return str(event.detail.get(name) or "")


@asynccontextmanager
async def _following(news: Watch[TaskEvent], view: View) -> AsyncGenerator[None]:
    following = asyncio.create_task(_follow(news, view))
    try:
        yield
        await asyncio.wait([following], timeout=LAST_NEWS_S)
    finally:
        following.cancel()


async def _follow(news: Watch[TaskEvent], view: View) -> None:
    with suppress(AgentActorsError):
        async for event in news:
            view.show(event)
            if event.kind == "finished":
                return
