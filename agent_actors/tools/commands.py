"""The tools that run a project's tests: pytest, go, npm, cargo and make, the real programs.

Failing tests are no failure of the call: the run is what was asked for, and its output tells.
"""

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent_actors.config_types import Positive
from agent_actors.errors import ToolError, ToolRefused
from agent_actors.tools.outcomes import (
    Counts,
    Outcome,
    RunResult,
    any_counts,
    cargo_counts,
    go_report,
    javascript_counts,
    pytest_counts,
)
from agent_actors.tools.paths import shown
from agent_actors.tools.programs import (
    argument_path,
    folder_beneath,
    head_and_tail,
    run_program,
    text_of,
)
from agent_actors.tools.registry import Arguments, Surroundings, ToolOutput, tool
from agent_actors.tools.sandbox.command import Finished

GROUP = "tests"
HEADER_CHARS = 500
EVERYWHERE: Mapping[str, str] = {"LC_ALL": "C.UTF-8", "NO_COLOR": "1", "CI": "true"}

Counter = Callable[[str], Counts | None]


class Run(Arguments, frozen=True):
    """Where tests run, and for how long."""

    folder: Annotated[
        str, Meta(description="Folder of the project, from the workspace; empty: the workspace.")
    ] = ""
    timeout_s: Annotated[
        Positive | None, Meta(description="Seconds after which the run is stopped.")
    ] = None


class Runner(Struct, frozen=True, kw_only=True):
    """How one program tells what came of a run.

    `nothing_run` matches its words for having found nothing to do, and `remedy` is what helps.
    """

    tool: str
    counts: Counter
    nothing_run: str
    remedy: str
    outcomes: Mapping[int, Outcome] = MappingProxyType({0: "passed"})
    otherwise: Outcome = "error"


PYTEST = Runner(
    tool="pytest",
    counts=pytest_counts,
    nothing_run=r"^\S*python\S*: No module named pytest$",
    remedy="pytest is not installed where the tests run: install agent-actors[pytest], or pytest "
    "for the machine's python3",
    outcomes={0: "passed", 1: "failed"},
)
GO = Runner(
    tool="go_test",
    counts=lambda text: go_report(text)[1],
    nothing_run=r"^go: (go\.mod file not found|cannot find main module)",
    remedy="there is no go.mod: name the folder of the module",
)
CARGO = Runner(
    tool="cargo_test",
    counts=cargo_counts,
    nothing_run=r"^error: (could not find `Cargo\.toml`|rustup could not choose a version)",
    remedy="there is no Cargo.toml, or no toolchain: name the folder of the package",
)
NPM = Runner(
    tool="npm_test",
    counts=javascript_counts,
    nothing_run=r"^npm \S+ (\S+ Could not read package\.json|[Mm]issing script: \"test\")",
    remedy="there is no package.json with a test script: name the folder that has one",
    outcomes={0: "passed", 126: "error", 127: "error"},
    otherwise="failed",
)
MAKE = Runner(
    tool="make_test",
    counts=any_counts,
    nothing_run=r"^make: \*\*\* No (rule to make target '[^']*'\.|targets specified)",
    remedy="there is no Makefile with this target: name its folder, or another target",
    otherwise="failed",
)


class Pytest(Run, frozen=True):
    """Which tests."""

    paths: Annotated[
        tuple[str, ...],
        Meta(description="Files, folders or tests (tests/test_a.py::test_b), from the folder."),
    ] = ()
    keyword: Annotated[
        str, Meta(max_length=500, description="Only tests whose names match, as `parse and not x`.")
    ] = ""
    max_failures: Annotated[Positive | None, Meta(description="Stop after so many failures.")] = (
        None
    )
    verbosity: Annotated[int, Meta(ge=0, le=2, description="How much is told of each test.")] = 0


@tool(GROUP, reads=False)
async def pytest(surroundings: Surroundings, arguments: Pytest) -> ToolOutput:
    """Run Python tests with pytest."""
    has_pytest = importlib.util.find_spec("pytest") is not None
    options = ["-p", "no:cacheprovider", "--color=no", *["-v"] * arguments.verbosity]
    options += [f"--maxfail={arguments.max_failures}"] if arguments.max_failures else []
    options += [f"-k={arguments.keyword}"] if arguments.keyword else []
    paths = [_test_path(surroundings, path) for path in arguments.paths]
    python = sys.executable if has_pytest else "python3"
    return await _run(
        surroundings,
        arguments,
        PYTEST,
        (python, "-m", "pytest", *options, "--", *paths),
        {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
    )


class GoTest(Run, frozen=True):
    """Which tests."""

    packages: Annotated[
        tuple[str, ...], Meta(description="Packages as folders, as ./store or ./store/...")
    ] = ("./...",)
    run: Annotated[
        str, Meta(max_length=500, description="Only tests whose names match this expression.")
    ] = ""


@tool(GROUP, reads=False)
async def go_test(surroundings: Surroundings, arguments: GoTest) -> ToolOutput:
    """Run Go tests with `go test`. Modules are not downloaded: they must be there, or vendored."""
    packages = [argument_path(surroundings, path) for path in arguments.packages]
    only = [f"-run={arguments.run}"] if arguments.run else []
    return await _run(
        surroundings,
        arguments,
        GO,
        ("go", "test", "-json", *only, *packages),
        {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOTELEMETRY": "off", "GOENV": "off"},
    )


class CargoTest(Run, frozen=True):
    """Which tests."""

    package: Annotated[
        str,
        Meta(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_-]*)?\Z", description="Package of a workspace."),
    ] = ""
    name: Annotated[
        str,
        Meta(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_:]*)?\Z", description="Only tests with this name."),
    ] = ""


