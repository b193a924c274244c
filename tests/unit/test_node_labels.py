"""Labels that a node must have: what the configuration takes, Ray takes and means the same."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray._private.label_utils import validate_label_selector

from agent_actors.config import Resources
from agent_actors.config_keys import facts_of
from agent_actors.config_types import LabelName, LabelValue


def texts(annotation):
    return st.from_regex(facts_of(annotation).type.pattern, alphabet=st.characters(codec="utf-8"))


def takes(labels):
    try:
        msgspec.convert({"labels": labels}, Resources)
    except msgspec.ValidationError:
        return False
    return True


@given(name=texts(LabelName), value=texts(LabelValue))
def test_ray_takes_every_label_that_the_configuration_takes(name, value):
    assert validate_label_selector({name: value}) is None


@pytest.mark.parametrize("name", ["zone", "ray.io/accelerator-type", "a", "A_b.c-9", "x" * 63])
@pytest.mark.parametrize(
    "value", ["", "H100", "!H100", "in(H100,A100)", "!in(H100)", "in", "x" * 63]
)
def test_what_ray_documents_is_taken(name, value):
    assert validate_label_selector({name: value}) is None
    assert takes({name: value})


LONG_NAMES = ["x" * 64, f"{'x' * 64}/zone", f"{'x.' * 127}com/zone"]


@pytest.mark.parametrize(
    "name",
    ["", "-zone", "zone-", "my zone", "a@b", "ray.io/", "a/b/c", "-a/b", "z\n", *LONG_NAMES],
)
def test_a_name_that_ray_refuses_is_refused(name):
    assert validate_label_selector({name: "x"})
    assert not takes({name: "x"})


@pytest.mark.parametrize(
    "value", ["-a", "a-", "a b", "!!a", "in()", "in(a,", "in(a,b", "!in(!a)", "x" * 64, "a\n"]
)
def test_a_value_that_ray_refuses_is_refused(value):
    assert validate_label_selector({"zone": value})
    assert not takes({"zone": value})


@pytest.mark.parametrize("value", ["in(a, b)", "(a)", "(a,b)"])
def test_a_value_that_ray_takes_but_finds_on_no_node_is_refused(value):
    assert validate_label_selector({"zone": value}) is None
    assert not takes({"zone": value})
