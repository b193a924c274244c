"""The configuration: frozen Structs, each field with its default and its meaning.

Every field is a key of the YAML file and an environment variable; `config_file` reads both
and checks what a type cannot say. Durations are seconds, sizes are bytes.
"""

from typing import Annotated

from msgspec import Meta, field

from agent_actors.config_tools import ToolMode, ToolName, ToolsConfig
from agent_actors.config_types import (
    DAY_S,
    AgeSeconds,
    Amount,
    FilePath,
    InboxPrefix,
    JetStreamPrefix,
    LabelName,
    LabelValue,
    Name,
    NatsUrls,
    PoolName,
    Positive,
    RayAddress,
    RoleName,
    Seconds,
    Secret,
    Section,
    SizeLimit,
    TaskSubject,
    Temperature,
    VllmUrl,
)
from agent_actors.contract import MAX_SECONDS, TASK_SUBJECTS


class TlsConfig(Section, frozen=True, kw_only=True):
    """TLS towards NATS, files as PEM."""

    ca_file: Annotated[
        FilePath, Meta(description="Certificates to trust; empty: the system's own.")
    ] = ""
    cert_file: Annotated[FilePath, Meta(description="Our certificate, if NATS asks for one.")] = ""
    key_file: Annotated[FilePath, Meta(description="The private key of `cert_file`.")] = ""
    server_name: Annotated[
        str, Meta(description="The name in the server's certificate; empty: the address's host.")
    ] = ""


class NatsConfig(Section, frozen=True, kw_only=True):
    """Where NATS is and who we are there."""

    url: Annotated[
        NatsUrls, Meta(description="Where NATS is; empty: `up` starts a server of its own.")
    ] = ""
    credentials_file: Annotated[
        FilePath, Meta(description="A NATS credentials file (JWT and seed).")
    ] = ""
    nkey_seed_file: Annotated[FilePath, Meta(description="A file that holds an nkey seed.")] = ""
    user: Annotated[str, Meta(description="User name, with `password`.")] = ""
    password: Annotated[Secret, Meta(description="The user's password.")] = field(
        default_factory=Secret
    )
    token: Annotated[Secret, Meta(description="A token, in place of user and password.")] = field(
        default_factory=Secret
    )
    tls: Annotated[
        TlsConfig | None,
        Meta(
            examples=["{}"],
            description="TLS settings; `{}` turns TLS on with the system's certificates.",
        ),
    ] = None
    inbox_prefix: Annotated[
        InboxPrefix, Meta(description="Where replies to us go; permissions can be bound to it.")
    ] = "_INBOX"
    jetstream_prefix: Annotated[
        JetStreamPrefix,
        Meta(
            description="Where JetStream is asked; another one for a domain, or for the JetStream "
            "of another account."
        ),
    ] = "$JS.API"
    connect_timeout_s: Annotated[Seconds, Meta(description="How long one connect may take.")] = 5.0
    request_timeout_s: Annotated[
        Seconds, Meta(description="How long NATS may take to answer a request.")
    ] = 5.0


Metrics = Annotated[
    str,
    Meta(
        pattern=r"^(auto|off)\Z",
        examples=["off"],
        extra={"expected": "`auto` or `off`"},
    ),
]


class VllmConfig(Section, frozen=True, kw_only=True):
    """The model server, and how long and how often it is asked."""

    urls: Annotated[
        tuple[VllmUrl, ...],
        Meta(description="Model servers, least busy first; empty: `up` starts a simulated one."),
    ] = ()
    api_key: Annotated[Secret, Meta(description="Sent as bearer token.")] = field(
        default_factory=Secret
    )
    api_key_file: Annotated[
        FilePath, Meta(description="A file that holds the API key, in place of `api_key`.")
    ] = ""
    model: Annotated[
        str, Meta(description="The model to ask for; empty: the server's own choice.")
    ] = ""
    connect_timeout_s: Annotated[
        Seconds, Meta(description="A request fails when no connection stands by then.")
    ] = 5.0
    first_byte_timeout_s: Annotated[
        Seconds, Meta(description="A request fails when nothing of the answer came by then.")
    ] = 300.0
    total_timeout_s: Annotated[
        Seconds, Meta(description="A request fails when the answer is not whole by then.")
    ] = 600.0
    max_retries: Annotated[
        int, Meta(ge=0, le=10, description="Repeats of a failed request before the task waits.")
    ] = 2
    retry_base_s: Annotated[
        Seconds, Meta(description="A repeat waits a random time below this, doubled each time.")
    ] = 0.2
    retry_cap_s: Annotated[Seconds, Meta(description="The longest wait before a repeat.")] = 5.0
    max_response_bytes: Annotated[
        Positive, Meta(description="An answer longer than this is refused.")
    ] = 16 * 1024 * 1024
    probe_interval_s: Annotated[
        Seconds, Meta(description="How often a server that failed is looked at again.")
    ] = 2.0
    min_in_flight: Annotated[
        Positive,
        Meta(description="Requests that one actor may always have under way at one server."),
    ] = 1
    max_in_flight: Annotated[
        Positive,
        Meta(
            description="Most requests that one actor has under way at one server; how many it "
            "may have up to that follows from how the server does."
        ),
    ] = 1_024
    metrics: Annotated[
        Metrics,
        Meta(
            description="auto: the limit follows what servers say in `/metrics` of running and "
            "waiting requests, where they do; off: only their pace, 429 and 503."
        ),
    ] = "auto"


