"""What is in the image, and what it lets its user do."""

import json
import re
from pathlib import Path
from subprocess import CalledProcessError

import pytest
from packaging.markers import Marker
from packaging.utils import canonicalize_name
from support.pods import Pod, podman, run_unconfined, running_pod

import agent_actors

ROOT = Path(__file__).parents[2]
ENVIRONMENT = "/opt/agent-actors"
MIB = 1024 * 1024

LIST_PACKAGES = """
import importlib.metadata, json
found = {each.name: each.version for each in importlib.metadata.distributions()}
print(json.dumps(found))
"""
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.0"}


def canonical(versions: dict[str, str]) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in versions.items()}


def locked() -> dict[str, str]:
    """Return the versions that the lock has for Python 3.11 on Linux."""
    text = (ROOT / "scripts/requirements/runtime.txt").read_text()
    lines = re.findall(r"^([a-z0-9.-]+)==([^ ;]+)(?: ; (.*?))? \\$", text, flags=re.MULTILINE)
    return canonical(
        {
            name: version
            for name, version, marker in lines
            if not marker or Marker(marker).evaluate(PYTHON)
        }
    )


def layers(image: str) -> list[tuple[str, int]]:
    """Return what made each layer of ours, and its size in bytes, the newest first."""
    history = json.loads(podman("history", "--format=json", "--no-trunc", image))
    return [(entry["CreatedBy"], entry["size"]) for entry in history if entry["size"]]


def test_the_command_line_is_on_the_path(pod: Pod):
    said = pod.run("agent-actors", "version")
    assert said.startswith(f"agent-actors {agent_actors.__version__} (Python 3.11.")
    assert "ray 2.60.0" in said


@pytest.mark.parametrize("shell", ["sh -c", "bash -c --", "bash -cl --", "bash -ci --"])
def test_every_kind_of_shell_finds_the_ray_of_the_service(pod: Pod, shell: str):
    look = "for name in ray python agent-actors; do command -v $name; done"
    found = pod.run(*shell.split(), look)
    assert found.split() == [
        f"{ENVIRONMENT}/bin/{name}" for name in ("ray", "python", "agent-actors")
    ]


def test_the_environment_holds_what_the_lock_says_and_nothing_else(pod: Pod):
    installed = canonical(json.loads(pod.run("python", "-c", LIST_PACKAGES)))
    assert installed.pop("agent-actors") == agent_actors.__version__
    assert installed == locked()


def test_what_kuberay_runs_beside_the_head_is_there_too(pod: Pod):
    module = "ray.autoscaler._private.kuberay.run_autoscaler"
    assert pod.run("python", "-c", f"import {module}; print('imported')") == "imported\n"
    assert "--cluster-name" in pod.run("ray", "kuberay-autoscaler", "--help")


def test_the_modules_are_compiled_since_they_cannot_be_later(pod: Pod):
    line = f"find {ENVIRONMENT}/lib/*/site-packages/agent_actors -name '{{}}' | wc -l"
    sources, compiled = (
        int(pod.run("sh", "-c", line.format(pattern))) for pattern in ("*.py", "*.pyc")
    )
    assert sources == compiled > 100


def test_the_configuration_of_a_mounted_file_is_shown(image: str, tmp_path: Path):
    tmp_path.chmod(0o755)
    (tmp_path / "agent-actors.yaml").write_text("pools: {coding: {actors: 3}}\n")
    mounted = "/etc/agent-actors/config"
    with running_pod(image, "sleep", "infinity", files={mounted: str(tmp_path)}) as pod:
        shown = pod.run(
            "agent-actors", "config", "show", "--config", f"{mounted}/agent-actors.yaml"
        )
    assert re.search(r"coding:\n.*?actors: 3\b", shown, re.DOTALL)


def test_the_user_is_an_ordinary_one_by_number(image: str):
    assert run_unconfined(image, "sh", "-c", "id -u; id -G").split() == ["1000", "100"]
    assert json.loads(podman("image", "inspect", image))[0]["Config"]["User"] == "1000:100"


def test_no_program_lets_it_become_another_user(image: str):
    found = "find / -xdev -type f -perm /6000 2>/dev/null || true"
    assert run_unconfined(image, "sh", "-c", found) == ""
    assert (
        run_unconfined(image, "sh", "-c", "sudo -n true 2>/dev/null || echo refused") == "refused\n"
    )


@pytest.mark.parametrize("path", [ENVIRONMENT, f"{ENVIRONMENT}/bin/ray", "/etc/profile.d"])
def test_it_cannot_change_its_own_code(image: str, path: str):
    with pytest.raises(CalledProcessError) as caught:
        run_unconfined(image, "python", "-c", f"import os; os.rename({path!r}, {path!r} + 'x')")
    assert "PermissionError" in "".join(caught.value.__notes__)


def test_what_is_developed_on_can_be_edited_and_is_what_runs(dev_image: str):
    append = "echo '__version__ = \"edited\"' >>agent_actors/__init__.py; agent-actors version"
    assert run_unconfined(dev_image, "sh", "-c", append).startswith("agent-actors edited ")
    assert run_unconfined(dev_image, "sh", "-c", "touch new; ruff --version").startswith("ruff ")


def test_the_labels_say_what_it_is_and_what_it_was_built_from(image: str):
    labels = json.loads(podman("image", "inspect", image))[0]["Config"]["Labels"]
    prefix = "org.opencontainers.image."
    said = {name.removeprefix(prefix): value for name, value in labels.items() if prefix in name}
    assert said["title"] == "agent-actors"
    assert (said["version"], said["revision"]) == ("0.0.0+check", "check")
    assert said["licenses"] == "Apache-2.0"
    assert said["base.name"].startswith("localhost/ray-stand-in")


def test_a_new_version_of_the_service_is_a_small_layer_above_the_requirements(image: str):
    (newest, size), (below, below_size) = layers(image)[:2]
    print(f"\nthe service: {size / MIB:.1f} MiB, its requirements: {below_size / MIB:.0f} MiB")  # noqa: T201 - measured
    assert "from=wheel" in newest
    assert "from=requirements" in below
    assert size < 10 * MIB
