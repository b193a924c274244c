"""The canned proposals of the simulation, one a built-in role and one for all others.

`$title` is the task's first line, `$quoted` the task as a Markdown quote.
"""

from string import Template

from agent_actors.contract import AgentRole

_DEV = """\
## Proposal: $title

The task:

$quoted

### Approach

1. Put the logic into one module without side effects, so that it can be tested by itself.
2. Check input where it enters and say what is wrong with it; trust it from there on.
3. Keep the public surface to one function and one type.

### Implementation

```python
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    value: object
    steps: tuple[str, ...]


def solve(request: object) -> Outcome:
    if request is None:
        raise ValueError("the request is empty: give it what the task describes")
    return Outcome(value=request, steps=("read", "checked", "answered"))
```

### Tests

- The normal case gives the outcome with its steps in order.
- An empty request is refused with a message that says what is missing.
- The same request twice gives equal outcomes.

### Assumptions

Nothing beyond the standard library is needed, and input fits into memory.
"""

_QA = """\
## Test plan: $title

The task:

$quoted

| # | Case | Precondition | Steps | Expected |
|---|---|---|---|---|
| 1 | Normal case | valid input | do what the task describes | the result as described |
| 2 | Lower boundary | smallest valid input | the same | the same, nothing lost |
| 3 | Upper boundary | largest valid input | the same | done within its time limit |
| 4 | Invalid input | a field of the wrong type | the same | an error that names the field |
| 5 | Repetition | case 1 has just been run | run it again | no second effect |
| 6 | Failure midway | a dependency goes away | the same | a clear error, and a retry succeeds |
| 7 | Concurrency | two callers at once | both run case 1 | both are answered, one effect each |

Automate 1 to 5 as unit tests, 6 and 7 as integration tests. What "fast enough" means cannot be
tested from what was given: agree on a number first.
"""

_ARCHITECT = """\
## Design: $title

The task:

$quoted

### Components

- **Gateway**: takes requests, checks them, answers at once with an id.
- **Queue**: keeps accepted work safe until it is done.
- **Worker**: does the work, any number of them, none of which knows another.
- **Store**: the one place that says what was done.

### Data flow

Gateway → queue → worker → store → notification. Every message carries its id, so that doing it
twice is the same as doing it once.

### Alternatives weighed

A direct call is simpler, but loses work when the worker dies. The queue costs one more part to
operate and buys recovery and back-pressure.

### Risks

The store is the bottleneck at high rates: measure first, then shard by id.
"""

_DEVOPS = """\
## Operations: $title

The task:

$quoted

```yaml
services:
  app:
    image: registry.example.com/app:1.0.0
    restart: unless-stopped
    read_only: true
    user: "10001"
    deploy:
      resources:
        limits: {cpus: "1", memory: 512M}
    healthcheck:
      test: ["CMD", "/app/healthy"]
      interval: 10s
      retries: 3
```

1. Build once, tag with the commit, promote the same image through every environment.
2. Secrets come from the platform's store as files; none stands in the image or the repository.
3. Alert on errors a minute, on queue age, and on a restart loop.
4. Roll back by deploying the previous tag: `docker compose up -d` is safe to repeat.

Verify: `docker compose ps` says healthy, and one request through the front door succeeds.
"""

_DATA = """\
## Data design: $title

The task:

$quoted

```sql
CREATE TABLE event (
    id          uuid PRIMARY KEY,
    happened_at timestamptz NOT NULL,
    subject     text NOT NULL,
    payload     jsonb NOT NULL,
    loaded_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX event_by_subject ON event (subject, happened_at);
```

- **Repeated runs**: insert with `ON CONFLICT (id) DO NOTHING`.
- **Late data**: order by `happened_at`, select increments by `loaded_at`.
- **Quality**: refuse rows without a subject, count them, alert above one in a thousand.
- **Migration**: add columns as nullable, fill them in batches, then add the constraint.
"""

_GENERIC = """\
## Proposal: $title

The task:

$quoted

1. Agree on what done means, in one sentence that can be checked.
2. Do the smallest part that gives a result, and show it.
3. Take the rest in the order of what could still go wrong.

Assumption: whoever set the task can answer questions within a day.
"""

ALTERNATIVE = """
### Alternative view

Instead of building it, look for something that exists, and configure that: less to own, at the
price of its limits. The better choice while the task is not your core business.
"""

PROPOSALS = {
    AgentRole.DEV: Template(_DEV),
    AgentRole.QA: Template(_QA),
    AgentRole.ARCHITECT: Template(_ARCHITECT),
    AgentRole.DEVOPS: Template(_DEVOPS),
    AgentRole.DATA: Template(_DATA),
}
GENERIC = Template(_GENERIC)