class StreamsConfig(Section, frozen=True, kw_only=True):
    """What `provision` makes in JetStream."""

    replicas: Annotated[
        int, Meta(ge=1, le=5, description="Servers that keep a copy; 3 survives the loss of one.")
    ] = 1
    tasks_max_bytes: Annotated[
        SizeLimit, Meta(description="Tasks that wait; beyond it publishing is refused.")
    ] = -1
    responses_max_age_s: Annotated[
        AgeSeconds, Meta(description="How long results and the ledger are kept.")
    ] = 7 * DAY_S
    responses_max_bytes: Annotated[
        SizeLimit, Meta(description="Results kept; beyond it the oldest go.")
    ] = -1
    deadletter_max_age_s: Annotated[
        AgeSeconds, Meta(description="How long dead letters are kept.")
    ] = 30 * DAY_S
    deadletter_max_bytes: Annotated[
        SizeLimit, Meta(description="Dead letters kept; beyond it the oldest go.")
    ] = -1
    ledger_max_bytes: Annotated[SizeLimit, Meta(description="Size of the ledger.")] = -1
    artifacts_max_age_s: Annotated[
        AgeSeconds, Meta(description="How long big parts of results are kept.")
    ] = 7 * DAY_S
    artifacts_max_bytes: Annotated[SizeLimit, Meta(description="Size of the object store.")] = -1
    duplicate_window_s: Annotated[
        AgeSeconds,
        Meta(
            description="How long NATS drops a second copy of a message; costs it about 210 bytes "
            "a message: 1,000 results a second for an hour are some 760 MB."
        ),
    ] = 3600.0


Placement = Annotated[
    str,
    Meta(
        pattern=r"^(spread|pack)\Z",
        examples=["pack"],
        extra={"expected": "`spread` or `pack`"},
    ),
]


class Resources(Section, frozen=True, kw_only=True):
    """What one Ray actor asks for."""

    num_cpus: Annotated[Amount, Meta(description="CPUs that Ray reserves for the actor.")] = 0.1
    memory_bytes: Annotated[
        int,
        Meta(ge=0, description="Memory that Ray reserves for the actor; 0: none."),
    ] = 0
    custom: Annotated[
        dict[Name, Amount],
        Meta(examples=['{"fast_disk": 1}'], description="Custom Ray resources by name."),
    ] = field(default_factory=dict[str, float])
    labels: Annotated[
        dict[LabelName, LabelValue],
        Meta(
            examples=['{"ray.io/accelerator-type": "H100"}'],
            description="Labels that the actor's node must have.",
            extra={"expected": "a map, from names of labels to their values"},
        ),
    ] = field(default_factory=dict[str, str])


class RayConfig(Section, frozen=True, kw_only=True):
    """The Ray cluster."""

    address: Annotated[
        RayAddress,
        Meta(description="Where Ray is; empty: `up` starts a local one, `serve` takes `auto`."),
    ] = ""
    namespace: Annotated[Name, Meta(description="The Ray namespace of all our actors.")] = (
        "agent-actors"
    )
    supervisor: Annotated[Resources, Meta(description="What the supervisor asks for.")] = (
        Resources()
    )


class RoleConfig(Section, frozen=True, kw_only=True):
    """A role of one's own, or other settings for a built-in one."""

    prompt: Annotated[
        str, Meta(description="The system prompt of this role; empty: the built-in one.")
    ] = ""
    tools: Annotated[
        tuple[ToolName, ...],
        Meta(
            description="Tools of this role, by name or group; `default` stands for the built-in "
            "role's."
        ),
    ] = ("default",)
    mode: Annotated[
        ToolMode,
        Meta(description="`read-only` leaves out every tool that changes something."),
    ] = "default"


class AutoscaleConfig(Section, frozen=True, kw_only=True):
    """A size that follows the load, within bounds."""

    min: Annotated[
        int, Meta(ge=0, description="Fewest actors; 0: the pool goes when there is nothing to do.")
    ] = 1
    max: Annotated[Positive, Meta(description="Most actors.")]
    target_utilization: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="Share of the slots that is to be in use; the rest is there for more.",
            extra={"expected": "a number above 0, at most 1: 0.8 means 80 %"},
        ),
    ] = 0.8
    scale_up_delay_s: Annotated[
        float,
        Meta(ge=0, le=MAX_SECONDS, description="How long the load must ask for more actors."),
    ] = 0.0
    scale_down_delay_s: Annotated[
        float,
        Meta(ge=0, le=MAX_SECONDS, description="How long the load must ask for fewer actors."),
    ] = 60.0


