import json
import os
import subprocess
import sys

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from agent_actors.config import (
    AutoscaleConfig,
    Config,
    NatsConfig,
    PoolConfig,
    Resources,
    RoleConfig,
    TlsConfig,
    VllmConfig,
)
from agent_actors.config_file import (
    OTHER_VARIABLES,
    TEST_PREFIX,
    effective,
    load_config,
    to_yaml,
)
from agent_actors.config_keys import facts_of, keys_of, reference, shape_of
from agent_actors.config_tools import TOOL_GROUPS
from agent_actors.config_types import Secret

HIDDEN = "correct-horse-battery"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load(folder):
    """Load a file with the text that is given, and the variables."""

    def load(text="", **environ):
        (folder / "agents.yaml").write_text(text, encoding="utf-8")
        return load_config("agents.yaml", environ)

    return load


def test_without_a_file_and_variables_everything_is_default():
    assert load_config(None, {"HOME": "/home/bob", "NATS_URL": "nats://not-ours"}) == Config()


@pytest.mark.parametrize(
    "text", ["", "# nothing yet\n", "---\n", "nats:\nvllm:\nstreams:\nray:\npools:\n", "\ufeff"]
)
def test_an_empty_file_is_all_default(load, text):
    assert load(text) == Config()


def test_a_file_sets_what_it_says_and_leaves_the_rest(load):
    config = load("""
nats:
  url: nats://one:4222, nats://two:4222
  tls: {}
vllm:
  urls: [http://gpu-1:8000, "https://gpu-2/models/"]
  api_key: "sk-1"
pools:
  dev:
    subjects: [agent.tasks.dev]
    actors: 4
    task_timeout_s: 90
    resources: {num_cpus: 1, custom: {GPU_A: 0.5}}
    roles:
      dev: {prompt: You write Rust.}
  others:
    subjects: [agent.tasks.qa, agent.tasks.data]
""")
    assert config == Config(
        nats=NatsConfig(url="nats://one:4222, nats://two:4222", tls=TlsConfig()),
        vllm=VllmConfig(
            urls=("http://gpu-1:8000", "https://gpu-2/models/"), api_key=Secret("sk-1")
        ),
        pools={
            "dev": PoolConfig(
                subjects=("agent.tasks.dev",),
                actors=4,
                task_timeout_s=90.0,
                resources=Resources(num_cpus=1.0, custom={"GPU_A": 0.5}),
                roles={"DEV": RoleConfig(prompt="You write Rust.")},
            ),
            "others": PoolConfig(subjects=("agent.tasks.qa", "agent.tasks.data")),
        },
    )


def test_pools_in_the_file_stand_in_place_of_the_default_pool(load):
    assert set(load("pools: {mine: {}}").pools) == {"mine"}


def test_a_pool_with_nothing_below_it_is_all_default(load):
    assert load("pools:\n  mine:\n").pools == {"mine": PoolConfig()}


def test_anchors_and_merge_keys_work_and_are_no_duplicates(load):
    config = load("""
pools:
  a: &base {subjects: [agent.tasks.a], actors: 3, slots: 5}
  b: {<<: *base, subjects: [agent.tasks.b], slots: 6}
""")
    assert config.pools["b"] == PoolConfig(subjects=("agent.tasks.b",), actors=3, slots=6)


def test_a_variable_for_one_pool_leaves_its_twin_by_alias_alone(load):
    config = load(
        "pools:\n  a: &base {resources: &r {num_cpus: 2}, subjects: [agent.tasks.a]}\n"
        "  b: {resources: *r, subjects: [agent.tasks.b]}\n",
        AGENT_ACTORS_POOLS__A__RESOURCES__NUM_CPUS="4",
    )
    assert config.pools["a"].resources.num_cpus == 4.0
    assert config.pools["b"].resources.num_cpus == 2.0


