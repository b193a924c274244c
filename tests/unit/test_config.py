import copy
import json
import pickle

import msgspec
import pytest

from agent_actors.config import (
    AutoscaleConfig,
    Config,
    NatsConfig,
    PoolConfig,
    TlsConfig,
    VllmConfig,
)
from agent_actors.config_types import MASK, Secret, mask_address, mask_secret

HIDDEN = "correct-horse-battery"


@pytest.fixture
def config():
    return Config(
        nats=NatsConfig(
            url=f"nats://bob:{HIDDEN}@one:4222, tls://{HIDDEN}@two",
            password=Secret(HIDDEN),
            token=Secret(HIDDEN),
            tls=TlsConfig(server_name="one"),
        ),
        vllm=VllmConfig(api_key=Secret(HIDDEN), urls=(f"http://bob:{HIDDEN}@gpu:8000",)),
    )


@pytest.mark.parametrize(
    "written",
    [repr, str, "{}".format, "%s".__mod__, lambda thing: str([thing]), lambda thing: f"{thing!r}"],
)
def test_a_secret_never_shows_in_text(config, written):
    for thing in (config.vllm.api_key, config.nats, config.vllm, config):
        assert HIDDEN not in written(thing)
        assert MASK in written(thing)


def test_a_secret_never_shows_when_rich_prints_it(config):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(config)
    assert HIDDEN not in capture.get()
    assert "server_name='one'" in capture.get()


def test_a_secret_is_given_away_only_on_purpose(config):
    assert config.vllm.api_key.reveal() == HIDDEN


def test_a_secret_that_is_not_set_says_so_and_is_false():
    assert repr(Secret()) == "(not set)"
    assert not Secret()
    assert Secret("x")


def test_secrets_are_compared_by_what_they_hide_and_only_with_secrets():
    assert Secret("x") == Secret("x")
    assert Secret("x") != Secret("y")
    assert Secret("x") != "x"
    assert len({Secret("x"), Secret("x"), Secret("y")}) == 2


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_configuration_reaches_another_process_with_its_secrets(config, protocol):
    arrived = pickle.loads(pickle.dumps(config, protocol))
    assert arrived == config
    assert arrived.nats.password.reveal() == HIDDEN
    assert copy.deepcopy(config) == config


def test_msgspec_encodes_a_secret_as_its_mask():
    encoded = msgspec.json.encode(
        [Secret(HIDDEN), Secret()],
        enc_hook=mask_secret,
    )
    assert json.loads(encoded) == [MASK, ""]


def test_msgspec_refuses_to_encode_a_secret_without_the_hook():
    with pytest.raises(TypeError):
        msgspec.json.encode(Secret(HIDDEN))


def test_the_encoder_hook_takes_nothing_but_secrets():
    with pytest.raises(NotImplementedError, match="object is not part of the configuration"):
        mask_secret(object())


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("nats://bob:pw@host:4222", "nats://***@host:4222"),
        ("nats://token@host", "nats://***@host"),
        ("nats://a:b@one,tls://c:d@two", "nats://***@one,tls://***@two"),
        ("http://host:8000/a@b", "http://host:8000/a@b"),
        ("nats://host", "nats://host"),
        ("bob@host", "bob@host"),
    ],
)
def test_an_address_is_masked_up_to_its_host(address, masked):
    assert mask_address(address) == masked


def test_without_a_file_there_is_one_pool_on_all_task_subjects():
    assert Config().pools == {"default": PoolConfig(subjects=("agent.tasks.>",))}


def test_pools_of_two_configurations_are_not_shared():
    assert Config().pools is not Config().pools
    assert PoolConfig().roles is not PoolConfig().roles


def test_a_fixed_size_is_the_least_and_the_most():
    pool = PoolConfig(actors=3)
    assert (pool.min_actors, pool.max_actors, pool.autoscale) == (3, 3, None)


def test_a_size_that_follows_the_load_has_bounds():
    scale = AutoscaleConfig(min=0, max=8)
    pool = PoolConfig(actors=scale)
    assert (pool.min_actors, pool.max_actors, pool.autoscale) == (0, 8, scale)
