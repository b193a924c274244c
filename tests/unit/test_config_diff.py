"""What has changed between two configurations, and what it takes for that to hold."""

import os
import re
import subprocess
import sys
from typing import get_args

import msgspec
import pytest

from agent_actors.config import (
    AutoscaleConfig,
    Config,
    NatsConfig,
    PoolConfig,
    RayConfig,
    Resources,
    RoleConfig,
    StreamsConfig,
    TlsConfig,
    VllmConfig,
)
from agent_actors.config_diff import (
    EFFECTS,
    ConfigChange,
    Effect,
    actor_settings_digest,
    changes,
    effect_of,
    paths_that_need,
)
from agent_actors.config_file import load_config
from agent_actors.config_keys import reference
from agent_actors.config_tools import GitConfig, McpServerConfig, ToolsConfig
from agent_actors.config_types import Secret

HIDDEN = "correct-horse-battery"


def pools(**keys):
    return Config(pools={"default": PoolConfig(**keys)})


def tools(**keys):
    return pools(tools=ToolsConfig(**keys))


def only_change(running, wanted):
    (change,) = changes(running, wanted)
    return change


# What differs, before and after.
DIFFERENT = {
    "nats.url": (
        Config(nats=NatsConfig(url="nats://one")),
        Config(nats=NatsConfig(url="nats://two")),
        ('"nats://one"', '"nats://two"', "restart"),
    ),
    "nats.tls": (
        Config(),
        Config(nats=NatsConfig(tls=TlsConfig(server_name="one"))),
        ("(none)", '{"server_name":"one"}', "restart"),
    ),
    "nats.tls.server_name": (
        Config(nats=NatsConfig(tls=TlsConfig())),
        Config(nats=NatsConfig(tls=TlsConfig(server_name="one"))),
        ('""', '"one"', "restart"),
    ),
    "ray.supervisor.num_cpus": (
        Config(),
        Config(ray=RayConfig(supervisor=Resources(num_cpus=1.5))),
        ("0.1", "1.5", "restart"),
    ),
    "streams.replicas": (
        Config(),
        Config(streams=StreamsConfig(replicas=3)),
        ("1", "3", "provision"),
    ),
    "vllm.urls": (
        Config(),
        Config(vllm=VllmConfig(urls=("http://one", "http://two"))),
        ("[]", '["http://one","http://two"]', "rolling"),
    ),
    "pools.default.actors": (pools(actors=2), pools(actors=8), ("2", "8", "live")),
    "pools.default.actors of another kind": (
        pools(actors=2),
        pools(actors=AutoscaleConfig(max=8, scale_up_delay_s=5.0)),
        ("2", '{"max":8,"scale_up_delay_s":5.0}', "live"),
    ),
    "pools.default.actors.max": (
        pools(actors=AutoscaleConfig(max=4)),
        pools(actors=AutoscaleConfig(max=8)),
        ("4", "8", "live"),
    ),
    "pools.default.subjects": (
        pools(),
        pools(subjects=("agent.tasks.dev",)),
        ('["agent.tasks.>"]', '["agent.tasks.dev"]', "live"),
    ),
    "pools.default.stop_grace_s": (pools(), pools(stop_grace_s=5.0), ("30.0", "5.0", "live")),
    "pools.default.model": (pools(), pools(model="tiny"), ('""', '"tiny"', "rolling")),
    "pools.default.slots": (pools(slots=1), pools(slots=2), ("1", "2", "rolling")),
    "pools.default.ack_wait_s": (pools(), pools(ack_wait_s=9.0), ("30.0", "9.0", "rolling")),
    "pools.default.hang_timeout_s": (
        pools(),
        pools(hang_timeout_s=9.0),
        ("10.0", "9.0", "rolling"),
    ),
    "pools.default.placement": (
        pools(),
        pools(placement="pack"),
        ('"spread"', '"pack"', "rolling"),
    ),
    "pools.default.resources.labels": (
        pools(resources=Resources(labels={"zone": "a"})),
        pools(resources=Resources(labels={"zone": "b"})),
        ('{"zone":"a"}', '{"zone":"b"}', "rolling"),
    ),
    "pools.default.roles.QA": (
        pools(),
        pools(roles={"QA": RoleConfig(prompt="You test.")}),
        ("(none)", '{"prompt":"You test."}', "rolling"),
    ),
    "pools.default.tools.git.remotes": (
        tools(),
        tools(git=GitConfig(remotes=("https://a/*",))),
        ("[]", '["https://a/*"]', "rolling"),
    ),
    "pools.default.tools.mcpServers.db.timeout_s": (
        tools(mcpServers={"db": McpServerConfig(command="db")}),
        tools(mcpServers={"db": McpServerConfig(command="db", timeout_s=5.0)}),
        ("60.0", "5.0", "rolling"),
    ),
}


