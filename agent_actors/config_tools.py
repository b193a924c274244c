"""The configuration of agents that work with tools: what they may do, where, and how much.

One section a pool, `pools.<pool>.tools`. Durations are seconds, sizes are bytes.
"""

from typing import Annotated

from msgspec import Meta, field

from agent_actors.config_types import Name, Positive, Seconds, Secret, Section

TOOL_GROUPS = ("files", "git", "tests", "http")

ToolName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-]{1,64}\Z",
        examples=["files"],
        extra={"expected": "a tool, a group (files, git, tests, http, an MCP server) or `default`"},
    ),
]
ToolMode = Annotated[
    str,
    Meta(
        pattern=r"^(default|read-only|full)\Z",
        examples=["read-only"],
        extra={"expected": "`default`, `read-only` or `full`"},
    ),
]
Keep = Annotated[
    str,
    Meta(
        pattern=r"^(never|failed|always)\Z",
        examples=["failed"],
        extra={"expected": "`never`, `failed` or `always`"},
    ),
]
SandboxKind = Annotated[
    str,
    Meta(
        pattern=r"^(auto|bwrap|landlock|none)\Z",
        examples=["bwrap"],
        extra={"expected": "`auto`, `bwrap`, `landlock` or `none`"},
    ),
]
ToolChoice = Annotated[
    str,
    Meta(
        pattern=r"^(auto|required|none)\Z",
        examples=["required"],
        extra={"expected": "`auto`, `required` or `none`"},
    ),
]
AbsolutePath = Annotated[
    str,
    Meta(
        pattern=r"^/[^\x00]*\Z",
        examples=["/opt/toolchain"],
        extra={"expected": "an absolute path"},
    ),
]
FolderPath = Annotated[
    str,
    Meta(
        pattern=r"^(/[^\x00]*)?\Z",
        examples=["/var/lib/agent-actors"],
        extra={"expected": "the absolute path of a folder"},
    ),
]
HostPattern = Annotated[
    str,
    Meta(
        pattern=r"^(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(:\d{1,5})?\Z",
        examples=["*.example.org"],
        extra={"expected": "a host name, `*.` before it for its subdomains, `:port` after it"},
    ),
]
HttpMethod = Annotated[
    str,
    Meta(
        pattern=r"^(GET|HEAD|POST|PUT|PATCH|DELETE)\Z",
        examples=["GET"],
        extra={"expected": "one of GET, HEAD, POST, PUT, PATCH and DELETE"},
    ),
]
RemotePattern = Annotated[
    str,
    Meta(
        pattern=r"^(https|file)://[^\s@?#]+\Z",
        examples=["https://git.example.org/team/*"],
        extra={"expected": "an https:// or file:// address without a login, `*` for any text"},
    ),
]
ServerName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-]{1,32}\Z",
        extra={"expected": "1 to 32 of the characters A-Z, a-z, 0-9, _ and -"},
    ),
]

McpTransport = Annotated[
    str,
    Meta(
        pattern=r"^(stdio|http|streamable-http|)\Z",
        examples=["http"],
        extra={"expected": "`stdio`, `http` or `streamable-http`"},
    ),
]


class WorkspaceConfig(Section, frozen=True, kw_only=True):
    """Where agents work: one folder a task."""

    root: Annotated[
        FolderPath,
        Meta(
            description="Folder of the workspaces, best on a volume that all nodes share; empty: "
            "in the machine's temporary folder."
        ),
    ] = ""
    keep: Annotated[Keep, Meta(description="Which workspaces stay when their task has ended.")] = (
        "never"
    )
    keep_for_s: Annotated[
        Seconds, Meta(description="How long kept and abandoned workspaces stay.")
    ] = 86_400.0
    max_bytes: Annotated[
        Positive, Meta(description="How much the tools may write into one workspace.")
    ] = 1024 * 1024 * 1024


class SandboxConfig(Section, frozen=True, kw_only=True):
    """How commands are confined."""

    kind: Annotated[
        SandboxKind,
        Meta(
            description="What confines commands; auto: bwrap or landlock, whichever works first. "
            "none gives them all that the service's user may do."
        ),
    ] = "auto"
    read_paths: Annotated[
        tuple[AbsolutePath, ...],
        Meta(description="What commands may read beside the system and this Python."),
    ] = ()
    environment: Annotated[
        dict[Name, str],
        Meta(
            examples=['{"GOFLAGS": "-mod=vendor"}'],
            description="Variables that commands get beside PATH, HOME, TMPDIR and LANG.",
        ),
    ] = field(default_factory=dict[str, str])
    timeout_s: Annotated[
        Seconds, Meta(description="A command that takes longer is killed with its children.")
    ] = 120.0
    max_cpu_s: Annotated[Positive, Meta(description="CPU time of one process.")] = 120
    max_memory_bytes: Annotated[Positive, Meta(description="Address space of one process.")] = (
        4 * 1024 * 1024 * 1024
    )
    max_processes: Annotated[
        Positive, Meta(description="Processes and threads of one command's user.")
    ] = 256
    max_file_bytes: Annotated[
        Positive, Meta(description="Largest file that a command may write.")
    ] = 256 * 1024 * 1024
    max_output_bytes: Annotated[
        Positive, Meta(description="Output kept of a command; one that writes on is killed.")
    ] = 8 * 1024 * 1024
    first_uid: Annotated[
        Positive,
        Meta(
            description="When the service runs as root, each workspace gets a user id of its own: "
            "one of the 65,536 from here on, which nobody else may use."
        ),
    ] = 2_000_000_000


