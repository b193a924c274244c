"""A deliberately wrong edit of the manifests is found, by the check that is there for it."""

import inspect
import re
from pathlib import Path

import pytest
import support.manifests
from support.manifests import findings
from support.manifests.editing import Gone
from support.manifests.mistakes import BY_SCHEMAS_OF_KUBERAY, DEV, MISTAKES, ROCKSDB, policy
from support.manifests.reading import DEPLOY, manifests_in, render, render_prod_with
from support.manifests.schemas import crd_folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str):
    if name in BY_SCHEMAS_OF_KUBERAY and crd_folder() is None:
        pytest.skip("no schemas of custom resources: AGENT_ACTORS_CRD_DIR names no folder of them")
    mistake = MISTAKES[name]
    manifests = mistake.of(render(DEPLOY / mistake.folder))
    gates = {"GCSFaultToleranceEmbeddedStorage"} if mistake.folder == ROCKSDB else ()
    found = findings(manifests, gates=gates, by_digest=mistake.folder != DEV)
    said = [finding.what for finding in found if finding.check == mistake.check]
    assert any(mistake.words in what for what in said), list(map(str, found))


def test_every_check_has_a_mistake_to_find():
    folder = Path(inspect.getfile(support.manifests)).parent
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    checks = set(re.findall(r'Finding\("([a-z-]+)"', source))
    assert {mistake.check for mistake in MISTAKES.values()} == checks


def test_a_monitor_that_may_not_collect_is_found(tmp_path: Path):
    manifests = render_prod_with("pod-monitor", tmp_path)
    found = findings(policy("monitoring", "spec/ingress/0/ports/0", Gone()).of(manifests))
    assert {(each.check, each.what) for each in found} == {("ways", "nobody may collect from 8080")}


@pytest.mark.parametrize("kind", ["Ingress", "HTTPRoute"])
def test_a_way_in_from_outside_is_found(kind: str):
    (manifest,) = manifests_in("{apiVersion: x/v1, metadata: {name: x}, spec: {}}")
    (finding,) = findings([manifest | {"kind": kind}])
    assert (finding.check, finding.where) == ("isolation", f"{kind}/x")


def test_a_secret_in_a_manifest_is_found():
    secret = "{apiVersion: v1, kind: Secret, metadata: {name: x}, stringData: {a: b}}"
    (finding,) = findings(manifests_in(secret))
    assert (finding.check, finding.where) == ("secrets", "Secret/x")
