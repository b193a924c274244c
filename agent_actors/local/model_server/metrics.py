"""The figures of `/metrics` under vLLM's names, with its labels."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from agent_actors.local.model_server.engine import Engine

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
# Tool calls are a way of the API to tell that the model stopped.
STOPPED = "tool_calls"
REJECTION_REASON = "max_num_queued_reqs"
FIRST_TOKEN_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
END_TO_END_BUCKETS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class Metrics:
    """Counts what was answered; running, waiting and cache usage are read from the engine."""

    def __init__(self, *, model: str, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._labels = {"engine": "0", "model_name": model}
        self._gauge("num_requests_running", "In execution.", lambda: engine.running)
        self._gauge("num_requests_waiting", "Waiting for a place.", lambda: engine.waiting)
        self._gauge("kv_cache_usage_perc", "1 is all of it.", lambda: engine.cache_usage)
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens of answers.")
        self._first_token = self._seconds(
            "time_to_first_token_seconds", "Until the first token.", FIRST_TOKEN_BUCKETS_S
        )
        self._end_to_end = self._seconds(
            "e2e_request_latency_seconds", "Until the last token.", END_TO_END_BUCKETS_S
        )
        success = Counter(
            "vllm:request_success",
            "Requests that were answered.",
            ["engine", "model_name", "finished_reason"],
            registry=self._registry,
        )
        self._success = {
            reason: success.labels(**self._labels, finished_reason=reason)
            for reason in FINISH_REASONS
        }
        self._rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused since too many had come.",
            ["model_name", "reason"],
            registry=self._registry,
        ).labels(model_name=model, reason=REJECTION_REASON)

    def text(self) -> bytes:
        """Return the body of `/metrics`."""
        return generate_latest(self._registry)

    def answered(
        self, *, prompt_tokens: int, generation_tokens: int, finish_reason: str, duration_s: float
    ) -> None:
        """Count an answer that the engine finished."""
        self._prompt_tokens.inc(prompt_tokens)
        self._generation_tokens.inc(generation_tokens)
        self._end_to_end.observe(duration_s)
        reason = "stop" if finish_reason == STOPPED else finish_reason
        if reason in self._success:
            self._success[reason].inc()

    def first_token(self, duration_s: float) -> None:
        """Note how long a request waited for its first token."""
        self._first_token.observe(duration_s)

    def rejected(self) -> None:
        """Count a request for which there was no room."""
        self._rejections.inc()

    def _gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        gauge = Gauge(f"vllm:{name}", meaning, list(self._labels), registry=self._registry)
        gauge.labels(**self._labels).set_function(value)

    def _counter(self, name: str, meaning: str) -> Counter:
        counter = Counter(f"vllm:{name}", meaning, list(self._labels), registry=self._registry)
        return counter.labels(**self._labels)

    def _seconds(self, name: str, meaning: str, buckets_s: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", meaning, list(self._labels), registry=self._registry, buckets=buckets_s
        )
        return histogram.labels(**self._labels)
