"""The bill of materials, as scripts/sbom writes it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

import agent_actors

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "scripts/requirements/runtime.txt").read_text()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("sbom") / "agent-actors.cdx.json"
    subprocess.run([sys.executable, ROOT / "scripts/sbom.py", file], check=True)
    return file.read_text()


@pytest.fixture(scope="module")
def bom(text: str) -> dict[str, Any]:
    return json.loads(text)


def test_it_is_cyclonedx(text: str):
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_it_names_what_is_locked_with_the_hashes_of_all_files(bom: dict[str, Any]):
    found = {
        f"{one['name']}=={one['version']}": len(one["externalReferences"][0]["hashes"])
        for one in bom["components"]
    }
    entries = re.split(r"^(?=[a-z])", LOCK, flags=re.MULTILINE)[1:]
    assert found == {entry.split()[0]: entry.count("--hash=sha256:") for entry in entries}
    assert all(
        one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}" for one in bom["components"]
    )


def test_it_is_about_the_service_and_tells_who_asked_for_what(bom: dict[str, Any]):
    service = bom["metadata"]["component"]
    assert (service["name"], service["version"]) == ("agent-actors", agent_actors.__version__)
    asked = {each["ref"]: set(each.get("dependsOn", ())) for each in bom["dependencies"]}
    reached: set[str] = set()
    ahead = [service["bom-ref"]]
    while ahead:
        reached.add(one := ahead.pop())
        ahead += asked[one] - reached
    assert reached == asked.keys(), "each package is there because of another one"
    assert len(asked) == len(bom["components"]) + 1


def test_nearly_all_say_their_licence(bom: dict[str, Any]):
    silent = {canonicalize_name(one["name"]) for one in bom["components"] if "licenses" not in one}
    assert len(silent) <= 3, silent
    assert "ray" not in silent


def test_it_tells_nothing_of_the_machine_or_of_where_packages_come_from(text: str):
    assert set(re.findall(r"\w+://[^\"]*", text)) == {
        "http://cyclonedx.org/schema/bom-1.6.schema.json"
    }
    assert str(ROOT) not in text
    assert not re.search(r"\bpypi\.org|/home/|/root/|/tmp/|site-packages", text)


def test_it_is_the_same_each_time(text: str):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/sbom.py"], capture_output=True, text=True, check=True
    )
    assert done.stdout == text