def test_the_environment_names_the_file_unless_the_command_line_does(folder):
    (folder / "one.yaml").write_text("ray: {namespace: one}")
    (folder / "two.yaml").write_text("ray: {namespace: two}")
    environ = {"AGENT_ACTORS_CONFIG": "one.yaml"}
    assert load_config(None, environ).ray.namespace == "one"
    assert load_config("two.yaml", environ).ray.namespace == "two"


def test_a_relative_path_counts_from_the_file_that_says_it(folder):
    (folder / "etc").mkdir()
    (folder / "etc" / "ca.pem").touch()
    (folder / "etc" / "agents.yaml").write_text("nats: {tls: {ca_file: ca.pem}}")
    tls = load_config("etc/agents.yaml", {}).nats.tls
    assert tls == TlsConfig(ca_file=str(folder / "etc" / "ca.pem"))


def test_a_relative_path_in_a_variable_counts_from_the_working_folder(folder):
    (folder / "etc").mkdir()
    (folder / "ca.pem").touch()
    (folder / "etc" / "agents.yaml").write_text("nats: {tls: {server_name: one}}")
    environ = {"AGENT_ACTORS_NATS__TLS__CA_FILE": "ca.pem"}
    tls = load_config("etc/agents.yaml", environ).nats.tls
    assert tls == TlsConfig(ca_file=str(folder / "ca.pem"), server_name="one")


def test_a_tilde_is_the_home_folder(load, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "my.creds").touch()
    config = load("nats: {credentials_file: ~/my.creds}")
    assert config.nats.credentials_file == str(folder / "my.creds")


def test_an_api_key_file_is_read_without_its_line_break(load, folder):
    (folder / "key").write_text("sk-1\r\n")
    assert load("vllm: {api_key_file: key}").vllm.api_key == Secret("sk-1")


def test_a_secret_from_a_mounted_file_loses_its_line_break(load):
    assert load(AGENT_ACTORS_VLLM_API_KEY="sk-1\n").vllm.api_key == Secret("sk-1")


# The environment.


def annotation_of(path):
    """Return the type of a key of the reference, placeholders included."""
    annotation = Config
    for part in path.split("."):
        shape = shape_of(annotation)
        annotation = keys_of(shape.section)[part].type if shape.section else shape.values
    return annotation


def is_secret(annotation):
    return isinstance(facts_of(annotation).type, inspect.CustomType)


def sample(key, file):
    """Return a text for the key's variable and what it means, other than the key's default."""
    facts, shape = facts_of(annotation_of(key.path)), shape_of(annotation_of(key.path))
    if facts.file:
        return str(file), str(file)
    if shape.items:
        item = facts_of(shape.items).example or "some text"
        return item, [item]
    if shape.values and is_secret(shape.values):
        return facts.example, dict.fromkeys(json.loads(facts.example), "***")
    if facts.example:
        text = facts.example
        return text, json.loads(text) if text.startswith("{") else text
    match facts.type:
        case inspect.BoolType():
            meant = key.default == "false"
            return json.dumps(meant), meant
        case inspect.IntType():
            meant = 9 if key.default == "(must be given)" else int(key.default) + 1
            return str(meant), meant
        case inspect.FloatType():
            meant = float(key.default) / 2 or 0.5
            return str(meant), meant
        case inspect.CustomType():
            return HIDDEN, "***"
        case _:
            return "some text", "some text"


# What the rest of a pair must be when one of it is set.
COMPANIONS = {
    "nats.user": {"AGENT_ACTORS_NATS_PASSWORD": "x"},
    "nats.password": {"AGENT_ACTORS_NATS_USER": "x"},
    "pools": {"AGENT_ACTORS_POOLS__DEFAULT__ACTORS__MAX": ""},
    "pools.<pool>.actors": {"AGENT_ACTORS_POOLS__DEFAULT__ACTORS__MAX": ""},
    "pools.<pool>.tools.mcpServers.<mcpServer>.url": {
        "AGENT_ACTORS_POOLS__DEFAULT__TOOLS__MCPSERVERS__DB__COMMAND": ""
    },
    "nats.tls.cert_file": {"AGENT_ACTORS_NATS__TLS__KEY_FILE": "file"},
    "nats.tls.key_file": {"AGENT_ACTORS_NATS__TLS__CERT_FILE": "file"},
}


