"""What a newcomer reads when the configuration is wrong."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent_actors.config_file import load_config
from agent_actors.config_keys import reference
from agent_actors.errors import ConfigError

HIDDEN = "correct-horse-battery"
SUBJECT = "`agent.tasks.` and a role, `*` or `>`, such as agent.tasks.dev"
NATS_URL = (
    "a nats:// or tls:// address, or several with commas between, such as nats://127.0.0.1:4222"
)
ACTORS = 'a whole number of at least 0, or a map with min and max, such as {"min": 2, "max": 8}'
LABEL_NAME = (
    "a label's name as in Kubernetes: at most 63 letters and digits, with -, _ and . between them, "
    "and before it a domain and a / if need be"
)
LABEL_VALUE = (
    "a value, `in(A,B)` for any of several, or either with `!` before it for all others, such as "
    "H100"
)
VLLM_URL = "an http:// or https:// address, such as "
POOL_NAME = "1 to 32 of the characters A-Z, a-z, 0-9, _ and -"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(text="", **environ):
    """Return what `load_config` says about a file `agents.yaml` with this text."""
    Path("agents.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("agents.yaml", environ)
    return str(caught.value)


def complaint(path, **environ):
    """Return what `load_config` says, nothing if it does not complain."""
    try:
        load_config(path, environ)
    except ConfigError as error:
        return str(error)
    return ""


FILES = {
    "an unknown section": (
        "nat:\n  url: nats://one\n",
        "agents.yaml:1: nat is no key; did you mean `nats`?",
    ),
    "an unknown key": (
        "pools:\n  default:\n    slot: 4\n",
        "agents.yaml:3: pools.default.slot is no key; did you mean `slots`?",
    ),
    "a key in another spelling": (
        "pools: {default: {taskTimeoutS: 4}}\n",
        "agents.yaml:1: pools.default.taskTimeoutS is no key; did you mean `task_timeout_s`?",
    ),
    "a key of another section": (
        "actors: 3\n",
        "agents.yaml:1: actors is no key; did you mean `pools.<pool>.actors`?",
    ),
    "a key like no other": (
        "ray:\n  colour: blue\n",
        "agents.yaml:2: ray.colour is no key; the keys here are address, namespace, supervisor",
    ),
    "a key that is no text": (
        "ray:\n  7: blue\n",
        "agents.yaml:2: ray.7 is no key; the keys here are address, namespace, supervisor",
    ),
    "a key of two words and a line break": (
        'ray: {"my colour\\n": blue}\n',
        (
            'agents.yaml:1: ray."my colour\\n" is no key; '
            "the keys here are address, namespace, supervisor"
        ),
    ),
    "a text for a number": (
        "pools:\n  default:\n    actors: four\n",
        f'agents.yaml:3: pools.default.actors is "four", a text; it should be {ACTORS}',
    ),
    "a number in quotes": (
        "pools:\n  default:\n    actors: '4'\n",
        (
            'agents.yaml:3: pools.default.actors is "4", a text; '
            f"it should be {ACTORS}, without quotes"
        ),
    ),
    "a fraction for a whole number": (
        "pools: {default: {slots: 1.5}}\n",
        "agents.yaml:1: pools.default.slots is 1.5; it should be a whole number of at least 1",
    ),
    "a number for a text": (
        "vllm:\n  model: 7\n",
        "agents.yaml:2: vllm.model is 7, a number; it should be a text, in quotes",
    ),
    "a date for a text": (
        "vllm:\n  model: 2026-01-31\n",
        "agents.yaml:2: vllm.model is 2026-01-31, a date; it should be a text, in quotes",
    ),
    "a yes for a text": (
        "vllm:\n  model: on\n",
        "agents.yaml:2: vllm.model is true, a true-or-false value; it should be a text, in quotes",
    ),
    "a number for a switch": (
        "pools: {default: {enable_tools: 1}}\n",
        "agents.yaml:1: pools.default.enable_tools is 1, a number; it should be true or false",
    ),
    "a value left empty": (
        "pools:\n  default:\n    max_tokens:\n",
        (
            "agents.yaml:3: pools.default.max_tokens is empty; "
            "it should be a whole number of at least 1, or left out"
        ),
    ),
    "too few": (
        "pools: {default: {slots: 0}}\n",
        "agents.yaml:1: pools.default.slots is 0; it should be a whole number of at least 1",
    ),
    "fewer actors than none": (
        "pools:\n  default:\n    actors: -1\n",
        f"agents.yaml:3: pools.default.actors is -1; it should be {ACTORS}",
    ),
    "a part of an actor": (
        "pools: {default: {actors: 1.5}}\n",
        f"agents.yaml:1: pools.default.actors is 1.5; it should be {ACTORS}",
    ),
    "a switch for a size": (
        "pools: {default: {actors: on}}\n",
        (
            "agents.yaml:1: pools.default.actors is true, a true-or-false value; "
            f"it should be {ACTORS}"
        ),
    ),
    "a list for a size": (
        "pools: {default: {actors: [1, 8]}}\n",
        f"agents.yaml:1: pools.default.actors is a list; it should be {ACTORS}",
    ),
    "a size left empty": (
        "pools:\n  default:\n    actors:\n",
        f"agents.yaml:3: pools.default.actors is empty; it should be {ACTORS}, or left out",
    ),
    "a size that follows the load without an end": (
        "pools:\n  default:\n    actors: {min: 1}\n",
        (
            "agents.yaml:3: pools.default.actors.max is missing; "
            "it should be a whole number of at least 1"
        ),
    ),
    "a bound in another word": (
        "pools:\n  default:\n    actors:\n      min: 1\n      maximum: 3\n",
        (
            "agents.yaml:5: pools.default.actors.maximum is no key; the keys here are min, max, "
            "target_utilization, scale_up_delay_s, scale_down_delay_s\n"
            "agents.yaml:3: pools.default.actors.max is missing; "
            "it should be a whole number of at least 1"
        ),
    ),
    "bounds the wrong way round": (
        "pools:\n  default:\n    actors:\n      min: 8\n      max: 2\n",
        "agents.yaml:4: pools.default.actors.min is 8, more than pools.default.actors.max, 2",
    ),
    "no actors at most": (
        "pools:\n  default:\n    actors: {max: 0}\n",
        ("agents.yaml:3: pools.default.actors.max is 0; it should be a whole number of at least 1"),
    ),
    "a share in percent": (
        "pools:\n  default:\n    actors: {max: 8, target_utilization: 80}\n",
        (
            "agents.yaml:3: pools.default.actors.target_utilization is 80; "
            "it should be a number above 0, at most 1: 0.8 means 80 %"
        ),
    ),
    "a delay with a unit": (
        "pools:\n  default:\n    actors: {max: 8, scale_down_delay_s: 5m}\n",
        (
            'agents.yaml:3: pools.default.actors.scale_down_delay_s is "5m", a text; '
            "it should be a number from 0 to 2592000"
        ),
    ),
    "bounds beside the size in place of below it": (
        "pools:\n  default:\n    actors: 2\n    max: 8\n",
        "agents.yaml:4: pools.default.max is no key; did you mean `pools.<pool>.actors.max`?",
    ),
    "a placement that there is not": (
        "pools:\n  default:\n    placement: strict\n",
        (
            'agents.yaml:3: pools.default.placement is "strict"; '
            "it should be `spread` or `pack`, such as pack"
        ),
    ),
    "a label with a name that Ray refuses": (
        "pools:\n  default:\n    resources:\n      labels: {gpu type: H100}\n",
        (
            'agents.yaml:4: pools.default.resources.labels has a name that is "gpu type"; '
            f"it should be {LABEL_NAME}"
        ),
    ),
    "a label with a value that Ray refuses": (
        "ray:\n  supervisor:\n    labels:\n      zone: a/b\n",
        f'agents.yaml:4: ray.supervisor.labels.zone is "a/b"; it should be {LABEL_VALUE}',
    ),
    "a label with a value that no node has": (
        "pools: {default: {resources: {labels: {gpu: 'in(H100, A100)'}}}}\n",
        (
            'agents.yaml:1: pools.default.resources.labels.gpu is "in(H100, A100)"; '
            f"it should be {LABEL_VALUE}"
        ),
    ),
    "a label with a number for a value": (
        "pools: {default: {resources: {labels: {generation: 9}}}}\n",
        (
            "agents.yaml:1: pools.default.resources.labels.generation is 9, a number; "
            f"it should be {LABEL_VALUE}, in quotes"
        ),
    ),
    "labels as a list": (
        "pools: {default: {resources: {labels: [zone=a]}}}\n",
        (
            "agents.yaml:1: pools.default.resources.labels is a list; "
            "it should be a map, from names of labels to their values, such as "
            '{"ray.io/accelerator-type": "H100"}'
        ),
    ),
    "too hot": (
        "pools: {default: {temperature: 2.5}}\n",
        "agents.yaml:1: pools.default.temperature is 2.5; it should be a number from 0 to 2",
    ),
    "no time at all": (
        "nats: {connect_timeout_s: 0}\n",
        (
            "agents.yaml:1: nats.connect_timeout_s is 0; "
            "it should be a number above 0, at most 2592000"
        ),
    ),
    "for ever": (
        "nats: {connect_timeout_s: .inf}\n",
        (
            "agents.yaml:1: nats.connect_timeout_s is inf; "
            "it should be a number above 0, at most 2592000"
        ),
    ),
    "not a number": (
        "pools: {default: {temperature: .nan}}\n",
        "agents.yaml:1: pools.default.temperature is nan; it should be a number from 0 to 2",
    ),
    "a size below none": (
        "streams: {tasks_max_bytes: -2}\n",
        (
            "agents.yaml:1: streams.tasks_max_bytes is -2; "
            "it should be a number of bytes, or -1 for no limit"
        ),
    ),
    "too many replicas": (
        "streams: {replicas: 7}\n",
        "agents.yaml:1: streams.replicas is 7; it should be a whole number from 1 to 5",
    ),
    "a text for a list": (
        "vllm:\n  urls: http://gpu:8000\n",
        (
            'agents.yaml:2: vllm.urls is "http://gpu:8000", a text; it should be a list, each '
            f"{VLLM_URL}[http://127.0.0.1:8000]"
        ),
    ),
    "a list for a section": (
        "nats: [nats://one]\n",
        (
            "agents.yaml:1: nats is a list; "
            "it should be a map with keys such as url, credentials_file, nkey_seed_file"
        ),
    ),
    "a text for a section": (
        f"vllm: {HIDDEN}\n",
        (
            "agents.yaml:1: vllm is a text; "
            "it should be a map with keys such as urls, api_key, api_key_file"
        ),
    ),
    "a list for a map of pools": (
        "pools:\n- default\n",
        (
            "agents.yaml:1: pools is a list; it should be a map that is not empty, from names to "
            'maps, such as {"default": {"actors": 4}}'
        ),
    ),
    "a list for a number": (
        "pools: {default: {slots: [1, 2]}}\n",
        "agents.yaml:1: pools.default.slots is a list; it should be a whole number of at least 1",
    ),
    "a map for a text": (
        "vllm: {model: {name: tiny}}\n",
        "agents.yaml:1: vllm.model is a map; it should be a text",
    ),
    "a negative resource": (
        "pools: {default: {resources: {custom: {GPU_A: -1}}}}\n",
        (
            "agents.yaml:1: pools.default.resources.custom.GPU_A is -1; "
            "it should be a number from 0 to 1000000000"
        ),
    ),
    "no pools": (
        "pools: {}\n",
        (
            "agents.yaml:1: pools is empty; it should be a map that is not empty, from names to "
            'maps, such as {"default": {"actors": 4}}'
        ),
    ),
    "a pool without subjects": (
        "pools:\n  dev:\n    subjects: []\n",
        (
            "agents.yaml:3: pools.dev.subjects is empty; it should be a list that is not empty, "
            "each `agent.tasks.` and a role, `*` or `>`, such as [agent.tasks.dev]"
        ),
    ),
    "a pool with a bad name": (
        "pools:\n  gpu/big: {}\n",
        f'agents.yaml:2: pools has a name that is "gpu/big"; it should be {POOL_NAME}',
    ),
    "a pool with a number for a name": (
        "pools:\n  7: {}\n",
        f"agents.yaml:2: pools has a name that is 7, a number; it should be {POOL_NAME}, in quotes",
    ),
    "two pools of nearly one name": (
        "pools:\n  gpu-big: {subjects: [agent.tasks.a]}\n  GPU_big: {subjects: [agent.tasks.b]}\n",
        "agents.yaml:3: pools.GPU_big and pools.gpu-big differ only in case, - and _; rename one",
    ),
    "a subject that is not ours": (
        "pools:\n  dev:\n    subjects:\n    - agent.tasks.dev\n    - orders.new\n",
        f'agents.yaml:5: pools.dev.subjects[1] is "orders.new"; it should be {SUBJECT}',
    ),
    "a subject of two tokens": (
        "pools: {dev: {subjects: [agent.tasks.dev.backend]}}\n",
        (
            'agents.yaml:1: pools.dev.subjects[0] is "agent.tasks.dev.backend"; '
            f"it should be {SUBJECT}"
        ),
    ),
    "two pools on one subject": (
        (
            "pools:\n"
            "  dev:\n    subjects: [agent.tasks.dev]\n"
            "  qa:\n    subjects: [agent.tasks.qa, agent.tasks.dev]\n"
        ),
        (
            "agents.yaml:5: pools.qa.subjects has agent.tasks.dev, which overlaps agent.tasks.dev "
            "of pools.dev; a subject can have one pool only"
        ),
    ),
    "a wildcard over another pool's subject": (
        "pools:\n  any:\n    subjects: [agent.tasks.*]\n  dev:\n    subjects: [agent.tasks.dev]\n",
        (
            "agents.yaml:5: pools.dev.subjects has agent.tasks.dev, which overlaps agent.tasks.* "
            "of pools.any; a subject can have one pool only"
        ),
    ),
    "a second pool on every subject": (
        "pools:\n  dev:\n    subjects: [agent.tasks.dev]\n  rest:\n    actors: 1\n",
        (
            "agents.yaml:4: pools.rest.subjects is not given and so has agent.tasks.>, which "
            "overlaps agent.tasks.dev of pools.dev; a subject can have one pool only"
        ),
    ),
    "a pool with one subject twice": (
        "pools:\n  dev:\n    subjects: [agent.tasks.dev, agent.tasks.>]\n",
        (
            "agents.yaml:3: pools.dev.subjects has agent.tasks.>, which overlaps agent.tasks.dev "
            "of the same pool; drop one"
        ),
    ),
    "a role with a mode that there is not": (
        "pools:\n  default:\n    roles:\n      lawyer: {mode: write}\n",
        (
            'agents.yaml:4: pools.default.roles.lawyer.mode is "write"; '
            "it should be `default`, `read-only` or `full`, such as read-only"
        ),
    ),
    "a sandbox that there is not": (
        "pools:\n  default:\n    tools:\n      sandbox: {kind: docker}\n",
        (
            'agents.yaml:4: pools.default.tools.sandbox.kind is "docker"; '
            "it should be `auto`, `bwrap`, `landlock` or `none`, such as bwrap"
        ),
    ),
    "an MCP server without command and URL": (
        "pools:\n  default:\n    tools:\n      mcpServers:\n        db: {args: [x]}\n",
        (
            "agents.yaml:5: pools.default.tools.mcpServers.db needs a command, for a stdio server, "
            "or a url, for an HTTP server"
        ),
    ),
    "an MCP server with command and URL": (
        "pools:\n  default:\n    tools:\n      mcpServers:\n        db: {command: x, url: 'http://a'}\n",
        ("agents.yaml:5: pools.default.tools.mcpServers.db has a command and a url; keep one"),
    ),
    "an MCP server named like our own tools": (
        "pools:\n  default:\n    tools:\n      mcpServers:\n        git: {command: x}\n",
        (
            "agents.yaml:5: pools.default.tools.mcpServers.git has the name of a group of tools "
            "that is there already; rename it"
        ),
    ),
    "a NATS address without a scheme": (
        "nats:\n  url: localhost:4222\n",
        f'agents.yaml:2: nats.url is "localhost:4222"; it should be {NATS_URL}',
    ),
    "a NATS address of the web": (
        "nats:\n  url: http://localhost:4222\n",
        f'agents.yaml:2: nats.url is "http://localhost:4222"; it should be {NATS_URL}',
    ),
    "one bad address of two": (
        "nats:\n  url: nats://one,two\n",
        f'agents.yaml:2: nats.url is "nats://one,two"; it should be {NATS_URL}',
    ),
    "a port that does not exist": (
        "nats:\n  url: nats://one:65536\n",
        f'agents.yaml:2: nats.url is "nats://one:65536"; it should be {NATS_URL}',
    ),
    "a bad address with a password": (
        f"nats:\n  url: nets://bob:{HIDDEN}/{HIDDEN}@one\n",
        f'agents.yaml:2: nats.url is "nets://***@one"; it should be {NATS_URL}',
    ),
    "a Ray address without a port": (
        "ray:\n  address: head\n",
        (
            'agents.yaml:2: ray.address is "head"; it should be `auto`, a host:port, or a '
            "ray://host:port, such as 127.0.0.1:6379"
        ),
    ),
    "two ways to log in": (
        "nats:\n  credentials_file: agents.yaml\n  nkey_seed_file: agents.yaml\n",
        (
            "agents.yaml:2: nats.credentials_file and nats.nkey_seed_file each say who we are; "
            "keep one"
        ),
    ),
    "a token beside a user in the address": (
        f"nats:\n  url: nats://bob:{HIDDEN}@one\n  token: {HIDDEN}\n",
        "agents.yaml:3: nats.token and nats.url each say who we are; keep one",
    ),
    "a password without a user": (
        f"nats:\n  password: {HIDDEN}\n",
        "agents.yaml:2: nats.password is set without nats.user; set both or neither",
    ),
    "a user without a password": (
        "nats:\n  user: bob\n",
        "agents.yaml:2: nats.user is set without nats.password; set both or neither",
    ),
    "a certificate without a key": (
        "nats:\n  tls:\n    cert_file: agents.yaml\n",
        "agents.yaml:3: nats.tls.cert_file is set without nats.tls.key_file; set both or neither",
    ),
    "a key without a certificate": (
        "nats:\n  tls:\n    key_file: agents.yaml\n",
        "agents.yaml:3: nats.tls.key_file is set without nats.tls.cert_file; set both or neither",
    ),
    "an API key twice": (
        f"vllm:\n  api_key: {HIDDEN}\n  api_key_file: agents.yaml\n",
        "agents.yaml:3: vllm.api_key_file and vllm.api_key are both set; keep one",
    ),
    "an API key of several lines": (
        "vllm:\n  api_key_file: agents.yaml\n",
        (
            "agents.yaml:2: vllm.api_key_file names a file that should hold one line of ASCII "
            "text, the key"
        ),
    ),
    "an API key that no header carries": (
        f"vllm:\n  api_key: {HIDDEN}é\n",
        (
            "agents.yaml:2: vllm.api_key has a character beyond ASCII, which an HTTP header "
            "cannot carry"
        ),
    ),
    "a secret that is a number": (
        "vllm:\n  api_key: 1234567\n",
        "agents.yaml:2: vllm.api_key is a number; it should be a secret text, in quotes",
    ),
    "a secret of two lines": (
        f"nats:\n  user: bob\n  password: |\n    {HIDDEN}\n    {HIDDEN}\n",
        (
            "agents.yaml:3: nats.password has a character that cannot be printed, such as a line "
            "break; take it out"
        ),
    ),
    "a masked secret": (
        "vllm:\n  api_key: '***'\n",
        (
            "agents.yaml:2: vllm.api_key holds the *** that `agent-actors config show` prints; "
            "it should be the real one"
        ),
    ),
    "a masked address": (
        "nats:\n  url: nats://***@one\n",
        (
            "agents.yaml:2: nats.url holds the *** that `agent-actors config show` prints; "
            "it should be the real one"
        ),
    ),
    "a duplicate window longer than results live": (
        "streams:\n  responses_max_age_s: 60\n",
        (
            "agents.yaml:1: streams.duplicate_window_s is 3600, longer than messages are kept; "
            "it may be at most streams.responses_max_age_s, 60"
        ),
    ),
    "a key given twice": (
        "pools:\n  default:\n    slots: 4\n    actors: 1\n    slots: 8\n",
        "agents.yaml:5: pools.default.slots is given twice, first on line 3; keep one",
    ),
    "a section given twice": (
        "nats: {}\nray: {}\nnats: {}\n",
        "agents.yaml:3: nats is given twice, first on line 1; keep one",
    ),
    "a list for the whole file": (
        "- nats\n",
        "agents.yaml: holds no keys; it should be a map with keys such as nats, vllm, streams",
    ),
    "no YAML": (
        "nats:\n  url: 'nats://one\n",
        "agents.yaml:3:1: is not YAML: found unexpected end of stream",
    ),
    "a colon too many": (
        "nats:\n  url: nats: //one\n",
        "agents.yaml:2:12: is not YAML: mapping values are not allowed here",
    ),
    "a tab": (
        "nats:\n\turl: nats://one\n",
        (
            r"agents.yaml:2:1: is not YAML: found character '\t' that cannot start any token; "
            "indent with spaces, not with tabs"
        ),
    ),
    "a password that looks like an alias": (
        f"nats:\n  password: *{HIDDEN}\n",
        (
            "agents.yaml:2:13: is not YAML: found undefined alias; "
            "a text that begins with one of * & ! % @ ` needs quotes around it"
        ),
    ),
    "a password that looks like a tag": (
        f"nats:\n  password: !{HIDDEN}\n",
        (
            "agents.yaml:2:13: is not YAML: could not determine a constructor for the tag; "
            "a text that begins with one of * & ! % @ ` needs quotes around it"
        ),
    ),
    "two documents": (
        "nats: {}\n---\nray: {}\n",
        "agents.yaml:2:1: is not YAML: but found another document",
    ),
    "a day that does not exist": (
        "vllm: {model: 2026-99-99}\n",
        "agents.yaml: is not YAML: has a date or a number that does not exist",
    ),
    "a control character": (
        "nats:\n  url: \a\n",
        "agents.yaml:2: is not YAML: has the character #x0007, which cannot be printed",
    ),
    "an alias of what it stands in": (
        "nats: &all\n  tls: *all\n",
        "agents.yaml:2: nats.tls.tls is no key; did you mean `nats.tls`?",
    ),
    "a list without an end": (
        "[" * 1_000,
        "agents.yaml: is not YAML: is nested too deeply",
    ),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES.keys())
def test_the_error_names_file_line_key_and_remedy(text, message):
    assert refusal(text) == message
    assert HIDDEN not in message


VARIABLES = {
    "a text for a number": (
        {"AGENT_ACTORS_POOLS__DEFAULT__ACTORS": "four"},
        (
            'AGENT_ACTORS_POOLS__DEFAULT__ACTORS: pools.default.actors is "four", a text; '
            f"it should be {ACTORS}"
        ),
    ),
    "a number and a bound": (
        {
            "AGENT_ACTORS_POOLS__DEFAULT__ACTORS": "4",
            "AGENT_ACTORS_POOLS__DEFAULT__ACTORS__MAX": "8",
        },
        (
            "AGENT_ACTORS_POOLS__DEFAULT__ACTORS__MAX: sets pools.default.actors.max, "
            "but AGENT_ACTORS_POOLS__DEFAULT__ACTORS gives no map; keep one"
        ),
    ),
    "one bound of two": (
        {"AGENT_ACTORS_POOLS__DEFAULT__ACTORS__MIN": "0"},
        (
            "AGENT_ACTORS_POOLS__DEFAULT__ACTORS__MIN: pools.default.actors.max is missing; "
            "it should be a whole number of at least 1"
        ),
    ),
    "a part of an actor": (
        {"AGENT_ACTORS_POOLS__DEFAULT__ACTORS": "1.5"},
        (
            'AGENT_ACTORS_POOLS__DEFAULT__ACTORS: pools.default.actors is "1.5", a text; '
            f"it should be {ACTORS}"
        ),
    ),
    "half a map of bounds": (
        {"AGENT_ACTORS_POOLS__DEFAULT__ACTORS": '{"max": 8'},
        (
            "AGENT_ACTORS_POOLS__DEFAULT__ACTORS: pools.default.actors is not JSON (Input data was "
            f"truncated); it should be {ACTORS}"
        ),
    ),
    "a number out of range": (
        {"AGENT_ACTORS_STREAMS_REPLICAS": "7"},
        (
            "AGENT_ACTORS_STREAMS_REPLICAS: streams.replicas is 7; "
            "it should be a whole number from 1 to 5"
        ),
    ),
    "a switch that is neither": (
        {"AGENT_ACTORS_POOLS__DEFAULT__ENABLE_TOOLS": "maybe"},
        (
            'AGENT_ACTORS_POOLS__DEFAULT__ENABLE_TOOLS: pools.default.enable_tools is "maybe", '
            "a text; it should be true or false"
        ),
    ),
    "letters exchanged": (
        {"AGENT_ACTORS_NATS_ULR": HIDDEN},
        "AGENT_ACTORS_NATS_ULR: matches no key; did you mean AGENT_ACTORS_NATS_URL?",
    ),
    "single underscores": (
        {"AGENT_ACTORS_NATS_TLS_CA_FILE": "ca.pem"},
        (
            "AGENT_ACTORS_NATS_TLS_CA_FILE: matches no key; "
            "did you mean AGENT_ACTORS_NATS__TLS__CA_FILE?"
        ),
    ),
    "a slip in a pool of one's own": (
        {"AGENT_ACTORS_POOLS__BIG__SLOT": "4"},
        (
            "AGENT_ACTORS_POOLS__BIG__SLOT: matches no key; "
            "did you mean AGENT_ACTORS_POOLS__BIG__SLOTS?"
        ),
    ),
    "a variable like no other": (
        {"AGENT_ACTORS_COLOUR": "blue"},
        (
            "AGENT_ACTORS_COLOUR: matches no key; "
            "`agent-actors config show --reference` lists those that do"
        ),
    ),
    "an unknown variable that is empty": (
        {"AGENT_ACTORS_COLOUR": ""},
        (
            "AGENT_ACTORS_COLOUR: matches no key; "
            "`agent-actors config show --reference` lists those that do"
        ),
    ),
    "a port that Kubernetes did not set": (
        {"AGENT_ACTORS_NATS_PORT": "4222"},
        (
            "AGENT_ACTORS_NATS_PORT: matches no key; "
            "`agent-actors config show --reference` lists those that do"
        ),
    ),
    "one key in two spellings": (
        {"AGENT_ACTORS_NATS_URL": "nats://one", "AGENT_ACTORS_NATS__URL": "nats://two"},
        "AGENT_ACTORS_NATS__URL: sets nats.url, as AGENT_ACTORS_NATS_URL does; keep one",
    ),
    "no JSON": (
        {"AGENT_ACTORS_POOLS": "default"},
        (
            "AGENT_ACTORS_POOLS: pools is not JSON (JSON is malformed: invalid character (byte 0))"
            "; it should be a map that is not empty, from names to maps, such as "
            '{"default": {"actors": 4}}'
        ),
    ),
    "a mistake within JSON": (
        {"AGENT_ACTORS_POOLS": '{"default": {"actors": "4"}}'},
        (
            'AGENT_ACTORS_POOLS: pools.default.actors is "4", a text; '
            f"it should be {ACTORS}, without quotes"
        ),
    ),
    "a list of nothing": (
        {"AGENT_ACTORS_POOLS__DEFAULT__SUBJECTS": ","},
        (
            "AGENT_ACTORS_POOLS__DEFAULT__SUBJECTS: pools.default.subjects is empty; it should be "
            "a list that is not empty, each `agent.tasks.` and a role, `*` or `>`, such as "
            "[agent.tasks.dev]"
        ),
    ),
    "one bad item of a list": (
        {"AGENT_ACTORS_VLLM_URLS": f"http://one:8000,ftp://bob:{HIDDEN}@two"},
        (
            'AGENT_ACTORS_VLLM_URLS: vllm.urls[1] is "ftp://***@two"; '
            f"it should be {VLLM_URL}http://127.0.0.1:8000"
        ),
    ),
    "a pool without a name": (
        {"AGENT_ACTORS_POOLS____ACTORS": "4"},
        f'AGENT_ACTORS_POOLS____ACTORS: pools has a name that is ""; it should be {POOL_NAME}',
    ),
    "a second pool on every subject": (
        {
            "AGENT_ACTORS_POOLS__DEV__SUBJECTS": "agent.tasks.dev",
            "AGENT_ACTORS_POOLS__REST__ACTORS": "1",
        },
        (
            "AGENT_ACTORS_POOLS__REST__ACTORS: pools.rest.subjects is not given and so has "
            "agent.tasks.>, which overlaps agent.tasks.dev of pools.dev; "
            "a subject can have one pool only"
        ),
    ),
    "bytes that are no text": (
        {"AGENT_ACTORS_VLLM_MODEL": os.fsdecode(b"\xff")},
        "AGENT_ACTORS_VLLM_MODEL: vllm.model is not UTF-8 text",
    ),
    "a secret of two lines": (
        {"AGENT_ACTORS_VLLM_API_KEY": f"{HIDDEN}\n{HIDDEN}"},
        (
            "AGENT_ACTORS_VLLM_API_KEY: vllm.api_key has a character that cannot be printed, "
            "such as a line break; take it out"
        ),
    ),
}


@pytest.mark.parametrize(("environ", "message"), VARIABLES.values(), ids=VARIABLES.keys())
def test_the_error_names_the_variable_the_key_and_the_remedy(environ, message):
    with pytest.raises(ConfigError) as caught:
        load_config(None, environ)
    assert str(caught.value) == message


def test_all_mistakes_are_told_at_once_one_on_each_line():
    message = refusal(
        "nats: {ulr: nats://one}\n"
        "vllm: {max_retries: 11}\n"
        "pools:\n"
        "  a: {actors: none}\n"
        "  b: {subjects: [agent.tasks.b], slots: 0}\n"
        "  c: {subjects: [agent.tasks.c, agent.tasks.c]}\n",
        AGENT_ACTORS_RAY_NAMESPAC="x",
    )
    assert message.splitlines() == [
        "AGENT_ACTORS_RAY_NAMESPAC: matches no key; did you mean AGENT_ACTORS_RAY_NAMESPACE?",
        "agents.yaml:1: nats.ulr is no key; did you mean `url`?",
        "agents.yaml:2: vllm.max_retries is 11; it should be a whole number from 0 to 10",
        f'agents.yaml:4: pools.a.actors is "none", a text; it should be {ACTORS}',
        "agents.yaml:5: pools.b.slots is 0; it should be a whole number of at least 1",
        (
            "agents.yaml:6: pools.c.subjects has agent.tasks.c, which overlaps agent.tasks.c "
            "of the same pool; drop one"
        ),
    ]


def test_an_error_in_a_value_that_the_environment_overrides_is_no_error():
    Path("agents.yaml").write_text("ray: {namespace: 7}\n", encoding="utf-8")
    config = load_config("agents.yaml", {"AGENT_ACTORS_RAY_NAMESPACE": "mine"})
    assert config.ray.namespace == "mine"


def test_a_variable_below_what_is_no_section_does_not_hide_that():
    assert refusal("nats: 7\n", AGENT_ACTORS_NATS_URL="nats://one") == (
        "agents.yaml:1: nats is a number; "
        "it should be a map with keys such as url, credentials_file, nkey_seed_file"
    )


def test_a_long_value_is_cut_short():
    assert refusal(f"ray: {{address: {'x' * 500}}}\n").startswith(
        f'agents.yaml:1: ray.address is "{"x" * 60}…"; it should be'
    )


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError) as caught:
        load_config("nowhere/agents.yaml", {})
    assert str(caught.value) == "nowhere/agents.yaml: cannot be read: No such file or directory"


def test_a_file_that_the_environment_names_and_is_not_there_is_named():
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"AGENT_ACTORS_CONFIG": "agents.yaml"})
    assert str(caught.value) == "agents.yaml: cannot be read: No such file or directory"


def test_a_folder_for_a_file_is_named():
    with pytest.raises(ConfigError) as caught:
        load_config(".", {})
    assert str(caught.value) == ".: cannot be read: Is a directory"


def test_a_file_in_another_encoding_is_named_with_its_line(folder):
    (folder / "agents.yaml").write_bytes("nats:\n  user: Zoë\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_config("agents.yaml", {})
    assert str(caught.value) == "agents.yaml:2: is not UTF-8 text; save the file as UTF-8"


@pytest.mark.parametrize(
    "key",
    [key for key in reference() if key.type == "path of a file"],
    ids=lambda key: key.path,
)
def test_a_file_that_a_key_names_and_is_not_there_is_named(folder, key):
    message = refusal(**{key.variable: "absent.pem"})
    assert message == (
        f"{key.variable}: {key.path} names a file that cannot be read: "
        f"{folder}/absent.pem: No such file or directory"
    )


def test_a_home_folder_that_nobody_has_is_no_crash():
    message = refusal("nats: {credentials_file: ~no-such-user/x}\n")
    assert message.startswith(
        "agents.yaml:1: nats.credentials_file names a file that cannot be found: "
    )


names = st.sampled_from(sorted({part for key in reference() for part in key.path.split(".")}))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
trees = st.recursive(
    scalars | st.just([]) | st.just({}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | scalars, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(names, trees, max_size=4))
@example(tree={"nats": {"password": {"password": "x"}}})
def test_whatever_the_file_holds_it_loads_or_is_a_configuration_error(tree):
    Path("agents.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    for line in complaint("agents.yaml").splitlines():
        assert line.startswith("agents.yaml:")


BEFORE = ["", "x", "[", '{"password": "', '{"password": ["', "***", "\x00", "\n"]
AFTER = ["", "x", "]", '"}', '"]}', '"', "\nmore", "\x7f"]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize(
    "variable",
    [key.variable for key in reference() if key.type == "secret text"] + ["AGENT_ACTORS_NATS"],
)
def test_no_error_shows_a_secret(variable, before, after):
    assert HIDDEN not in complaint(None, **{variable: before + HIDDEN + after})


@pytest.mark.parametrize("before", ["nats://bob:", "https://", "ws:/bob:", "nats://bob:7/", "@"])
@pytest.mark.parametrize("after", ["@one", "@one:4222:1", "/@one,two", "@one@two", " @", "\n@one"])
@pytest.mark.parametrize("variable", ["AGENT_ACTORS_NATS_URL", "AGENT_ACTORS_VLLM_URLS"])
def test_no_error_shows_a_login_in_an_address(variable, before, after):
    assert HIDDEN not in complaint(None, **{variable: before + HIDDEN + after})


@pytest.mark.parametrize("address", ["nats://bob:{}", "nats://bob:{}/one", "nats://:{},one"])
def test_no_error_shows_the_password_of_an_address_that_lost_its_host(address):
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"AGENT_ACTORS_NATS_URL": address.format(HIDDEN)})
    assert HIDDEN not in str(caught.value)
