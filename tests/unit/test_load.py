"""What a page of metrics says of a server's load."""

import pytest

from agent_actors.adapters.vllm.limit import Reading
from agent_actors.adapters.vllm.load import parse_load

# As vLLM 0.32 writes it, with one engine.
PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } b"} 64.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a } b"} 7.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="a } b",reason="capacity"} 7.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="a } b"} 0.25
"""


def test_the_load_is_read_from_vllms_page():
    assert parse_load(PAGE) == Reading(running=64, waiting=7, cache_usage=0.25)


def test_several_engines_add_up_and_the_fullest_cache_counts():
    second = PAGE.replace(b'engine="0"', b'engine="1"').replace(b" 0.25", b" 0.75")
    assert parse_load(PAGE + second) == Reading(running=128, waiting=14, cache_usage=0.75)


def test_a_page_without_labels_or_a_last_line_end_is_read_too():
    bare = b"vllm:num_requests_waiting 1\nvllm:num_requests_running 3e1"
    assert parse_load(bare) == Reading(running=30, waiting=1)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\xff\x00",
        b"<html>vllm:num_requests_running</html>",
        b"process_cpu_seconds_total 17.2\n",
        b'vllm:num_requests_running{engine="0"} 3.0\n',
        b"vllm:num_requests_running x\nvllm:num_requests_waiting\n",
        b"vllm:num_requests_running \nvllm:num_requests_waiting{}\n",
    ],
)
def test_another_page_says_nothing(page: bytes):
    assert parse_load(page) is None