# What stands for the names that a user gives, and the variables that give them and what must be.
NAMES = {"<pool>": "default", "<role>": "DEV", "<ROLE>": "DEV", "<mcpServer>": "db"}
NAMED = {
    "AGENT_ACTORS_POOLS__DEFAULT__ACTORS__MAX": "8",
    "AGENT_ACTORS_POOLS__DEFAULT__ROLES__DEV__PROMPT": "-",
    "AGENT_ACTORS_POOLS__DEFAULT__TOOLS__MCPSERVERS__DB__COMMAND": "db",
}


def with_names(text, names):
    for placeholder, name in names.items():
        text = text.replace(placeholder, name)
    return text


@pytest.mark.parametrize("key", reference(), ids=lambda key: key.path)
def test_every_key_can_be_set_by_its_variable(folder, key):
    file = folder / "file"
    file.write_text("one line")
    text, meant = sample(key, file)
    name = with_names(key.variable, {**NAMES, "<POOL>": "DEFAULT", "<MCPSERVER>": "DB"})
    before = effective(load_config(None, NAMED))
    after = effective(load_config(None, NAMED | {name: text} | COMPANIONS.get(key.path, {})))
    for part in with_names(key.path, NAMES).split("."):
        before, after = (before or {}).get(part), after[part]
    assert has(after, meant)
    assert after != before


def has(value, meant):
    """Tell whether a value is what was meant; a section may have its defaults besides."""
    if isinstance(meant, dict):
        return all(has(value[name], inner) for name, inner in meant.items())
    return value == meant


def test_the_environment_beats_the_file(load):
    config = load("ray: {namespace: file}", AGENT_ACTORS_RAY_NAMESPACE="environment")
    assert config.ray.namespace == "environment"


def test_an_empty_variable_leaves_what_the_file_says(load):
    assert load("ray: {namespace: file}", AGENT_ACTORS_RAY_NAMESPACE="").ray.namespace == "file"


@pytest.mark.parametrize(
    "name",
    [
        "AGENT_ACTORS_POOLS__GPU_BIG__ACTORS",
        "AGENT_ACTORS_POOLS_GPU_BIG__ACTORS",
        "AGENT_ACTORS_POOLS__gpu_Big__actors",
        "AGENT_ACTORS_POOLS__GPU-big__ACTORS",
    ],
)
def test_a_pool_is_found_whatever_the_case_of_its_name_and_with_its_dashes(load, name):
    config = load("pools: {GPU-big: {slots: 7}}", **{name.replace("GPU-big", "GPU_big"): "9"})
    assert config.pools == {"GPU-big": PoolConfig(slots=7, actors=9)}


def test_a_pool_with_two_underscores_in_its_name_is_found(load):
    config = load("pools: {a__b: {}}", AGENT_ACTORS_POOLS__A__B__ACTORS="9")
    assert config.pools == {"a__b": PoolConfig(actors=9)}


def test_a_pool_that_only_the_environment_names_is_made_in_lower_case():
    config = load_config(
        None,
        {
            "AGENT_ACTORS_POOLS__DEV__SUBJECTS": "agent.tasks.dev, agent.tasks.devops,",
            "AGENT_ACTORS_POOLS__DEV__ROLES__LAWYER__PROMPT": "You plead.",
        },
    )
    assert config.pools == {
        "dev": PoolConfig(
            subjects=("agent.tasks.dev", "agent.tasks.devops"),
            roles={"LAWYER": RoleConfig(prompt="You plead.")},
        )
    }


def test_a_whole_section_in_a_variable_replaces_the_files_and_single_keys_come_after_it(load):
    config = load(
        "pools: {old: {actors: 7}}",
        AGENT_ACTORS_POOLS='{"new": {"actors": 5, "slots": 6}}',
        AGENT_ACTORS_POOLS__NEW__SLOTS="8",
    )
    assert config.pools == {"new": PoolConfig(actors=5, slots=8)}


