"""What every tracked file owes to whoever clones the repository."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

TOP_LEVEL = {
    "agent_actors",
    "deploy",
    "scripts",
    "tests",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "pyproject.toml",
}

# Where packages, images and models come from is for each machine's own settings to say. The
# service's own image is where it would be published.
REGISTRY = re.compile(
    r"""
    \b(?: pypi\.org | pythonhosted\.org | registry\.npmjs\.org | deb\.debian\.org
        | docker\.io | quay\.io | ghcr\.io(?!/agent-actors/) | gcr\.io | nvcr\.io
        | huggingface\.co )\b
    | --(?:extra-)?index-url | --find-links | /simple/
    """,
    re.VERBOSE,
)

# Folders that somebody's machine has and others have not.
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:root|work)/[\w.]")

LOCKS = ("runtime", "dev", "bench")

PROVIDERS = packages_distributions()

# What runs in .venv-bench, with packages that .venv has not.
BENCH = ROOT / "tests/bench"

# Run by the Python of a real vLLM, with that one's packages.
FOREIGN = ROOT / "tests/conformance/build_model.py"


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def matches(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in tracked_files():
        if path == Path(__file__) or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    return found


def test_nothing_stray_lies_at_the_top():
    names = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    assert {name for name in names - TOP_LEVEL if not name.startswith(".")} == set()


def test_no_file_names_a_package_registry():
    assert matches(REGISTRY) == []


def test_no_file_names_a_path_of_one_machine():
    assert matches(MACHINE_PATH) == []


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("cd /work/checkout", True),
        ('path = "/root/.cache"', True),
        ("kubectl -n work get pods", False),
        ("scripts/root/x", False),
        ("https://example.com/work/page", False),
    ],
)
def test_paths_of_one_machine_are_told_from_others(line: str, *, is_found: bool):
    assert bool(MACHINE_PATH.search(line)) == is_found


def test_every_script_can_be_run():
    scripts = [path for path in tracked_files() if path.parent in {ROOT / "scripts", ROOT / ".ci"}]
    not_executable = {path.name for path in scripts if not path.stat().st_mode & 0o111}
    # Which others source or run, and which the README shows.
    assert not_executable == {"parts.sh", "sbom.py", "scale-trace.png"}


@pytest.mark.parametrize(
    ("folder", "lock"), [("agent_actors", "runtime"), ("tests", "dev"), ("tests/bench", "bench")]
)
def test_only_declared_packages_are_imported(folder: str, lock: str):
    packages = {"agent_actors", "bench", "chaos", "scale_trace", "support"}
    own = packages | {path.stem for path in ROOT.glob("tests/*/*.py")}
    declared = {need.name for need in declared_packages(lock)}
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in tracked_files()
        if path.suffix == ".py" and path.is_relative_to(ROOT / folder) and path != FOREIGN
        if path.is_relative_to(BENCH) == (lock == "bench")
        for module in imported_modules(path) - sys.stdlib_module_names - own
        if declared.isdisjoint(providers(module))
    }
    assert undeclared == set()


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_answers_to_pyproject(lock: str):
    locked = locked_versions(lock)
    unmet = [
        str(need)
        for need in declared_packages(lock)
        if need.name not in locked or not need.specifier.contains(locked[need.name])
    ]
    assert unmet == [], "run scripts/lock"


@pytest.mark.parametrize("lock", LOCKS[1:])
def test_all_locks_agree(lock: str):
    assert locked_versions("runtime").items() <= locked_versions(lock).items()


@pytest.mark.parametrize("lock", [*LOCKS, "build"])
def test_every_locked_package_has_hashes(lock: str):
    text = (ROOT / f"scripts/requirements/{lock}.txt").read_text()
    entries = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert entries
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_no_locked_package_makes_the_import_of_ray_slow(lock: str):
    # Ray imports jsonschema, which imports this if it is there: a second, in each process.
    assert "rfc3987-syntax" not in locked_versions(lock)


def imported_modules(path: Path) -> set[str]:
    """Return the first parts of the names that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def providers(module: str) -> set[str]:
    """Return the packages that may bring a module; one that is not installed has its name."""
    return {canonicalize_name(name) for name in PROVIDERS.get(module, (module,))}


def declared_packages(lock: str) -> list[Requirement]:
    """Return what pyproject.toml asks for: to run the package with its extras, or more."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    if lock != "runtime":
        lines += pyproject["dependency-groups"][lock] + pyproject["build-system"]["requires"]
    return [Requirement(line) for line in lines]


def locked_versions(lock: str) -> dict[str, str]:
    text = (ROOT / f"scripts/requirements/{lock}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", text, flags=re.MULTILINE))
