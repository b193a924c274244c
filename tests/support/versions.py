"""Other versions of the package: copies of this one, in folders of their own."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

import agent_actors

HOME = Path(agent_actors.__file__).parent
# What a newer version may have added to each of them; a default that is made is never left out.
ADDED = '    added_later: str = "a newer word"\n'
ADDED_AND_SAID = '    added_later: str = msgspec.field(default_factory=lambda: "a newer word")\n'
WORDS = {
    "contract.py": ["AgentTask", "AgentResult", "TaskEvent", "PoolStatus", "ServiceStatus"],
    "ledger.py": ["TaskRecord", "Source"],
    "ports.py": ["ActorReport", "Delivery"],
}


def copy_of_package(folder: Path, version: str, *, says_more: bool = False) -> Path:
    """Put a version of the package into a folder, and return the folder.

    One that `says_more` has a field more in what versions say to each other.
    """
    package = folder / HOME.name
    shutil.copytree(HOME, package, ignore=shutil.ignore_patterns("__pycache__"))
    _patch(package / "__init__.py", r'(?<=^__version__ = ")[^"]*', version)
    for file, names in WORDS.items() if says_more else ():
        _patch(package / file, r"^(?=from msgspec import)", "import msgspec\n")
        for name in names:
            _add_word(package / file, name)
    return folder


def as_ray_job(folder: Path) -> Mapping[str, str]:
    """Return the environment of a process that runs the version in this folder as a Ray job.

    It is what `ray job submit --runtime-env-json` gives to the job's command.
    """
    job = {"runtime_env": {"env_vars": {"PYTHONPATH": str(folder)}}}
    return {
        "PYTHONPATH": str(folder),
        "RAY_JOB_CONFIG_JSON_ENV_VAR": msgspec.json.encode(job).decode(),
    }


def _add_word(file: Path, name: str) -> None:
    head = re.search(rf"^class {name}\(.*\):$", file.read_text(), re.MULTILINE)
    assert head, f"{file.name} has no {name}"
    added = ADDED_AND_SAID if "omit_defaults" in head[0] else ADDED
    _patch(file, rf'({re.escape(head[0])}\n    """.*?"""\n\n)', rf"\1{added}")


def _patch(file: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(
        pattern, replacement, file.read_text(), count=1, flags=re.MULTILINE | re.DOTALL
    )
    assert count == 1, f"{file.name} has no {pattern}"
    file.write_text(text)