ACTORS = "AGENT_ACTORS_POOLS__DEFAULT__ACTORS"


@pytest.mark.parametrize(
    ("environ", "actors"),
    [
        ({ACTORS: "4"}, 4),
        ({ACTORS: "0"}, 0),
        ({f"{ACTORS}__MAX": "8"}, AutoscaleConfig(max=8)),
        ({f"{ACTORS}__MAX": "8", f"{ACTORS}__MIN": "0"}, AutoscaleConfig(min=0, max=8)),
        ({ACTORS: '{"min": 0, "max": 8}'}, AutoscaleConfig(min=0, max=8)),
        (
            {ACTORS: ' {"max": 8}', f"{ACTORS}__SCALE_DOWN_DELAY_S": "5"},
            AutoscaleConfig(max=8, scale_down_delay_s=5.0),
        ),
    ],
)
@pytest.mark.parametrize("text", ["", "pools: {default: {actors: 3}}"])
def test_variables_make_a_size_fixed_or_following_the_load(load, text, environ, actors):
    assert load(text, **environ).pools == {"default": PoolConfig(actors=actors)}


def test_a_number_in_a_variable_stands_in_place_of_the_files_bounds(load):
    config = load("pools: {default: {actors: {max: 8}}}", AGENT_ACTORS_POOLS__DEFAULT__ACTORS="4")
    assert config.pools == {"default": PoolConfig(actors=4)}


def test_a_variable_for_one_bound_leaves_the_files_others(load):
    config = load(
        "pools: {default: {actors: {min: 2, max: 8}}}",
        AGENT_ACTORS_POOLS__DEFAULT__ACTORS__MAX="5",
    )
    assert config.pools == {"default": PoolConfig(actors=AutoscaleConfig(min=2, max=5))}


@pytest.mark.parametrize("text", ["http://a:1,http://b:2", '["http://a:1", "http://b:2"]'])
def test_a_list_is_written_with_commas_or_as_json(text):
    config = load_config(None, {"AGENT_ACTORS_VLLM_URLS": text})
    assert config.vllm.urls == ("http://a:1", "http://b:2")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("FALSE", False), ("1", True)])
def test_a_switch_is_true_or_false_in_any_case(text, value):
    config = load_config(None, {"AGENT_ACTORS_POOLS__DEFAULT__ENABLE_TOOLS": text})
    assert config.pools["default"].enable_tools is value


def test_numbers_stay_text_where_text_belongs():
    assert load_config(None, {"AGENT_ACTORS_VLLM_MODEL": "7"}).vllm.model == "7"


KUBERNETES = {
    "AGENT_ACTORS_SERVICE_HOST": "10.0.0.1",
    "AGENT_ACTORS_SERVICE_PORT": "8000",
    "AGENT_ACTORS_PORT": "tcp://10.0.0.1:8000",
    "AGENT_ACTORS_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "AGENT_ACTORS_NATS_SERVICE_HOST": "10.0.0.2",
    "AGENT_ACTORS_NATS_SERVICE_PORT": "4222",
    "AGENT_ACTORS_NATS_SERVICE_PORT_CLIENT": "4222",
    "AGENT_ACTORS_NATS_PORT": "tcp://10.0.0.2:4222",
    "AGENT_ACTORS_NATS_PORT_4222_TCP": "tcp://10.0.0.2:4222",
    "AGENT_ACTORS_NATS_PORT_4222_TCP_PROTO": "tcp",
    "AGENT_ACTORS_NATS_PORT_4222_TCP_PORT": "4222",
    "AGENT_ACTORS_NATS_PORT_4222_TCP_ADDR": "10.0.0.2",
    "AGENT_ACTORS_RAYCLUSTER_HEAD_SVC_SERVICE_PORT_GCS_SERVER": "6379",
    "AGENT_ACTORS_DNS_PORT_53_UDP_ADDR": "10.0.0.3",
}


