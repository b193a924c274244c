"""What deploy/Dockerfile must keep to; scripts/image-check builds it, and runs what it makes."""

import re
from pathlib import Path

import pytest
from support.dockerfile import Stage, read_dockerfile

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy/Dockerfile").read_text()
DOCKERFILE = read_dockerfile(TEXT)
IMAGES = ("service", "dev")  # those that are built to be run
ANNOTATIONS = ("title", "description", "version", "revision", "source", "licenses", "base.name")


def locked(lock: str) -> dict[str, str]:
    text = (ROOT / f"scripts/requirements/{lock}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", text, flags=re.MULTILINE))


def pip_commands(stage: Stage) -> list[str]:
    """Return what pip is told in the stage, beginning with its command."""
    commands = [part for run in stage.all("RUN") for part in run.split("&&") if " pip " in part]
    return [re.sub(r".* pip (--python \S+ )?", "", command).strip() for command in commands]


def test_every_stage_is_built_upon_the_one_base_that_a_build_argument_names():
    assert DOCKERFILE.arguments.keys() == {"RAY_IMAGE"}
    bases = {stage.base for stage in DOCKERFILE.stages.values()} - DOCKERFILE.stages.keys()
    assert bases == {"${RAY_IMAGE}"}


def test_the_base_is_the_ray_that_is_locked():
    ray = locked("runtime")["ray"]
    assert DOCKERFILE.arguments["RAY_IMAGE"] == f"rayproject/ray:{ray}-py311"


def test_the_service_is_what_is_built_when_nothing_else_is_asked_for():
    assert [*DOCKERFILE.stages][-1] == "service"


@pytest.mark.parametrize("name", IMAGES)
def test_the_last_user_is_an_ordinary_one_by_number(name: str):
    users = [user for stage in DOCKERFILE.family(name) for user in stage.all("USER")]
    assert users[-1] == "1000:100"


@pytest.mark.parametrize("name", IMAGES)
def test_the_environment_of_the_service_comes_first_on_the_path(name: str):
    (path,) = [env for env in DOCKERFILE.stages[name].all("ENV") if env.startswith("PATH=")]
    assert path == "PATH=/opt/agent-actors/bin:$PATH"


def test_nothing_is_fetched_but_packages():
    instructions = [each for stage in DOCKERFILE.stages.values() for each in stage.instructions]
    assert "ADD" not in {each.word for each in instructions}
    runs = [each.rest for each in instructions if each.word == "RUN"]
    assert [run for run in runs if re.search(r"\b(curl|wget|apt-get|apt|git clone)\b", run)] == []


def test_no_file_of_the_image_names_an_address_or_the_latest_of_anything():
    names = ("deploy/Dockerfile", ".dockerignore", "scripts/image-check")
    texts = {name: (ROOT / name).read_text() for name in names}
    texts |= {lock: (ROOT / f"scripts/requirements/{lock}.txt").read_text() for lock in LOCKS}
    assert [name for name, text in texts.items() if re.search(r"://|:latest\b", text)] == []


LOCKS = ("runtime", "dev", "build")


@pytest.mark.parametrize("stage", DOCKERFILE.stages.values(), ids=lambda stage: stage.name)
def test_pip_takes_what_a_lock_has_by_its_hash_or_what_is_there(stage: Stage):
    for command in pip_commands(stage):
        if command.startswith("check"):
            continue
        from_lock = re.search(r"--require-hashes -r (\w+)\.txt", command)
        from_here = "--no-index" in command or command.endswith("--wheel-dir wheels .")
        assert bool(from_lock) != from_here, command
        assert "--no-cache-dir" in command
        if from_lock:
            assert f"scripts/requirements/{from_lock[1]}.txt ./" in stage.all("COPY")
        if command.startswith("wheel"):
            assert "--no-build-isolation" in command, "its build would fetch what nobody locked"


def test_what_builds_is_not_in_what_runs():
    assert [stage.name for stage in DOCKERFILE.family("service")] == ["base", "service"]
    assert all(not stage.all("COPY") for stage in DOCKERFILE.family("service"))
    mounts = re.findall(r"from=(\S+?),", " ".join(DOCKERFILE.stages["service"].all("RUN")))
    assert mounts == ["requirements", "wheel"], "what changes most comes last"


def test_the_labels_are_those_of_oci_and_follow_the_layers():
    service = DOCKERFILE.stages["service"]
    (labels,) = service.all("LABEL")
    names = re.findall(r"org\.opencontainers\.image\.([\w.]+)=", labels)
    assert sorted(names) == sorted(ANNOTATIONS)
    arguments = {each.partition("=")[0] for each in service.all("ARG")}
    assert arguments == set(re.findall(r"\$\{(\w+)\}", labels))
    words = [each.word for each in service.instructions]
    assert words.index("ARG") > max(i for i, word in enumerate(words) if word == "RUN")


def test_the_tools_that_build_are_those_that_are_developed_with():
    build, dev = locked("build"), locked("dev")
    assert {name for name, version in build.items() if dev.get(name, version) != version} == set()
    assert {"hatchling", "editables", "setuptools"} <= build.keys()


def test_only_what_is_named_gets_into_the_build():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert rules[-2:] == ["**/__pycache__", "**/.*"]
    copied = {
        source
        for stage in DOCKERFILE.stages.values()
        for copy in stage.all("COPY")
        for source in copy.split()[:-1]
        if not source.startswith(("-", "."))
    }
    assert {source.split("/")[0] for source in copied} <= {
        rule.removeprefix("!") for rule in rules if rule.startswith("!")
    }
