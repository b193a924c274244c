"""What every command gets to see, and as whom it runs."""

import os
import sys
from pathlib import Path

import pytest

from agent_actors.config_tools import SandboxConfig
from agent_actors.errors import ToolError
from agent_actors.tools.sandbox import places
from agent_actors.tools.sandbox.command import Command

HERE = Path("/somewhere")


def command(**given) -> Command:
    return Command(argv=["true"], folder=HERE, cwd=HERE, **given)


def test_environment_has_nothing_of_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_API_KEY", "canary")
    config = SandboxConfig(environment={"A": "config", "B": "config"})
    made = places.environment(
        config, command(environment={"B": "command"}), home="/h", temporary="/t"
    )
    assert made == {
        "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/h",
        "TMPDIR": "/t",
        "LANG": "C.UTF-8",
        "A": "config",
        "B": "command",
    }


def test_nothing_readable_holds_a_home_or_a_secret_of_the_system():
    paths = [Path(path) for path in places.readable(SandboxConfig(), command())]
    secret = ["/", "/etc", "/home", "/proc", "/root", "/run", "/run/secrets", "/tmp", "/var"]
    secret += ["/etc/shadow", "/etc/ssl/private/key", "/etc/pip.conf", str(Path.home())]
    for name in secret:
        assert not any(Path(name).is_relative_to(path) for path in paths), name


def test_this_python_is_readable_and_named_once():
    config = SandboxConfig(read_paths=("/opt/go", "/opt/go/bin", "/opt/go"))
    paths = places.needed(config, command(read=[Path("/opt/rust")]))
    for place in (sys.prefix, sys.base_prefix, os.path.realpath(sys.executable)):
        assert any(Path(place).is_relative_to(path) for path in paths)
    assert paths.count("/opt/go") == 1
    assert "/opt/go/bin" not in paths
    assert "/opt/rust" in paths


def test_settings_of_the_network_come_with_the_network():
    without = set(places.readable(SandboxConfig(), command()))
    with_it = set(places.readable(SandboxConfig(), command(network=True)))
    assert with_it - without == {"/etc/resolv.conf", "/etc/host.conf", "/etc/gai.conf"}


def test_time_is_the_shorter_of_both():
    config = SandboxConfig(timeout_s=10)
    assert [places.timeout_s(config, command(timeout_s=t)) for t in (None, 5, 20)] == [10, 5, 10]


@pytest.mark.parametrize("uid", [None, 0])
def test_root_runs_nothing_as_root(monkeypatch: pytest.MonkeyPatch, uid: int | None):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ToolError, match="no command runs as root"):
        places.user_of(command(uid=uid))


@pytest.mark.parametrize(("euid", "expected"), [(0, 2_000_000_001), (1_000, None)])
def test_only_root_can_become_another(
    monkeypatch: pytest.MonkeyPatch, euid: int, expected: int | None
):
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    assert places.user_of(command(uid=2_000_000_001)) == expected


async def test_private_folder_is_removed_with_what_its_owner_has_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with places.private_folder(None) as private:
        fill(private.home)
    assert contents(tmp_path) == []


def contents(folder: Path) -> list[Path]:
    return [*folder.iterdir()]


def fill(folder: Path) -> None:
    closed = folder / "closed" / "inner"
    closed.mkdir(parents=True)
    (closed / "link").symlink_to("/usr")
    closed.parent.chmod(0)
