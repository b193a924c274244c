"""The README says what is true: its configuration table and its examples are checked here."""

import ast
import re
from pathlib import Path

from agent_actors.config_file import load_config, reference
from agent_actors.tools.permissions import FULL, OTHER_ROLES, ROLE_TOOLS
from agent_actors.workbench import TOOLS

README = (Path(__file__).parents[2] / "README.md").read_text()


def configuration_table() -> str:
    rows = [
        f"| `{key.path}` | {key.default if ' ' in key.default else f'`{key.default}`'} "
        f"| {key.meaning} |"
        for key in reference()
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def test_the_configuration_table_is_that_of_the_structs():
    assert configuration_table() in README, f"the table should be\n{configuration_table()}"


def test_the_configuration_example_is_valid(tmp_path: Path):
    (example,) = re.findall(r"```yaml\n(nats:.*?)```", README, re.DOTALL)
    for name in ("nats.creds", "vllm-key"):
        (tmp_path / name).write_text("secret")
    file = tmp_path / "agent-actors.yaml"
    file.write_text(example.replace("/etc/agent-actors", str(tmp_path)))
    config = load_config(str(file), {})
    assert list(config.pools) == ["coding", "everything-else"]


def test_every_example_of_pools_is_valid(tmp_path: Path):
    examples = re.findall(r"```yaml\n(pools:.*?)```", README, re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        file = tmp_path / "agent-actors.yaml"
        file.write_text(example)
        load_config(str(file), {})


def test_the_readme_names_every_tool():
    tools = re.findall(r"^\| (?:files|git|tests|http) \| (.*?) \|$", README, re.MULTILINE)
    named = {name for row in tools for name in re.findall(r"[a-z]+(?:_[a-z]+)*", row)}
    assert {tool.name for tool in TOOLS} <= named


def test_the_readme_says_what_each_role_has():
    rows = re.findall(r"^\| ([A-Z]+|others) \| (.*?) \| (yes|no) \|$", README, re.MULTILINE)
    said = {role: (tuple(re.findall(r"\w+", names)), full) for role, names, full in rows}
    assert said.pop("others") == (OTHER_ROLES.names, "no")
    assert said == {
        str(role): (tools.names, "yes" if tools.mode == FULL else "no")
        for role, tools in ROLE_TOOLS.items()
    }


def test_the_python_examples_are_python_and_use_public_names():
    import agent_actors

    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) >= 2
    imports = [
        node
        for example in examples
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.ImportFrom) and node.module == "agent_actors"
    ]
    assert imports
    for node in imports:
        for alias in node.names:
            assert alias.name in agent_actors.__all__
