"""The command `agent-actors model-server`: options to settings, and one line when it is ready."""

import os
from pathlib import Path
from typing import TypedDict, Unpack
from urllib.parse import urlsplit

import click

from agent_actors.config_types import Secret
from agent_actors.errors import ConfigError
from agent_actors.local.model_server.faults import Fault, Faults
from agent_actors.local.model_server.script import load_script
from agent_actors.local.model_server.settings import (
    SIMULATED_MODEL,
    Behaviour,
    Latency,
    Limits,
    ModelServerSettings,
)

API_KEY_VARIABLE = "AGENT_ACTORS_VLLM_API_KEY"
PORT_OF_VLLM = 8000

_READABLE_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_MS = click.FloatRange(min=0)
_COUNT = click.IntRange(min=1)


class _FaultRate(click.ParamType[tuple[Fault, float]]):
    """`429=0.1`: a fault and the share of requests that meet it."""

    name = "fault=rate"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Fault, float]:
        name, _, rate = value.partition("=")
        try:
            return Fault(name), float(rate)
        except ValueError:
            known = ", ".join(Fault)
            self.fail(f"{value!r} is no FAULT=RATE; faults are {known}", param, ctx)


class Options(TypedDict):
    """What the command line gives."""

    host: str
    port: int
    port_file: Path | None
    mode: str | None
    script: Path | None
    model: tuple[str, ...]
    api_key_file: Path | None
    max_model_len: int
    start_up_ms: float
    first_token_ms: float
    between_tokens_ms: float
    prefill_ms_per_token: float
    spread: float
    slowdown: float
    max_num_seqs: int
    max_num_queued_reqs: int | None
    kv_cache_tokens: int
    fault: tuple[tuple[Fault, float], ...]
    retry_after_s: int | None
    seed: int
    keep_requests: int


@click.command("model-server")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT_OF_VLLM,
    show_default=True,
    help="Port to listen on; 0: the system chooses.",
)
@click.option(
    "--port-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the port there when ready.",
)
@click.option(
    "--mode",
    type=click.Choice(["sim", "script"]),
    help="What answers: the simulation, or --script. Follows from --script.",
)
@click.option("--script", type=_READABLE_FILE, help="YAML file with replies and faults.")
@click.option(
    "--model",
    metavar="NAME",
    multiple=True,
    help=f"A further model name to answer to, besides {SIMULATED_MODEL}.",
)
@click.option(
    "--api-key-file",
    type=_READABLE_FILE,
    help=f"File with the key that clients must send; else ${API_KEY_VARIABLE}.",
)
@click.option("--max-model-len", type=_COUNT, default=32_768, show_default=True)
@click.option("--start-up-ms", type=_MS, default=0.0, help="Time before it listens.")
@click.option("--first-token-ms", type=_MS, default=0.0, help="Time to the first token.")
@click.option("--between-tokens-ms", type=_MS, default=0.0, help="Time from token to token.")
@click.option("--prefill-ms-per-token", type=_MS, default=0.0, help="Time a token of the prompt.")
@click.option(
    "--spread",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Share by which each of these times varies to both sides.",
)
@click.option(
    "--slowdown",
    type=click.FloatRange(min=1),
    default=1.0,
    help="How many times longer they are with every place taken.",
)
@click.option(
    "--max-num-seqs", type=_COUNT, default=256, show_default=True, help="Requests that run at once."
)
@click.option(
    "--max-num-queued-reqs",
    type=click.IntRange(min=0),
    help="Running and waiting requests together; beyond it 503. Default: no limit.",
)
@click.option(
    "--kv-cache-tokens",
    type=_COUNT,
    default=262_144,
    show_default=True,
    help="What vllm:kv_cache_usage_perc is a share of.",
)
@click.option(
    "--fault",
    type=_FaultRate(),
    multiple=True,
    help=f"Share of requests that meet a fault, such as 429=0.1. Faults: {', '.join(Fault)}.",
)
@click.option(
    "--retry-after-s", type=click.IntRange(min=0), help="Retry-After of the faults 429 and 503."
)
@click.option("--seed", type=int, default=0, help="Seed of latencies and faults.")
@click.option(
    "--keep-requests",
    type=_COUNT,
    default=10_000,
    show_default=True,
    help="Requests that /simulated/requests remembers.",
)
def model_server(**options: Unpack[Options]) -> None:
    """Run a model server that answers as vLLM does, with a simulation in place of a model.

    SIGTERM ends it: running requests are answered with finish_reason "abort", as by vLLM.
    """
    # Slow to import, and the command line imports this module for every command.
    import uvloop  # noqa: PLC0415

    from agent_actors.local.model_server.serving import serve_until_signalled  # noqa: PLC0415
    from agent_actors.observe.logs import configure_logs  # noqa: PLC0415

    def ready(url: str) -> None:
        if (port_file := options["port_file"]) is not None:
            _write_at_once(port_file, str(urlsplit(url).port))
        click.echo(f"Simulated model server ready at {url}, model {SIMULATED_MODEL} (no real one).")

    try:
        configure_logs("model-server")
        settings = _settings(options)
        uvloop.run(
            serve_until_signalled(settings, host=options["host"], port=options["port"], ready=ready)
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _settings(options: Options) -> ModelServerSettings:
    script = options["script"]
    if options["mode"] == "script" and script is None:
        raise click.UsageError("--mode script needs a --script file")
    if options["mode"] == "sim" and script is not None:
        raise click.UsageError("--mode sim takes no --script")
    return ModelServerSettings(
        aliases=options["model"],
        max_model_len=options["max_model_len"],
        api_key=_api_key(options["api_key_file"]),
        behaviour=Behaviour(
            latency=Latency(
                first_token_ms=options["first_token_ms"],
                between_tokens_ms=options["between_tokens_ms"],
                prefill_ms_per_token=options["prefill_ms_per_token"],
                spread=options["spread"],
                slowdown=options["slowdown"],
            ),
            faults=_faults(options),
        ),
        limits=Limits(
            max_num_seqs=options["max_num_seqs"],
            max_num_queued_reqs=options["max_num_queued_reqs"],
            kv_cache_tokens=options["kv_cache_tokens"],
        ),
        start_up_ms=options["start_up_ms"],
        seed=options["seed"],
        script=load_script(script) if script else None,
        keep_requests=options["keep_requests"],
    )


def _faults(options: Options) -> Faults:
    try:
        return Faults(rates=dict(options["fault"]), retry_after_s=options["retry_after_s"])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--fault") from error


def _api_key(file: Path | None) -> Secret:
    return Secret(file.read_text().strip() if file else os.environ.get(API_KEY_VARIABLE, ""))


def _write_at_once(path: Path, text: str) -> None:
    """Write the file so that who waits for it never reads half of it."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text)
    draft.replace(path)
