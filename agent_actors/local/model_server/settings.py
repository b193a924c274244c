"""What the simulated model server can be told: names, pace, limits, faults."""

from typing import Annotated

from msgspec import Meta, Struct, field

from agent_actors.config_types import Secret
from agent_actors.local.model_server.faults import Faults
from agent_actors.local.model_server.script import Script

SIMULATED_MODEL = "simulated-model"
# The vLLM whose behaviour was measured and is simulated.
SIMULATED_VERSION = "0.32.0+simulated"

Milliseconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]


class Latency(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the tokens of one answer take.

    `spread` is the share by which each time varies to both sides; `slowdown` is how many times
    longer everything takes with every place taken, in proportion with fewer.
    """

    first_token_ms: Milliseconds = 0.0
    prefill_ms_per_token: Milliseconds = 0.0
    between_tokens_ms: Milliseconds = 0.0
    spread: Annotated[float, Meta(ge=0, le=1)] = 0.0
    slowdown: Annotated[float, Meta(ge=1)] = 1.0


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much runs at once, in vLLM's terms.

    `max_num_queued_reqs` bounds running and waiting requests together, None is no bound.
    """

    max_num_seqs: Count = 256
    max_num_queued_reqs: Annotated[int, Meta(ge=0)] | None = None
    kv_cache_tokens: Count = 262_144


class Behaviour(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may change while the server runs; `healthy` is what `/health` says."""

    latency: Latency = Latency()
    faults: Faults = Faults()
    healthy: bool = True


class ModelServerSettings(Struct, frozen=True, kw_only=True):
    """Everything about one simulated server.

    `aliases` are further names it answers to; `seed` decides latencies and faults;
    `keep_requests` bounds the record of requests; without a `script` the simulation speaks.
    """

    aliases: tuple[str, ...] = ()
    max_model_len: Count = 32_768
    api_key: Secret = field(default_factory=Secret)
    behaviour: Behaviour = Behaviour()
    limits: Limits = Limits()
    start_up_ms: Milliseconds = 0.0
    seed: int = 0
    script: Script | None = None
    keep_requests: Count = 10_000

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that a request may ask for; answers carry the first."""
        return (SIMULATED_MODEL, *self.aliases)
