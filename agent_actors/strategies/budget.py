"""How much a task may spend: turns of the model, tool calls, tokens. Checked before spending."""

from msgspec import Struct

from agent_actors.config_tools import ToolsConfig
from agent_actors.contract import Constraints, Usage
from agent_actors.errors import BudgetExceeded

# With less than this an answer is not worth the price of its prompt.
MIN_ANSWER_TOKENS = 64


class Spent(Struct, frozen=True, kw_only=True):
    """What an attempt and those before it have spent."""

    turns: int = 0
    operations: int = 0
    usage: Usage = Usage()

    @property
    def tokens(self) -> int:
        """The tokens of all turns, prompt and completion."""
        return self.usage.total_tokens


class Budget(Struct, frozen=True, kw_only=True):
    """The bounds of the whole task; each is the lower one of the pool's and the task's."""

    turns: int
    operations: int
    tokens: int

    def answer_tokens(self, spent: Spent, prompt_tokens: int, max_tokens: int) -> int:
        """Return how many tokens the next turn's answer may have, at most `max_tokens`.

        Raises BudgetExceeded when there is no turn left, or too few tokens for one whose prompt
        has about `prompt_tokens`.
        """
        if spent.turns >= self.turns:
            raise BudgetExceeded(
                f"max_iterations: all {self.turns} turns are used, and there is no answer"
            )
        left = self.tokens - spent.tokens - prompt_tokens
        if left < min(max_tokens, MIN_ANSWER_TOKENS):
            raise BudgetExceeded(
                f"token_budget: {spent.tokens} of {self.tokens} tokens are used, and the next "
                f"turn needs about {prompt_tokens} for its prompt alone"
            )
        return min(max_tokens, left)

    def operations_left(self, spent: Spent) -> int:
        """Return how many calls may still be made."""
        return max(0, self.operations - spent.operations)

    def no_operations_left(self, wanted: int) -> BudgetExceeded:
        """Return the error of a model that asks for so many calls more than it may make."""
        return BudgetExceeded(
            f"max_operations: all {self.operations} tool calls are used, and the model asks for "
            f"{wanted} more"
        )

    def warning(self, spent: Spent, prompt_tokens: int) -> str:
        """Return what to tell the model when its next turn has to be the last; else nothing."""
        turns_left = self.turns - spent.turns
        if turns_left == 1:
            return "One turn is left: answer now, without tools."
        if not self.operations_left(spent):
            return "All tool calls of the budget are used: answer now, without tools."
        if self.tokens - spent.tokens < 2 * (prompt_tokens + MIN_ANSWER_TOKENS):
            return "The token budget is nearly used up: answer now, without tools."
        return ""


def budget_of(settings: ToolsConfig, asked: Constraints) -> Budget:
    """Return the pool's bounds, tightened by the task's."""
    return Budget(
        turns=_lower(settings.max_iterations, asked.max_iterations),
        operations=_lower(settings.max_operations, asked.max_operations),
        tokens=_lower(settings.token_budget, asked.token_budget),
    )


def _lower(bound: int, asked: int | None) -> int:
    return bound if asked is None else min(bound, asked)
