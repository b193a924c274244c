"""The manifests for NATS: what the chart is given, and what NACK is given."""

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from support.manifests import schemas
from support.manifests.reading import ROOT
from support.permissions import (
    USERS,
    VALUES,
    placeholder,
    shipped_accounts,
    shipped_values,
    with_keys,
    write_key,
)

from agent_actors.cli import commands
from agent_actors.local.nats_server import PACKAGE, find_nats_server

NACK = VALUES.parent / "nack.yaml"
CONFIG = ROOT / "deploy" / "base" / "agent-actors.yaml"
ADDITIONS = [path.name for path in VALUES.parent.glob("*.yaml") if path not in (VALUES, NACK)]


def checked_by_nats_server(folder: Path, *additions: str, left_out: str = "") -> str:
    """Return what nats-server says to the configuration that the chart makes of the values."""
    config = shipped_values()["config"]
    keys = {user: write_key(folder / user) for user in USERS}
    if left_out:
        keys[left_out] = placeholder(left_out)
    whole = {
        "jetstream": {"store_dir": str(folder), **config["jetstream"]["merge"]},
        **config["merge"],
        "accounts": shipped_accounts(*additions),
    }
    file = folder / "nats.conf"
    file.write_text(with_keys(json.dumps(whole), keys))
    command = [find_nats_server(), "-t", "-c", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr


@pytest.mark.parametrize("addition", [None, *ADDITIONS])
def test_nats_server_takes_the_configuration(tmp_path: Path, addition: str | None):
    said = checked_by_nats_server(tmp_path, *filter(None, [addition]))
    assert "is valid" in said, said


@pytest.mark.parametrize("user", USERS)
def test_nats_server_takes_no_configuration_with_a_key_left_out(tmp_path: Path, user: str):
    said = checked_by_nats_server(tmp_path, left_out=user)
    assert "Not a valid public nkey" in said, said


def test_the_servers_are_of_the_version_that_the_tests_run_against():
    tag = shipped_values()["container"]["image"]["tag"]
    assert tag == f"{metadata.version(PACKAGE)}-alpine"


def test_what_is_promised_is_on_disk_on_three_servers_behind_tls():
    config = shipped_values()["config"]
    assert config["jetstream"]["merge"]["sync_interval"] == "always"
    assert config["cluster"]["enabled"]
    assert config["cluster"]["replicas"] == 3
    assert all(config[part]["tls"]["enabled"] for part in ("nats", "cluster"))


def test_no_user_comes_in_by_a_password_or_by_none():
    accounts = shipped_accounts()
    assert [set(user) for each in accounts.values() for user in each["users"]] == [
        {"nkey", "permissions"}
    ] * len(USERS)
    assert set(shipped_values()["config"]["merge"]) == {"accounts"}


def test_the_resources_for_nack_are_what_the_command_prints_for_production():
    arguments = ["provision", "--print-nack", "--config", str(CONFIG)]
    printed = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert printed.exit_code == 0
    assert NACK.read_text() == printed.output, (
        f"agent-actors {' '.join(arguments[:2])} --config deploy/base/agent-actors.yaml "
        "> deploy/nats/nack.yaml"
    )


@pytest.mark.skipif(not schemas.crd_folder(), reason="NACK's schemas are not here")
def test_nack_takes_its_resources_and_no_others():
    resources = list(yaml.safe_load_all(NACK.read_text()))
    assert not list(schemas.custom_resources(resources))
    for resource in resources:
        resource["spec"]["preventDeletion"] = True
    assert len(list(schemas.custom_resources(resources))) == len(resources)


@pytest.mark.parametrize("option", ["--dry-run", "--prune", "--json"])
def test_printing_for_nack_goes_alone(option: str):
    refused = CliRunner().invoke(commands, ["provision", "--print-nack", option])
    assert refused.exit_code == 2
    assert "--print-nack goes alone" in refused.output
