"""The text-only strategy: one question to the model, its answer is the proposal."""

from agent_actors.contract import Proposal
from agent_actors.errors import AnswerEmpty, AnswerTruncated
from agent_actors.ports import (
    AgentConfig,
    AttemptRecord,
    ChatReply,
    ChatRequest,
    ExecutionRequest,
    VLLMClient,
)
from agent_actors.strategies.answer_format import answer_check
from agent_actors.strategies.prompts import messages

DIVERSITY_FACTOR = 1.3
MAX_TEMPERATURE = 2.0
TEMPERATURE_DIGITS = 3


class GenerateProposal:
    """Asks the model for a proposal, and sees to it that it is whole and has the asked form."""

    def __init__(self, client: VLLMClient) -> None:
        self._client = client

    async def run(self, request: ExecutionRequest, record: AttemptRecord) -> None:
        """Write the model's proposal into the record; it stays there when it will not do.

        Raises InvalidTask, AnswerEmpty, AnswerTruncated, AnswerInvalid, and what `VLLMClient`
        raises.
        """
        agent = request.agent
        response_format = request.constraints.response_format
        check = answer_check(response_format)
        temperature = sampling_temperature(request)
        reply = await self._client.chat(
            ChatRequest(
                messages=messages(request),
                model=agent.model,
                temperature=temperature,
                max_tokens=agent.max_tokens,
                response_format=response_format,
            )
        )
        _write_down(record, reply, agent, temperature)
        if reply.finish_reason == "length":
            raise AnswerTruncated(
                f"the answer was cut off at max_tokens ({agent.max_tokens}): raise it, or ask "
                "for less"
            )
        if record.proposal is None:
            raise AnswerEmpty(
                f"the model answered with no text (finish_reason {reply.finish_reason})"
            )
        check(reply.content)


def sampling_temperature(request: ExecutionRequest) -> float:
    """Return the agent's temperature, raised for a task that asks for diversity."""
    temperature = request.agent.temperature
    if not request.task.diversity:
        return temperature
    return min(MAX_TEMPERATURE, round(temperature * DIVERSITY_FACTOR, TEMPERATURE_DIGITS))


def proposal_of(
    agent: AgentConfig, content: str, *, model: str, temperature: float, tokens: int
) -> Proposal | None:
    """Return what the agent proposes; None when there is no text in it."""
    if not content.strip():
        return None
    return Proposal(
        content=content,
        author_id=agent.agent_id,
        author_role=str(agent.role),
        model=model or agent.model,
        temperature=temperature,
        tokens=tokens,
    )


def _write_down(
    record: AttemptRecord, reply: ChatReply, agent: AgentConfig, temperature: float
) -> None:
    record.count(reply.usage)
    record.model = reply.model or agent.model
    record.note(
        "model.answered",
        model=record.model,
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.usage.prompt_tokens,
        completion_tokens=reply.usage.completion_tokens,
    )
    record.proposal = proposal_of(
        agent,
        reply.content,
        model=record.model,
        temperature=temperature,
        tokens=reply.usage.completion_tokens,
    )