class GitConfig(Section, frozen=True, kw_only=True):
    """Git, and what it may reach."""

    remotes: Annotated[
        tuple[RemotePattern, ...],
        Meta(description="Repositories that may be cloned, pulled and pushed; empty: none."),
    ] = ()
    credentials_file: Annotated[
        FolderPath,
        Meta(description="A file of git-credential-store for them, read by no command of a task."),
    ] = ""
    author_name: Annotated[Name, Meta(description="Author of commits.")] = "agent-actors"
    author_email: Annotated[Name, Meta(description="The author's address.")] = (
        "agent-actors@localhost"
    )


class HttpConfig(Section, frozen=True, kw_only=True):
    """What the http tools may reach."""

    hosts: Annotated[
        tuple[HostPattern, ...],
        Meta(description="Hosts that may be asked; empty: none."),
    ] = ()
    methods: Annotated[
        tuple[HttpMethod, ...], Meta(min_length=1, description="Methods that may be used.")
    ] = ("GET", "HEAD")
    allow_private: Annotated[
        bool,
        Meta(description="Whether those hosts may have private addresses: a network of your own."),
    ] = False
    max_body_bytes: Annotated[Positive, Meta(description="Longest body read of an answer.")] = (
        2 * 1024 * 1024
    )
    timeout_s: Annotated[Seconds, Meta(description="How long one request may take.")] = 30.0


class McpServerConfig(Section, frozen=True, kw_only=True):
    """One Model Context Protocol server, as everywhere: a command, or a URL.

    In values, `${NAME}` stands for the service's environment variable of that name.
    """

    type: Annotated[
        McpTransport, Meta(description="How it is spoken to; empty: as command or url tell.")
    ] = ""
    command: Annotated[str, Meta(description="The program of a stdio server.")] = ""
    args: Annotated[tuple[str, ...], Meta(description="Its arguments.")] = ()
    env: Annotated[
        dict[Name, Secret],
        Meta(
            examples=['{"TOKEN": "${TOKEN}"}'], description="Its environment, beside PATH and HOME."
        ),
    ] = field(default_factory=dict[str, Secret])
    cwd: Annotated[FolderPath, Meta(description="Its working folder.")] = ""
    url: Annotated[str, Meta(description="Where a streamable HTTP server is.")] = ""
    headers: Annotated[
        dict[Name, Secret],
        Meta(
            examples=['{"Authorization": "Bearer ${TOKEN}"}'],
            description="Headers of each request to it.",
        ),
    ] = field(default_factory=dict[str, Secret])
    timeout_s: Annotated[Seconds, Meta(description="How long one call may take.")] = 60.0
    read_only_tools: Annotated[
        tuple[Name, ...],
        Meta(description="Tools that only read; others do when the server says so (readOnlyHint)."),
    ] = ()


class ToolsConfig(Section, frozen=True, kw_only=True):
    """Agents with tools: bounds that a task can only tighten, and what the tools may do."""

    max_iterations: Annotated[
        Positive, Meta(description="Turns of the model; `constraints.max_iterations` lowers it.")
    ] = 50
    max_operations: Annotated[
        Positive, Meta(description="Tool calls; `constraints.max_operations` lowers it.")
    ] = 200
    token_budget: Annotated[
        Positive,
        Meta(
            description="Tokens of all turns, prompt and completion; "
            "`constraints.token_budget` lowers it."
        ),
    ] = 1_000_000
    max_output_chars: Annotated[
        Positive, Meta(description="What the model sees of one tool's output.")
    ] = 20_000
    tool_choice: Annotated[
        ToolChoice,
        Meta(
            description="vLLM's tool_choice: required forces a call each turn, until `finish` is "
            "called; none only describes the tools."
        ),
    ] = "auto"
    live_tokens: Annotated[
        bool, Meta(description="Whether the model's words are sent as events while it speaks.")
    ] = True
    workspace: WorkspaceConfig = WorkspaceConfig()
    sandbox: SandboxConfig = SandboxConfig()
    git: GitConfig = GitConfig()
    http: HttpConfig = HttpConfig()
    mcpServers: Annotated[  # noqa: N815 - so that a configuration of other programs can be pasted
        dict[ServerName, McpServerConfig],
        Meta(
            examples=['{"postgres": {"command": "postgres-mcp"}}'],
            description="Model Context Protocol servers whose tools are offered.",
        ),
    ] = field(default_factory=dict[str, McpServerConfig])
