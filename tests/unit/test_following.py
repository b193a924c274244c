"""The configuration's files, followed: edits, swapped symlinks, secrets in files of their own."""

import asyncio
from pathlib import Path

import pytest

from agent_actors import following
from agent_actors.config_file import load_config
from agent_actors.errors import ConfigError
from agent_actors.following import FollowedConfig


@pytest.fixture(autouse=True)
def read_often(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "READ_EVERY_S", 0.01)


def followed(path: Path) -> FollowedConfig:
    return FollowedConfig(str(path), lambda: load_config(str(path), {}))


def sized(actors: object) -> str:
    return f"pools: {{default: {{actors: {actors}}}}}\n"


async def until_edited(config: FollowedConfig, edit) -> int:
    """Return how many actors the edit says, once it is seen; it is not seen before it is made."""
    waiting = asyncio.create_task(config.edited())
    await asyncio.sleep(0)
    assert not waiting.done()
    edit()
    found = await asyncio.wait_for(waiting, 5)
    return found.pools["default"].max_actors


async def test_an_edit_is_seen(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text(sized(2))
    config = followed(file)
    assert config.load().pools["default"].actors == 2
    assert await until_edited(config, lambda: file.write_text(sized(3))) == 3
    assert await until_edited(config, lambda: file.write_text(sized(4))) == 4


async def test_a_swapped_symlink_is_an_edit_as_with_a_mounted_configmap(tmp_path: Path):
    for version, actors in (("..v1", 2), ("..v2", 3)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "c.yaml").write_text(sized(actors))
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "c.yaml").symlink_to("..data/c.yaml")
    config = followed(tmp_path / "c.yaml")
    config.load()

    def swap() -> None:
        (tmp_path / "..new").symlink_to("..v2")
        (tmp_path / "..new").replace(tmp_path / "..data")

    assert await until_edited(config, swap) == 3


async def test_a_wrong_edit_is_told_once_and_the_next_one_is_seen(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text(sized(2))
    config = followed(file)
    config.load()
    file.write_text(sized("many"))
    with pytest.raises(ConfigError, match=r"c\.yaml:1: pools\.default\.actors"):
        await asyncio.wait_for(config.edited(), 5)
    assert await until_edited(config, lambda: file.write_text(sized(5))) == 5


async def test_a_file_that_is_gone_for_a_moment_is_no_edit(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text(sized(2))
    config = followed(file)
    config.load()
    file.unlink()
    waiting = asyncio.create_task(config.edited())
    await asyncio.wait([waiting], timeout=0.1)
    assert not waiting.done()
    file.write_text(sized(3))
    assert (await asyncio.wait_for(waiting, 5)).pools["default"].actors == 3


async def test_a_secret_that_changes_in_its_own_file_is_an_edit(tmp_path: Path):
    key, file = tmp_path / "key", tmp_path / "c.yaml"
    key.write_text("first")
    file.write_text(f"vllm: {{api_key_file: {key}}}\n")
    config = followed(file)
    assert config.load().vllm.api_key.reveal() == "first"
    key.write_text("second")
    edited = await asyncio.wait_for(config.edited(), 5)
    assert edited.vllm.api_key.reveal() == "second"


async def test_what_is_added_to_a_configuration_is_added_to_its_edits(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text(sized(2))
    config = followed(file)
    fixed = config.load()
    config.located = lambda _: fixed
    file.write_text(sized(3))
    assert await asyncio.wait_for(config.edited(), 5) == fixed