@pytest.mark.parametrize("name", KUBERNETES)
def test_what_kubernetes_tells_of_services_named_like_us_is_ignored(name):
    assert load_config(None, {name: KUBERNETES[name]}) == Config()


@pytest.mark.parametrize("name", [*sorted(OTHER_VARIABLES - {"AGENT_ACTORS_CONFIG"}), TEST_PREFIX])
def test_our_variables_that_are_no_keys_are_ignored(name):
    assert load_config(None, {name: "x"}) == Config()


# The effective configuration.


def test_the_effective_configuration_shows_no_secret(load, folder):
    (folder / "key").write_text(HIDDEN)
    config = load(
        f"nats: {{url: 'nats://bob:{HIDDEN}@one,nats://bob:{HIDDEN}@two'}}\n"
        f"vllm: {{urls: ['http://{HIDDEN}@gpu:8000'], api_key_file: key}}\n"
    )
    shown = effective(config)
    assert shown["nats"]["url"] == "nats://***@one,nats://***@two"
    assert shown["vllm"]["urls"] == ["http://***@gpu:8000"]
    assert shown["vllm"]["api_key"] == "***"
    assert shown["nats"]["password"] == ""
    assert HIDDEN not in to_yaml(config)
    assert HIDDEN not in json.dumps(shown)


def test_the_effective_configuration_has_every_key(load):
    pool = "{actors: {max: 8}, roles: {DEV: {prompt: x}}, tools: {mcpServers: {db: {command: x}}}}"
    shown = effective(load(f"nats: {{tls: {{}}}}\npools: {{default: {pool}}}"))
    for key in reference():
        value = shown
        for part in with_names(key.path, NAMES).split("."):
            value = value[part]


# Not without a password, which is no part of what is shown.
LEFT_OUT = {"user"}


def values(annotation):
    """Return a strategy for what YAML may say for a key, secrets and files left out."""
    facts, shape = facts_of(annotation), shape_of(annotation)
    if shape.section:
        section = sections(shape.section)
        section = values(shape.single) | section if shape.single else section
        return st.none() | section if shape.optional else section
    if shape.items:
        return st.lists(values(shape.items), min_size=int(facts.filled), max_size=3)
    if shape.values:
        by_spelling = lambda pair: pair[0].upper().replace("-", "_")  # noqa: E731 - read where it is used
        pairs = st.tuples(values(shape.names), values(shape.values))
        pairs = st.lists(pairs, min_size=int(facts.filled), max_size=3, unique_by=by_spelling)
        return pairs.map(dict)
    match facts.type:
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType(ge=least, le=most):
            return st.integers(least, most)
        case inspect.FloatType(ge=least, gt=above, le=most):
            low = above if least is None else least
            return st.floats(low, most, exclude_min=least is None)
        case inspect.StrType(pattern=None, min_length=least):
            return st.text(st.characters(codec="utf-8"), min_size=least or 0)
        case inspect.StrType(pattern=pattern):
            return st.from_regex(pattern, alphabet=st.characters(codec="utf-8")).filter(
                lambda text: "@" not in text
            )


def sections(section):
    keys = {
        name: info
        for name, info in keys_of(section).items()
        if name not in LEFT_OUT
        and not facts_of(info.type).file
        and not is_secret(info.type)
        and not (shape_of(info.type).values and is_secret(shape_of(info.type).values))
    }
    required = {name: values(info.type) for name, info in keys.items() if info.required}
    optional = {name: values(info.type) for name, info in keys.items() if not info.required}
    return st.fixed_dictionaries(required, optional=optional)