class PoolConfig(Section, frozen=True, kw_only=True):
    """The actors that serve one set of subjects with one configuration."""

    subjects: Annotated[
        tuple[TaskSubject, ...],
        Meta(min_length=1, description="Task subjects served; no two pools may share one."),
    ] = (TASK_SUBJECTS,)
    actors: Annotated[
        Annotated[int, Meta(ge=0)] | AutoscaleConfig,
        Meta(
            description="Actors of the pool; 0: its tasks wait. A map with these keys: as the load "
            "asks.",
            examples=['{"min": 2, "max": 8}'],
            extra={"expected": "a whole number of at least 0, or a map with min and max"},
        ),
    ] = 2
    slots: Annotated[Positive, Meta(description="Tasks that one actor runs at a time.")] = 32
    max_in_flight_bytes: Annotated[
        Positive,
        Meta(
            description="Task messages that one actor holds at a time, together; a bigger one it "
            "takes when it holds no other. Working on a task takes several times its size."
        ),
    ] = 256 * 1024 * 1024
    model: Annotated[str, Meta(description="The model to ask for; empty: `vllm.model`.")] = ""
    temperature: Annotated[Temperature, Meta(description="Sampling temperature.")] = 0.7
    max_tokens: Annotated[
        Positive, Meta(description="Longest answer; a task can only ask for less.")
    ] = 2048
    enable_tools: Annotated[
        bool, Meta(description="Whether tasks that do not say so work with tools.")
    ] = False
    task_timeout_s: Annotated[Seconds, Meta(description="How long one attempt may take.")] = 600.0
    max_attempts: Annotated[
        Positive, Meta(description="Attempts before a task is given up as a dead letter.")
    ] = 3
    retry_base_s: Annotated[
        Seconds, Meta(description="A retry waits a random time below this, doubled each time.")
    ] = 1.0
    retry_cap_s: Annotated[Seconds, Meta(description="The longest wait before a retry.")] = 60.0
    ack_wait_s: Annotated[
        float,
        Meta(
            ge=1,
            le=MAX_SECONDS,
            description="How long JetStream waits for a sign of life before it hands a task to "
            "another; actors give one every third of it.",
        ),
    ] = 30.0
    hang_timeout_s: Annotated[
        float,
        Meta(
            ge=1,
            le=MAX_SECONDS,
            description="An actor that is silent for so long hangs: it is killed and replaced, and "
            "its tasks go to others at once.",
        ),
    ] = 10.0
    stop_grace_s: Annotated[
        float,
        Meta(ge=0, le=MAX_SECONDS, description="How long stopping waits for running tasks."),
    ] = 30.0
    resources: Annotated[Resources, Meta(description="What each actor asks for.")] = Resources()
    placement: Annotated[
        Placement,
        Meta(
            description="spread: over the nodes, so that the loss of one takes few; pack: on few "
            "nodes."
        ),
    ] = "spread"
    tools: ToolsConfig = ToolsConfig()
    roles: Annotated[
        dict[RoleName, RoleConfig],
        Meta(
            examples=['{"EDITOR": {"prompt": "You edit."}}'],
            description="Own roles, and other settings for built-in ones; kept in upper case.",
        ),
    ] = field(default_factory=dict[str, RoleConfig])

    @property
    def autoscale(self) -> AutoscaleConfig | None:
        """How the size follows the load; None: it is fixed."""
        return self.actors if isinstance(self.actors, AutoscaleConfig) else None

    @property
    def min_actors(self) -> int:
        """The fewest actors that there may be; a fixed size is also the most."""
        return self.actors.min if isinstance(self.actors, AutoscaleConfig) else self.actors

    @property
    def max_actors(self) -> int:
        """The most actors that there may be."""
        return self.actors.max if isinstance(self.actors, AutoscaleConfig) else self.actors

    @property
    def heartbeat_s(self) -> float:
        """How often a sign of life is given for what is held: three times in `ack_wait_s`."""
        return self.ack_wait_s / 3


class Config(Section, frozen=True, kw_only=True):
    """Everything. Without a file there is one pool, `default`, on `agent.tasks.>`."""

    nats: NatsConfig = NatsConfig()
    vllm: VllmConfig = VllmConfig()
    streams: StreamsConfig = StreamsConfig()
    ray: RayConfig = RayConfig()
    pools: Annotated[
        dict[PoolName, PoolConfig],
        Meta(
            min_length=1,
            examples=['{"default": {"actors": 4}}'],
            description="Pools by name; naming any replaces the one that is there by default.",
        ),
    ] = field(default_factory=lambda: {"default": PoolConfig()})
