"""Print the bill of materials of scripts/requirements/runtime.txt; see scripts/sbom.

What is written depends on the lock and the version alone: no time, no path, no address of a
registry. A package is named by its purl, and the hashes are those of all its files, of which one
gets installed.
"""

import re
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

import agent_actors

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "scripts/requirements/runtime.txt"
ROOT_NAME = "-r runtime.in"  # as the lock has what pyproject.toml itself asks for
LONGEST_NAME = 40  # of a licence: some packages have its whole text there


@dataclass(frozen=True)
class Locked:
    """One package of the lock; `parents` are those that asked for it, by name, or `ROOT_NAME`."""

    name: str
    version: str
    hashes: list[str]
    parents: list[str]


def main() -> None:
    """Write it to the file that is named, or to standard output."""
    text = bill_of_materials()
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"scripts/sbom: not valid: {problem}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)
    else:
        print(text, end="")


def bill_of_materials() -> str:
    """Return it as JSON."""
    packages = read_lock(LOCK.read_text())
    components = {each.name: component(each) for each in packages}
    bom = Bom(components=components.values())
    bom.serial_number = bom.metadata.timestamp = None  # they would differ each time
    bom.metadata.component = service()
    for name, one in {ROOT_NAME: bom.metadata.component, **components}.items():
        needed = [components[each.name] for each in packages if name in each.parents]
        bom.register_dependency(one, needed)
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def read_lock(text: str) -> list[Locked]:
    """Return the packages of a lock as pip-compile writes it, hashes and all."""
    found = []
    for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]:
        name, version = entry.split()[0].split("==")
        hashes = re.findall(r"sha256:(\w+)", entry)
        lines = entry.partition("# via")[2].splitlines()
        parents = [line.strip(" #") for line in lines if line.strip(" #")]
        found.append(Locked(name, version, hashes, parents))
    return found


def service() -> Component:
    """Return what all of it is for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return Component(
        type=ComponentType.APPLICATION,
        name=project["name"],
        version=agent_actors.__version__,
        description=project["description"],
        licenses=[LicenseFactory().make_from_string(project["license"])],
        bom_ref=project["name"],
    )


def component(package: Locked) -> Component:
    """Return a package as the bill has it."""
    purl = PackageURL("pypi", None, package.name, package.version)
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(str(purl)),
        comment="one of these files, by the machine's kind",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in package.hashes],
    )
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=str(purl),
        licenses=licence(package),
        external_references=[files],
    )


def licence(package: Locked) -> list[License]:
    """Return what the package itself says: as an expression, by classifiers, or in a few words."""
    try:
        said = metadata(package.name)
    except PackageNotFoundError:  # it is for other machines
        return []
    if expression := said.get("License-Expression"):
        return [LicenseFactory().make_with_expression(expression)]
    classifiers = [each for each in said.get_all("Classifier", []) if each.startswith("License ::")]
    names = {each.rpartition(" :: ")[2] for each in classifiers} - {"OSI Approved"}
    words = said.get("License", "")
    if not names and words and len(words) < LONGEST_NAME:
        names = {words}
    return [LicenseFactory().make_from_string(name) for name in sorted(names)]


if __name__ == "__main__":
    main()