@pytest.mark.parametrize(("key", "case"), DIFFERENT.items(), ids=DIFFERENT.keys())
def test_a_change_says_what_is_and_what_is_wanted_and_what_it_takes(key, case):
    running, wanted, (now, then, effect) = case
    path = key.partition(" ")[0]
    assert only_change(running, wanted) == ConfigChange(
        path=path, now=now, wanted=then, effect=effect
    )
    assert only_change(wanted, running) == ConfigChange(
        path=path, now=then, wanted=now, effect=effect
    )


def test_there_is_no_change_between_equals_whatever_the_order_of_their_names():
    running = Config(
        pools={
            "a": PoolConfig(
                subjects=("agent.tasks.a",), roles={"A": RoleConfig(), "B": RoleConfig()}
            ),
            "b": PoolConfig(subjects=("agent.tasks.b",)),
        }
    )
    wanted = Config(
        pools={
            "b": PoolConfig(subjects=("agent.tasks.b",)),
            "a": PoolConfig(
                subjects=("agent.tasks.a",), roles={"B": RoleConfig(), "A": RoleConfig()}
            ),
        }
    )
    assert changes(running, wanted) == []


def test_a_pool_that_comes_and_one_that_goes_are_one_change_each():
    running = Config(pools={"old": PoolConfig(subjects=("agent.tasks.a",), slots=4)})
    wanted = Config(pools={"new": PoolConfig(subjects=("agent.tasks.b",), actors=3)})
    assert changes(running, wanted) == [
        ConfigChange(
            path="pools.old",
            now='{"subjects":["agent.tasks.a"],"slots":4}',
            wanted="(none)",
            effect="live",
        ),
        ConfigChange(
            path="pools.new",
            now="(none)",
            wanted='{"subjects":["agent.tasks.b"],"actors":3}',
            effect="live",
        ),
    ]


def test_all_changes_are_told_in_the_order_of_the_reference():
    wanted = Config(
        nats=NatsConfig(url="nats://two", user="bob", password=Secret("x")),
        vllm=VllmConfig(model="tiny"),
        pools={"default": PoolConfig(actors=3, temperature=0.0)},
    )
    found = changes(Config(), wanted)
    assert [change.path for change in found] == [
        "nats.url",
        "nats.user",
        "nats.password",
        "vllm.model",
        "pools.default.actors",
        "pools.default.temperature",
    ]
    assert paths_that_need("restart", found) == ["nats.url", "nats.user", "nats.password"]


def test_a_secret_that_changes_is_a_change_and_is_not_shown():
    running = Config(vllm=VllmConfig(api_key=Secret(HIDDEN)))
    other = Config(vllm=VllmConfig(api_key=Secret(f"{HIDDEN}-2")))
    change = only_change(running, other)
    assert (change.path, change.now, change.wanted) == ("vllm.api_key", "***", "***")
    assert only_change(Config(), running).now == "(not set)"


def test_a_login_in_an_address_that_changes_is_a_change_and_is_not_shown():
    running = Config(nats=NatsConfig(url=f"nats://bob:{HIDDEN}@one"))
    wanted = Config(nats=NatsConfig(url=f"nats://bob:{HIDDEN}-2@one"))
    change = only_change(running, wanted)
    assert (change.now, change.wanted) == ('"nats://***@one"', '"nats://***@one"')


def test_secrets_by_name_are_not_shown_where_they_change_nor_where_their_server_comes():
    server = McpServerConfig(command="db", env={"TOKEN": Secret(HIDDEN)})
    other = McpServerConfig(command="db", env={"TOKEN": Secret("x")})
    with_it, changed = tools(mcpServers={"db": server}), tools(mcpServers={"db": other})
    assert only_change(with_it, changed).now == '{"TOKEN":"***"}'
    assert only_change(tools(), with_it).wanted == '{"command":"db","env":{"TOKEN":"***"}}'
    assert HIDDEN not in repr(changes(Config(pools={"x": PoolConfig()}), with_it))


# What it takes.


