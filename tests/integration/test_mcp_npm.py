"""Servers that others have written, from npm: they are installed once, into the user's cache."""

import fcntl
import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("mcp", reason="the extra agent-actors[mcp] is not installed")

from support.mcp_servers.running import call, connected

from agent_actors.config_tools import McpServerConfig
from agent_actors.errors import ToolError

SERVERS = {
    "@modelcontextprotocol/server-everything": "2026.8.31",
    "@modelcontextprotocol/server-filesystem": "2026.8.31",
}
INSTALL_S = 100


@pytest.fixture(scope="module")
def programs() -> Path:
    """Return the folder of the installed programs; the first run fetches them, in some seconds."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    # Not $HOME, which scripts/test changes for each run.
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "agent-actors"
    folder = Path(os.environ.get("AGENT_ACTORS_CACHE") or caches) / "mcp-servers-2026.8.31"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        pytest.skip(f"there is no folder to install into: {error}; AGENT_ACTORS_CACHE can name one")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _install(npm, folder, home)
            (folder / "complete").touch()
    return folder / "node_modules/.bin"


def _install(npm: str, folder: Path, home: Path) -> None:
    packages = [f"{name}@{version}" for name, version in SERVERS.items()]
    quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    try:
        subprocess.run(
            [npm, "install", *quiet, "--prefix", folder, *packages],
            env=os.environ | {"HOME": str(home)},
            check=True,
            capture_output=True,
            timeout=INSTALL_S,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm cannot install {', '.join(packages)}: {error.stderr.strip()[-300:]}")
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {', '.join(packages)} within {INSTALL_S} s")


async def test_the_file_system_server_serves_its_folder_alone(programs: Path, tmp_path: Path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "secret.txt").write_text("not shared")
    config = McpServerConfig(
        command=str(programs / "mcp-server-filesystem"), args=(str(tmp_path / "shared"),)
    )
    note = str(tmp_path / "shared/note.txt")
    async with connected({"fs": config}) as servers:
        await call(servers, "fs__write_file", path=note, content="grüße\n")
        assert (tmp_path / "shared/note.txt").read_text() == "grüße\n"
        assert "grüße" in (await call(servers, "fs__read_text_file", path=note)).text
        with pytest.raises(ToolError, match=r"(?i)access denied"):
            await call(servers, "fs__read_text_file", path=str(tmp_path / "secret.txt"))
        reads = {tool.operation: tool.reads for tool in await servers.tools()}
    assert (reads["read_text_file"], reads["write_file"]) == (True, False)


async def test_the_reference_server_answers_with_all_that_there_is(programs: Path):
    config = McpServerConfig(command=str(programs / "mcp-server-everything"), timeout_s=1)
    async with connected({"all": config}) as servers:
        assert (await call(servers, "all__echo", message="hello")).text == "Echo: hello"
        assert "[image of type image/png" in (await call(servers, "all__get-tiny-image")).text
        with pytest.raises(ToolError, match="took longer than 1 s"):
            await call(servers, "all__trigger-long-running-operation", duration=30, steps=3)
        assert (await call(servers, "all__echo", message="still there")).text == "Echo: still there"
