"""A real vLLM of our own: a child process on loopback that serves the model of build_model.py."""

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from support.ready import free_port

# The simulated server cannot be talked out of its first name; so the real one has two as well.
MODEL = "tiny"
NAMES = ("real-model", MODEL)
MODEL_LENGTH_TOKENS = 4096
API_KEY = "open-sesame"
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 10.0

OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
# One thread without pinning: with more, a tiny model on few cores stalls.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@contextmanager
def running_vllm(python: str, folder: Path) -> Iterator[str]:
    """Build the model in `folder`, serve it, and yield the URL once a completion was answered.

    `python` is the interpreter of vLLM's environment. The server is gone on the way out, after an
    error, Ctrl-C or SIGTERM too; if we are killed, another process sees to it.
    """
    environment = os.environ | OFFLINE | ONE_THREAD | {"VLLM_API_KEY": API_KEY}
    model = folder / "model"
    builder = Path(__file__).with_name("build_model.py")
    subprocess.run([python, builder, model], env=environment, check=True)
    port = free_port()
    log = folder / "vllm.log"
    with (
        sigterm_as_interrupt(),
        log.open("wb") as output,
        subprocess.Popen(
            [python, *serve(model, port)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as server,
        killed_with_us(server),
    ):
        try:
            wait_for_an_answer(server, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(server)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Have SIGTERM unwind the stack as Ctrl-C does, so that what was started is stopped."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def killed_with_us(server: subprocess.Popen[bytes]) -> Iterator[None]:
    """Have the server's group of processes killed when we end, however that comes.

    vLLM's engine survives the end of its server while both are starting. The watcher wakes up when
    our end of its pipe closes, which nothing can keep the kernel from doing.
    """
    with subprocess.Popen(
        ["sh", "-c", 'read -r _; kill -KILL "-$1" 2>/dev/null', "watcher", str(server.pid)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ):
        yield


def serve(model: Path, port: int) -> Sequence[str]:
    """Return the arguments of `python` that serve `model`."""
    return [
        *["-m", "vllm.entrypoints.cli.main", "serve", str(model)],
        *["--host", "127.0.0.1", "--port", str(port), "--served-model-name", *NAMES],
        *["--dtype", "float32", "--max-model-len", str(MODEL_LENGTH_TOKENS)],
        *["--enforce-eager", "--max-num-seqs", "64", "--kv-cache-memory-bytes", "128M"],
        *["--enable-auto-tool-choice", "--tool-call-parser", "hermes"],
        *["--tool-strict-level", "parameter"],
        "--structured-outputs-config",
        json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
    ]


def wait_for_an_answer(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return once a completion of one token came back: `/health` says 200 before that."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(port):
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=0.5)
            raise RuntimeError(f"vLLM ended with {server.returncode} at its start:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"vLLM gave no answer in {START_TIMEOUT_S:.0f} s:\n{tail(log)}")


def answers(port: int) -> bool:
    """Tell whether the server completes a chat by one token."""
    chat = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_TIMEOUT_S)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(chat), headers)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def tail(log: Path) -> str:
    """Return the last lines of vLLM's log, for an error to show."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and leave what is still there after a while to be killed."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(timeout=STOP_TIMEOUT_S)
