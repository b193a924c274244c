"""What a configuration says of a server, and what becomes of it."""

import pytest

from agent_actors.adapters.mcp.configured import ServerSetup, server_setup
from agent_actors.config_tools import McpServerConfig
from agent_actors.config_types import Secret
from agent_actors.errors import ConfigError

ENVIRONMENT = {
    "PATH": "/usr/bin",
    "HOME": "/home/agent",
    "LANG": "C.UTF-8",
    "NATS_PASSWORD": "ours-and-not-theirs",
    "TOKEN": "token-of-the-shed",
    "FOLDER": "/srv/shared-folder",
    "NEWLINE": "secret-from-a-file\n",
    "SHORT": "true",
}


def made(name: str = "shed", **settings) -> ServerSetup:
    return server_setup(name, McpServerConfig(**settings), ENVIRONMENT, f"tools.mcpServers.{name}")


def refusal(name: str = "shed", **settings) -> str:
    with pytest.raises(ConfigError) as error:
        made(name, **settings)
    return str(error.value)


def test_variables_are_filled_in_wherever_they_stand():
    program = made(
        command="${FOLDER}/run",
        args=("--at=${FOLDER}", "${TOKEN}${TOKEN}"),
        env={"AUTH": Secret("key ${TOKEN}")},
    )
    assert program.argv == (
        "/srv/shared-folder/run",
        "--at=/srv/shared-folder",
        "token-of-the-shedtoken-of-the-shed",
    )
    assert program.env["AUTH"] == "key token-of-the-shed"
    address = made(url="https://x/${SHORT}", headers={"Authorization": Secret("Bearer ${TOKEN}")})
    assert address.url == "https://x/true"
    assert address.headers == {"Authorization": "Bearer token-of-the-shed"}


def test_other_dollars_are_left_alone():
    assert made(command="sh", args=("-c", "echo $HOME ${1} $$")).argv[2] == "echo $HOME ${1} $$"


def test_a_program_gets_path_home_language_and_what_is_configured():
    assert made(command="x", env={"MODE": Secret("a")}).env == {
        "PATH": "/usr/bin",
        "HOME": "/home/agent",
        "LANG": "C.UTF-8",
        "MODE": "a",
    }


def test_the_configured_environment_rules():
    assert made(command="x", env={"PATH": Secret("/opt/bin")}).env["PATH"] == "/opt/bin"


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"command": "${NOPE}"}, "command"),
        ({"command": "x", "args": ("a", "${NOPE}")}, "args[1]"),
        ({"command": "x", "env": {"KEY": Secret("${NOPE}")}}, "env.KEY"),
        ({"url": "http://x", "headers": {"Authorization": Secret("${NOPE}")}}, "headers.Authori"),
        ({"url": "http://${NOPE}"}, "url"),
    ],
)
def test_a_variable_that_is_not_set_is_an_error_with_its_place(settings: dict, path: str):
    message = refusal(**settings)
    assert message.startswith(f"tools.mcpServers.shed.{path}")
    assert message.endswith("the environment variable NOPE is not set")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs either a command or a url"),
        ({"command": "x", "url": "http://x"}, "not both"),
        ({"url": "http://x", "args": ("a",)}, "belong to a command"),
        ({"command": "x", "headers": {"A": Secret("b")}}, "belong to a url"),
        ({"url": "ftp://x"}, "must be an http:// or https:// address"),
        ({"url": "http://x", "headers": {"A": Secret("${NEWLINE}")}}, "headers.A: has a line"),
        ({"command": "x\0y"}, "zero byte"),
        ({"command": "x", "env": {"A=B": Secret("c")}}, "no variable can have such a name"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict, message: str):
    assert message in refusal(**settings)


@pytest.mark.parametrize("name", ["files", "git", "tests", "http", "default"])
def test_a_server_cannot_be_called_as_a_group_of_tools(name: str):
    assert "built-in tools" in refusal(name, command="x")


def test_secrets_are_masked_and_paths_and_short_words_are_not():
    setup = made(
        command="x",
        args=("${FOLDER}",),
        env={
            "API_KEY": Secret("inline-api-key"),
            "AUTH": Secret("${TOKEN}"),
            "MODE": Secret("${SHORT}"),
            "LEVEL": Secret("informative"),
            "DATABASE_URI": Secret("postgres://agent:p%40ssw0rds@db/main"),
        },
    )
    text = (
        "inline-api-key token-of-the-shed p%40ssw0rds p@ssw0rds /srv/shared-folder true informative"
    )
    assert setup.masked(text) == "*** *** *** *** /srv/shared-folder true informative"


def test_a_secret_within_another_does_not_leave_its_rest():
    env = {"A_TOKEN": Secret("abcdefgh"), "B_TOKEN": Secret("abcdefgh-and-more")}
    assert made(command="x", env=env).masked("abcdefgh-and-more") == "***"


def test_it_prints_without_secrets():
    assert "token" not in repr(made(command="x", env={"AUTH": Secret("${TOKEN}")}))