def settled(tree):
    """Give each pool a subject of its own, bounds that fit and servers one way to them."""
    for index, pool in enumerate(tree.get("pools", {}).values()):
        pool["subjects"] = [f"agent.tasks.{index}"]
        actors = pool.get("actors")
        if isinstance(actors, dict):
            actors["min"] = min(actors.get("min", 1), actors["max"])
        servers = pool.get("tools", {}).get("mcpServers", {})
        for server in servers.values():
            server |= {"command": "x", "url": ""}
        for group in TOOL_GROUPS:
            servers.pop(group, None)
    vllm = tree.get("vllm", {})
    if "max_in_flight" in vllm:
        vllm["min_in_flight"] = min(vllm.get("min_in_flight", 1), vllm["max_in_flight"])
    elif "min_in_flight" in vllm:
        vllm["max_in_flight"] = vllm["min_in_flight"]
    streams = tree.get("streams", {})
    streams["duplicate_window_s"] = min(
        streams.get(name, 3600.0) for name in ("responses_max_age_s", "deadletter_max_age_s")
    )
    return {**tree, "streams": streams}


@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tree=sections(Config).map(settled))
def test_the_effective_configuration_loads_as_the_same_again(load, tree):
    config = load(yaml.safe_dump(tree))
    assert load(to_yaml(config)) == config


# The reference.


def test_every_key_has_a_meaning_and_a_variable_of_its_own():
    keys = reference()
    for key in keys:
        assert key.meaning.endswith("."), key.path
        assert "\n" not in key.meaning, key.path
    assert len({key.variable for key in keys}) == len(keys)


def test_no_variable_of_a_key_is_taken_for_one_of_another_kind():
    assert not {key.variable for key in reference()} & OTHER_VARIABLES
    assert not [key for key in reference() if key.variable.startswith(TEST_PREFIX)]


@pytest.mark.parametrize(
    ("path", "variable", "kind", "default"),
    [
        (
            "nats.url",
            "AGENT_ACTORS_NATS_URL",
            "nats:// or tls:// address, or several with commas between",
            '""',
        ),
        ("vllm.api_key", "AGENT_ACTORS_VLLM_API_KEY", "secret text", '""'),
        ("nats.tls.ca_file", "AGENT_ACTORS_NATS__TLS__CA_FILE", "path of a file", '""'),
        (
            "pools",
            "AGENT_ACTORS_POOLS",
            "map that is not empty, from names to maps",
            '{"default": {}}',
        ),
        (
            "pools.<pool>.slots",
            "AGENT_ACTORS_POOLS__<POOL>__SLOTS",
            "whole number of at least 1",
            "32",
        ),
        (
            "pools.<pool>.actors",
            "AGENT_ACTORS_POOLS__<POOL>__ACTORS",
            "whole number of at least 0, or a map with min and max",
            "2",
        ),
        (
            "pools.<pool>.actors.max",
            "AGENT_ACTORS_POOLS__<POOL>__ACTORS__MAX",
            "whole number of at least 1",
            "(must be given)",
        ),
        (
            "pools.<pool>.roles.<role>.prompt",
            "AGENT_ACTORS_POOLS__<POOL>__ROLES__<ROLE>__PROMPT",
            "text",
            '""',
        ),
        (
            "pools.<pool>.tools.mcpServers.<mcpServer>.command",
            "AGENT_ACTORS_POOLS__<POOL>__TOOLS__MCPSERVERS__<MCPSERVER>__COMMAND",
            "text",
            '""',
        ),
    ],
)
def test_the_reference_says_how_a_key_is_set(path, variable, kind, default):
    key = next(key for key in reference() if key.path == path)
    assert (key.variable, key.type, key.default) == (variable, kind, default)


@pytest.mark.parametrize(
    "key",
    [key for key in reference() if "number" in key.type and not key.type.startswith("map")],
    ids=lambda key: key.path,
)
@pytest.mark.parametrize("endless", ["nan", "inf", "-inf"])
def test_no_number_is_endless(key, endless):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(float(endless), annotation_of(key.path))


def test_reading_the_environment_does_not_import_yaml():
    program = (
        "import sys\n"
        "from agent_actors.config_file import load_config\n"
        "load_config(None, {})\n"
        "print('yaml' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.stdout.strip() == "False"
