"""One request's answer in vLLM's shapes: whole, or event by event, with what a fault takes away."""

import time
from collections.abc import Iterator
from uuid import uuid4

from msgspec import UNSET

from agent_actors.local.model_server.faults import HALF_WAY, Fault
from agent_actors.local.model_server.generation import Generation, Reply, generate
from agent_actors.local.model_server.script import ScriptedReply
from agent_actors.local.model_server.settings import SIMULATED_MODEL, SIMULATED_VERSION
from agent_actors.local.model_server.validation import max_new_tokens
from agent_actors.local.model_server.wire import (
    ChatRequest,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    Usage,
    encode,
)

FINGERPRINT = f"vllm-{SIMULATED_VERSION}"
DONE = b"data: [DONE]\n\n"


class Turn:
    """Everything that one answer says; `length` is its number of tokens, of each choice.

    `room_tokens` is what the prompt left of the model's length.
    """

    def __init__(
        self,
        *,
        chat: ChatRequest,
        reply: Reply,
        scripted: ScriptedReply,
        fault: Fault | None,
        prompt_tokens: int,
        room_tokens: int,
    ) -> None:
        self.chat = chat
        self.fault = fault
        self.headers = scripted.headers
        self.prompt_tokens = prompt_tokens
        wanted = max_new_tokens(chat)
        most = room_tokens if wanted is None else min(wanted, room_tokens)
        self._choices = [generate(reply, chat, most) for _ in range(chat.n or 1)]
        self._scripted_usage = scripted.usage
        self._scripted_finish = scripted.finish_reason
        self._id = f"chatcmpl-{uuid4().hex[:16]}"
        self._created = int(time.time())
        if fault is Fault.ABORT:
            self.abort(self.half)

    @property
    def length(self) -> int:
        """The number of tokens of the answer, of one choice."""
        return len(self._choices[0].tokens)

    @property
    def half_way_fault(self) -> Fault | None:
        """The fault that happens half way, if one does."""
        return self.fault if self.fault in HALF_WAY else None

    @property
    def half(self) -> int:
        """The number of tokens after which something goes wrong half way."""
        return (self.length + 1) // 2

    @property
    def finish_reason(self) -> str:
        """Why the answer ends."""
        return self._scripted_finish or self._choices[0].finish_reason

    @property
    def made_tokens(self) -> int:
        """The number of tokens that were made, of all choices."""
        return self.length * len(self._choices)

    def abort(self, made: int) -> None:
        """Keep only the tokens that were made by now: the answer ends with `abort`."""
        self._choices = [choice.aborted(made) for choice in self._choices]
        self._scripted_finish = None

    def body(self) -> bytes:
        """Return the body of an answer that is not a stream."""
        usage = self._usage(self.made_tokens)
        completion = Completion(
            id=self._id,
            created=self._created,
            model=SIMULATED_MODEL,
            choices=UNSET if self.fault is Fault.NO_CHOICES else self._whole_choices(),
            system_fingerprint=FINGERPRINT,
            usage=Usage(
                prompt_tokens=usage.prompt_tokens,
                total_tokens=usage.total_tokens,
                completion_tokens=usage.completion_tokens,
                prompt_tokens_details=None,
                completion_tokens_details=None,
            ),
        )
        return encode(completion)

    def opening(self) -> bytes:
        """Return the events before any text, which tell the role."""
        return b"".join(
            self._event(
                ChunkChoice(index=index, delta=Delta(role="assistant", content="")),
                made=0,
                first=True,
            )
            for index in range(len(self._choices))
        )

    def events(self, numbers: range) -> bytes:
        """Return the events of those tokens, counted from 1; those of the last one tell the end."""
        return b"".join(event for number in numbers for event in self._events(number))

    def abort_events(self) -> bytes:
        """Return the events that tell of an abort after the last token's own."""
        return b"".join(
            self._last_event(index, generation, Delta())
            for index, generation in enumerate(self._choices)
        )

    def ending(self) -> bytes:
        """Return the usage, if it was asked for, and DONE."""
        if not self._wants_usage:
            return DONE
        usage = Chunk(
            id=self._id,
            created=self._created,
            model=SIMULATED_MODEL,
            choices=[],
            usage=self._usage(self.made_tokens),
            system_fingerprint=FINGERPRINT,
        )
        return _data(usage) + DONE

    def _events(self, number: int) -> Iterator[bytes]:
        for index, generation in enumerate(self._choices):
            delta = generation.delta(number - 1)
            if number == self.length:
                yield self._last_event(index, generation, delta or Delta())
            elif delta is not None:
                choice = ChunkChoice(index=index, delta=delta, token_ids=None)
                yield self._event(choice, made=number)

    def _whole_choices(self) -> list[Choice]:
        silent = self.fault is Fault.NO_FINISH_REASON
        return [
            Choice(
                index=index,
                message=generation.message(),
                finish_reason=UNSET if silent else self.finish_reason,
                stop_reason=generation.stop_reason,
            )
            for index, generation in enumerate(self._choices)
        ]

    def _last_event(self, index: int, generation: Generation, delta: Delta) -> bytes:
        choice = ChunkChoice(
            index=index,
            delta=delta,
            finish_reason=self.finish_reason,
            stop_reason=generation.stop_reason,
            token_ids=None,
        )
        return self._event(choice, made=self.length, last=True)

    def _event(
        self, choice: ChunkChoice, *, made: int, first: bool = False, last: bool = False
    ) -> bytes:
        if self.fault is Fault.NO_FINISH_REASON:
            choice = ChunkChoice(index=choice.index, delta=choice.delta, finish_reason=UNSET)
        options = self.chat.stream_options
        continuous = self._wants_usage and options is not None and options.continuous_usage_stats
        return _data(
            Chunk(
                id=self._id,
                created=self._created,
                model=SIMULATED_MODEL,
                choices=UNSET if self.fault is Fault.NO_CHOICES else [choice],
                usage=self._usage(made) if continuous else UNSET,
                prompt_token_ids=None if first else UNSET,
                prompt_text=None if first else UNSET,
                system_fingerprint=FINGERPRINT if last and not self._wants_usage else UNSET,
            )
        )

    @property
    def _wants_usage(self) -> bool:
        options = self.chat.stream_options
        return options is not None and bool(options.include_usage)

    def _usage(self, made: int) -> Usage:
        prompt, completion = self.prompt_tokens, made
        if self._scripted_usage:
            prompt = self._scripted_usage.prompt_tokens
            completion = self._scripted_usage.completion_tokens
        return Usage(
            prompt_tokens=prompt, total_tokens=prompt + completion, completion_tokens=completion
        )


def _data(chunk: Chunk) -> bytes:
    return b"data: " + encode(chunk) + b"\n\n"
