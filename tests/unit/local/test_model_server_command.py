import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent_actors.local.model_server.command import model_server
from agent_actors.local.model_server.faults import Fault


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--fault", "banana=0.1"],
            "'banana=0.1' is no FAULT=RATE; faults are 429, 500, 503, hang",
        ),
        (["--fault", "429=often"], "'429=often' is no FAULT=RATE"),
        (["--fault", "429=0.7", "--fault", "hang=0.7"], "sum up to 1.4, more than 1"),
        (["--mode", "script"], "--mode script needs a --script file"),
        (["--port", "70000"], "70000 is not in the range"),
        (["--spread", "2"], "2.0 is not in the range"),
    ],
)
def test_wrong_options_are_told_with_exit_code_2(arguments: list[str], problem: str):
    result = CliRunner().invoke(model_server, arguments)
    assert result.exit_code == 2
    assert problem in " ".join(result.output.replace("│", " ").split())


def test_a_wrong_script_is_told_with_exit_code_2(tmp_path: Path):
    file = tmp_path / "script.yaml"
    file.write_text("replies: [{fault: flood}]")
    result = CliRunner().invoke(model_server, ["--script", str(file)])
    assert result.exit_code == 2
    assert "replies[0].fault" in result.output


def test_a_script_does_not_go_with_the_simulation(tmp_path: Path):
    file = tmp_path / "script.yaml"
    file.write_text("replies: []")
    result = CliRunner().invoke(model_server, ["--mode", "sim", "--script", str(file)])
    assert (result.exit_code, "takes no --script" in result.output) == (2, True)


def test_the_help_names_every_fault():
    shown = CliRunner().invoke(model_server, ["--help"]).output
    assert all(fault in shown for fault in Fault)


def test_importing_the_command_imports_no_server():
    script = (
        "import sys, agent_actors.local.model_server.command as _;"
        "print({'aiohttp', 'jsonschema', 'prometheus_client', 'ray', 'uvloop'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
