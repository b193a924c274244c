"""The image under the restrictions of a pod: Ray as KubeRay starts it, and a task end to end."""

import json
import re
from collections.abc import Iterator

import pytest
from support.pods import Pod, running_pod
from support.until import until

GCS = "127.0.0.1:6379"
# What KubeRay 1.7 makes of a head's rayStartParams (ray-operator/controllers/ray/common/pod.go).
HEAD = (
    f"ulimit -n 65536; ray start --head --block --node-ip-address=127.0.0.1 --port={GCS[-4:]} "
    "--dashboard-host=0.0.0.0 --dashboard-agent-listen-port=52365 --metrics-export-port=8080 "
    "--num-cpus=2 --memory=2000000000 --object-store-memory=100000000"
)
KILLED = 137
PROBE = "wget --tries 1 -T 2 -q -O- http://localhost:{} | grep success"
PROBES = ("52365/api/local_raylet_healthz", "8265/api/gcs_healthz")

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
SERVICE = {
    "RAY_ADDRESS": GCS,
    "AGENT_ACTORS_NATS_URL": "nats://127.0.0.1:4222",
    "AGENT_ACTORS_VLLM_URLS": "http://127.0.0.1:8000",
    "AGENT_ACTORS_POOLS__DEFAULT__ACTORS": "1",
}
REPORT_RESTRICTIONS = (
    "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; touch /x /home/ray/x || true"
)


@pytest.fixture(scope="module")
def head(image: str) -> Iterator[Pod]:
    with running_pod(image, "/bin/bash", "-c", "--", HEAD, env=TOKEN | SERVICE) as pod:
        yield pod


def succeeds(pod: Pod, line: str) -> bool:
    return pod.run("sh", "-c", f"({line}) >/dev/null 2>&1 && echo yes || true") == "yes\n"


async def test_the_pod_is_restricted(pod: Pod):
    said = pod.run("sh", "-c", f"{{ {REPORT_RESTRICTIONS}; }} 2>&1").splitlines()
    assert [line.split()[1] for line in said[:4]] == ["0" * 16, "0" * 16, "1", "2"]
    assert [line.rpartition(": ")[2] for line in said[4:]] == ["Read-only file system"] * 2


async def test_a_task_with_tools_runs_on_ray_as_kuberay_starts_it(head: Pod):
    await until(lambda: all(succeeds(head, PROBE.format(each)) for each in PROBES), timeout_s=90)
    head.start("nats-server --jetstream --store_dir /tmp/nats")
    head.start("agent-actors model-server --port 8000")
    await until(lambda: succeeds(head, "agent-actors provision"), timeout_s=60)
    head.start("agent-actors serve --no-provision")

    task = ("--task-id", "t-1", "--role", "dev", "--tools", "Return the values in order")
    head.run("agent-actors", "submit", "--wait", "--timeout", "90", *task)
    result = json.loads(head.run("agent-actors", "status", "t-1", "--json"))["result"]
    assert result["status"] == "completed"
    assert [len(result["artifacts"][kind]) for kind in ("tests", "commits")] == [2, 1]

    (pool,) = json.loads(head.run("agent-actors", "pools", "--json"))
    assert {actor["sandbox"] for actor in pool["actors"]} == {"landlock"}

    head.run("agent-actors", "drain", "--timeout", "20")
    refused = "grep -rl 'Read-only file system' /tmp/*.log /tmp/ray/session_latest/logs || true"
    assert head.run("sh", "-c", refused) == ""
    assert head.stop() != KILLED, "Ray did not end by itself in time"


async def test_no_attack_gets_out_of_the_sandbox_that_works_here(dev_image: str):
    """The tests of the sandbox, as in a pod: by the service's own user, in landlock.

    Among them is that most of the attacks succeed without it, so it is not the pod that stops them.
    """
    files = [f"tests/integration/test_{name}.py" for name in ("attacks_sandbox", "sandbox")]
    quiet = ("-q", "-p", "no:cacheprovider")
    with running_pod(dev_image, "sleep", "infinity") as pod:
        said = pod.run("python", "-m", "pytest", *quiet, "-k", "not bwrap", *files)
    (passed,) = re.findall(r"(\d+) passed", said)
    assert int(passed) > 200