@tool(GROUP, reads=False)
async def cargo_test(surroundings: Surroundings, arguments: CargoTest) -> ToolOutput:
    """Run Rust tests with `cargo test`. Crates are not downloaded: they must be there."""
    package = [f"--package={arguments.package}"] if arguments.package else []
    name = [arguments.name] if arguments.name else []
    return await _run(
        surroundings,
        arguments,
        CARGO,
        ("cargo", "test", "--offline", "--no-fail-fast", "--color=never", *package, "--", *name),
        {"CARGO_NET_OFFLINE": "true", "CARGO_TERM_PROGRESS_WHEN": "never"},
    )


class NpmTest(Run, frozen=True):
    """Nothing more to say."""


@tool(GROUP, reads=False)
async def npm_test(surroundings: Surroundings, arguments: NpmTest) -> ToolOutput:
    """Run the `test` script of a package.json with `npm test`. Nothing is installed first."""
    return await _run(
        surroundings,
        arguments,
        NPM,
        ("npm", "test"),
        {f"npm_config_{name}": "false" for name in ("update_notifier", "fund", "audit", "progress")}
        | {"npm_config_offline": "true", "npm_config_logs_max": "0"},
    )


class MakeTest(Run, frozen=True):
    """Which target."""

    target: Annotated[
        str,
        Meta(pattern=r"^(test|check)[A-Za-z0-9_.-]*\Z", description="test, check, test-unit, …"),
    ] = "test"


@tool(GROUP, reads=False)
async def make_test(surroundings: Surroundings, arguments: MakeTest) -> ToolOutput:
    """Run the tests that a Makefile knows, with `make test`."""
    argv = ("make", "--no-print-directory", arguments.target)
    return await _run(surroundings, arguments, MAKE, argv, {})


async def _run(
    surroundings: Surroundings,
    arguments: Run,
    runner: Runner,
    argv: Sequence[str],
    environment: Mapping[str, str],
) -> ToolOutput:
    cwd = folder_beneath(surroundings, arguments.folder)
    limit_s = surroundings.settings.sandbox.timeout_s
    try:
        finished = await run_program(
            surroundings,
            argv,
            cwd=cwd,
            environment={**EVERYWHERE, **environment},
            timeout_s=min(arguments.timeout_s or limit_s, limit_s),
        )
    except ToolRefused:
        raise
    except ToolError as error:
        raise ToolError(f"{runner.tool} cannot run on this machine: {error}") from error
    text = text_of(finished.output)
    if (
        finished.exit_code
        and not finished.stopped
        and re.search(runner.nothing_run, text, re.MULTILINE)
    ):
        raise ToolError(f"{runner.remedy}\n{head_and_tail(text, HEADER_CHARS)}")
    return _told(runner, finished, text, surroundings.settings.max_output_chars)


def _told(runner: Runner, finished: Finished, text: str, max_chars: int) -> ToolOutput:
    counts = runner.counts(text)
    outcome = _outcome(runner, finished, counts)
    result = RunResult(
        tool=runner.tool,
        outcome=outcome,
        exit_code=finished.exit_code,
        duration_s=round(finished.duration_s, 3),
        passed=counts.passed if counts else None,
        failed=counts.failed if counts else None,
        errors=counts.errors if counts else None,
        skipped=counts.skipped if counts else None,
    )
    summary = f"{runner.tool}: {_headline(result, finished, counts)}"
    body = go_report(text)[0] if runner is GO else text
    return ToolOutput(
        text=f"{summary}\n\n{head_and_tail(body, max(0, max_chars - HEADER_CHARS))}",
        summary=summary,
        artifacts={"tests": [msgspec.to_builtins(result)]},
    )


def _outcome(runner: Runner, finished: Finished, counts: Counts | None) -> Outcome:
    if finished.stopped:
        return "timeout" if finished.stopped == "timeout" else "error"
    if counts is not None and not counts.ran:
        return "error"
    if finished.exit_code and counts is not None and counts.failed:
        return "failed"
    return runner.outcomes.get(finished.exit_code, runner.otherwise)


def _headline(result: RunResult, finished: Finished, counts: Counts | None) -> str:
    took = f"in {finished.duration_s:.2f} s"
    if finished.stopped == "timeout":
        return f"stopped {took}, at its time limit: run less, or find what hangs"
    if finished.stopped:
        return f"stopped {took}: it wrote too much"
    if counts is None:
        return f"{result.outcome} (exit code {result.exit_code}) {took}"
    if not counts.ran:
        return f"no tests were run (exit code {result.exit_code}) {took}"
    told = ", ".join(f"{number} {word}" for word, number in msgspec.to_builtins(counts).items())
    return f"{result.outcome} (exit code {result.exit_code}): {told} {took}"


def _test_path(surroundings: Surroundings, path: str) -> str:
    """Return a path that may have `::test` after it, for pytest."""
    file, separator, test = path.partition("::")
    if not (file + test).isprintable():
        raise ToolError(f"{shown(path)} is no path of a test")
    return f"{argument_path(surroundings, file)}{separator}{test}"


TEST_TOOLS = (pytest, go_test, npm_test, cargo_test, make_test)
