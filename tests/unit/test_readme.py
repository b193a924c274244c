"""The README says what is true: its configuration table and its examples are checked here."""

import ast
import re
from pathlib import Path

from agent_actors.config_file import load_config, reference

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
