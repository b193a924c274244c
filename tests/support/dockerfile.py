"""Reading a Dockerfile: its stages, and their instructions in order."""

import re
from dataclasses import dataclass, field

_HEADER = re.compile(r"(?P<base>\S+)(?:\s+AS\s+(?P<name>\S+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Instruction:
    word: str
    rest: str


@dataclass(frozen=True)
class Stage:
    """One `FROM`, and what follows it."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        """Return what follows each such word."""
        return [each.rest for each in self.instructions if each.word == word]


@dataclass(frozen=True)
class Dockerfile:
    """`arguments` are those before the first stage, with their defaults."""

    arguments: dict[str, str]
    stages: dict[str, Stage]

    def family(self, name: str) -> list[Stage]:
        """Return a stage and those that it is built upon, the lowest first."""
        stage = self.stages[name]
        return [*(self.family(stage.base) if stage.base in self.stages else []), stage]


def read_dockerfile(text: str) -> Dockerfile:
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for instruction in _instructions(text):
        if instruction.word == "FROM":
            header = _HEADER.fullmatch(instruction.rest)
            assert header, instruction.rest
            name = header["name"] or str(len(stages))
            stage = stages[name] = Stage(name, header["base"])
        elif stage:
            stage.instructions.append(instruction)
        else:
            assert instruction.word == "ARG"
            name, _, default = instruction.rest.partition("=")
            arguments[name] = default
    return Dockerfile(arguments, stages)


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    words = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [Instruction(word.upper(), rest.strip()) for word, rest in words]