@pytest.mark.parametrize("key", reference(), ids=lambda key: key.path)
def test_it_is_known_of_every_key_what_its_change_takes(key):
    assert effect_of(tuple(key.path.split("."))) in get_args(Effect)


def test_every_rule_is_of_use():
    """A rule that no key needs is of one that is gone, or stands behind a wider one."""
    paths = [tuple(key.path.split(".")) for key in reference()] + [("pools", "<pool>")]
    effects = [effect_of(path) for path in paths]
    for index in range(len(EFFECTS)):
        shorter = EFFECTS[:index] + EFFECTS[index + 1 :]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agent_actors.config_diff.EFFECTS", shorter)
            try:
                assert [effect_of(path) for path in paths] != effects
            except StopIteration:
                continue


# The digest.

BASE = Config(
    nats=NatsConfig(url="nats://one", tls=TlsConfig()),
    pools={
        "default": PoolConfig(
            actors=AutoscaleConfig(max=8),
            subjects=("agent.tasks.dev",),
            roles={"DEV": RoleConfig(), "QA": RoleConfig()},
            tools=ToolsConfig(mcpServers={"db": McpServerConfig(command="db")}),
        ),
        "other": PoolConfig(subjects=("agent.tasks.qa",)),
    },
)


def digest(config=BASE, pool="default", version="1.0"):
    return actor_settings_digest(config, pool, version)


def other_value(value):
    match value:
        case Secret():
            return Secret(value.reveal() + "x")
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case tuple():
            return (*value, "x")
        case dict():
            return {**value, "X": next(iter(value.values()), "x")}
        case None:
            return TlsConfig()


def replaced(section, path):
    """Return the section or map with another value of the key at `path`."""
    name, *below = path
    if isinstance(section, dict):
        return {**section, name: replaced(section[name], below)}
    value = getattr(section, name)
    value = replaced(value, below) if below else other_value(value)
    return msgspec.structs.replace(section, **{name: value})


NAMES = {"<pool>": "default", "<role>": "DEV", "<mcpServer>": "db"}


def single_keys():
    """Return the path of each key that is not itself a section or the map of pools."""
    paths = [[NAMES.get(part, part) for part in key.path.split(".")] for key in reference()]
    parents = {tuple(path[:-1]) for path in paths}
    return [path for path in paths if tuple(path) not in parents and path != ["pools"]]


@pytest.mark.parametrize("path", single_keys(), ids=".".join)
def test_the_digest_changes_with_every_key_that_an_actor_is_made_of_and_with_no_other(path):
    changed = replaced(BASE, path)
    change = only_change(BASE, changed)
    made_of = change.effect == "rolling" or path[0] == "nats"
    assert (digest(changed) != digest()) is made_of


def test_the_digest_is_the_same_for_a_size_of_another_kind_and_without_the_other_pool():
    pool = msgspec.structs.replace(BASE.pools["default"], actors=3)
    alone = msgspec.structs.replace(BASE, pools={"default": pool})
    assert digest(alone) == digest()


def test_the_digest_does_not_depend_on_the_order_of_names():
    roles = dict(reversed(BASE.pools["default"].roles.items()))
    pool = msgspec.structs.replace(BASE.pools["default"], roles=roles)
    assert digest(msgspec.structs.replace(BASE, pools={"default": pool})) == digest()


def test_the_digest_differs_between_pools_and_versions():
    twins = Config(pools={"a": PoolConfig(), "b": PoolConfig()})
    assert digest(twins, "a") != digest(twins, "b")
    assert digest(version="1.1") != digest()


def test_the_digest_is_the_same_wherever_its_values_come_from_and_in_every_process(tmp_path):
    file = tmp_path / "agents.yaml"
    file.write_text(f"vllm: {{api_key: {HIDDEN}}}\npools: {{default: {{slots: 4}}}}\n")
    environ = {"AGENT_ACTORS_VLLM_API_KEY": HIDDEN, "AGENT_ACTORS_POOLS__DEFAULT__SLOTS": "4"}
    program = (
        "import os\n"
        "from agent_actors.config_diff import actor_settings_digest\n"
        "from agent_actors.config_file import load_config\n"
        "print(actor_settings_digest(load_config(None, os.environ), 'default', '1.0'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    here = digest(load_config(str(file), {}))
    assert re.fullmatch("[0-9a-f]{16}", here)
    assert [run.stdout.strip(), digest(load_config(None, environ))] == [here, here]
