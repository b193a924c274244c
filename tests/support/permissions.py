"""A NATS with the accounts and permissions of deploy/nats/values.yaml, and keys for its users.

One server may have them several times over, each time changed a little: an account is a name
space of its own, with its own streams.
"""

import copy
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys
import yaml
from msgspec import Struct
from support.nats import WheelNats, running_nats

from agent_actors.config import NatsConfig
from agent_actors.config_types import Secret

VALUES = Path(__file__).parents[2] / "deploy" / "nats" / "values.yaml"

Accounts = dict[str, Any]

# The service's account first.
ACCOUNTS = ("AGENT_ACTORS", "AGENT_CLIENTS")
USERS = ("service", "provisioner", "operator", "client")
# One of the service's account who may do everything: the test itself.
TEST = "test"

VIOLATION = re.compile(r'/nkey:(\w+)" - (\w+) Violation - Subject "([^"]+)"')


class Refusal(Struct, frozen=True, kw_only=True):
    """What the server has refused: `verb` is Publish or Subscription."""

    user: str
    verb: str
    subject: str


class GuardedAccounts:
    """The accounts once, and how each of their users gets there."""

    def __init__(self, server: WheelNats, seeds: Path, keys: Mapping[str, str]) -> None:
        self.server = server
        self._seeds = seeds
        self._users = {public: user for user, public in keys.items()}

    def reach(self, user: str) -> NatsConfig:
        """Return what a configuration says of NATS for this user, as deployed."""
        url = self.server.url
        if user == TEST:
            return NatsConfig(url=url, user=self._seeds.name, password=Secret(TEST))
        return NatsConfig(
            url=url,
            nkey_seed_file=str(self._seeds / f"{user}.nk"),
            inbox_prefix=f"_INBOX_{user}",
            jetstream_prefix="AGENT_ACTORS.API" if user == "client" else "$JS.API",
            request_timeout_s=2.0,
        )

    def seed(self, user: str) -> str:
        """Return a user's key, as its Secret has it."""
        return (self._seeds / f"{user}.nk").read_text()

    def refusals(self) -> set[Refusal]:
        """Return what the server has refused these users so far."""
        log = self.server.log_file.read_text()
        found = VIOLATION.findall(log)
        assert len(found) == log.count("Violation"), "the server words refusals otherwise"
        return {
            Refusal(user=self._users[key], verb=verb, subject=subject)
            for key, verb, subject in found
            if key in self._users
        }


@asynccontextmanager
async def guarded_nats(
    folder: Path, *variants: Accounts, **settings: Any
) -> AsyncIterator[list[GuardedAccounts]]:
    """Run a server with all these accounts. Who says no name comes in as the first's test.

    `settings` are more of nats-server's.
    """
    all_accounts: Accounts = {}
    made: list[tuple[Path, dict[str, str]]] = []
    for number, accounts in enumerate(variants):
        seeds = folder / f"{TEST}-{number}"
        seeds.mkdir(parents=True)
        keys = {user: write_key(seeds / f"{user}.nk") for user in USERS}
        made.append((seeds, keys))
        all_accounts |= _numbered(accounts, number, keys, test_user=seeds.name)
    settings |= {"accounts": all_accounts, "no_auth_user": f"{TEST}-0"}
    lines = json.dumps(settings).removeprefix("{").removesuffix("}")
    async with running_nats(folder / "nats", lines, kind="wheel") as server:
        assert isinstance(server, WheelNats)
        yield [GuardedAccounts(server, seeds, keys) for seeds, keys in made]


def shipped_values() -> dict[str, Any]:
    return yaml.safe_load(VALUES.read_text())


def shipped_accounts(*patches: str) -> Accounts:
    """Return the accounts as shipped, with what the named files beside values.yaml add."""
    config = shipped_values()["config"]["merge"]
    for name in patches:
        for operation in yaml.safe_load((VALUES.parent / name).read_text())["config"]["patch"]:
            _add(config, operation)
    return config["accounts"]


def permissions_of(accounts: Accounts, user: str) -> dict[str, Any]:
    """Return a user's permissions, to be looked at or changed."""
    (found,) = (
        entry["permissions"]
        for account in accounts.values()
        for entry in account["users"]
        if entry["nkey"] == placeholder(user)
    )
    return found


def allowed_to(accounts: Accounts, user: str, verb: str) -> list[str]:
    return permissions_of(accounts, user)[verb]["allow"]


def placeholder(user: str) -> str:
    return f"PUBLIC_KEY_OF_{user.upper()}"


def write_key(file: Path) -> str:
    """Make a user's key, as `nk -gen user -pubout` does; return the public part."""
    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    file.write_bytes(seed + b"\n")
    return nkeys.from_seed(bytearray(seed)).public_key.decode()


def with_keys(text: str, keys: Mapping[str, str]) -> str:
    for user, public in keys.items():
        assert text.count(placeholder(user)) == 1
        text = text.replace(placeholder(user), public)
    return text


def _numbered(
    accounts: Accounts, number: int, keys: Mapping[str, str], *, test_user: str
) -> Accounts:
    """Return the accounts under names of their own, with these keys and the test's user."""
    accounts = copy.deepcopy(accounts)
    accounts[ACCOUNTS[0]]["users"].append({"user": test_user, "password": TEST})
    text = with_keys(json.dumps(accounts), keys)
    for name in ACCOUNTS:
        text = text.replace(f'"{name}"', f'"{name}_{number}"')
    return json.loads(text)


def _add(document: Any, operation: Mapping[str, Any]) -> None:
    """Append to a list as RFC 6902 says it, which is all that the files have."""
    *path, end = operation["path"].removeprefix("/").split("/")
    assert (operation["op"], end) == ("add", "-")
    for step in path:
        document = document[int(step) if isinstance(document, list) else step]
    document.append(operation["value"])
