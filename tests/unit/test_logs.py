import io
import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_actors.config import NatsConfig
from agent_actors.config_types import Secret
from agent_actors.errors import ConfigError
from agent_actors.observe.logs import FORMAT_VARIABLE, LEVEL_VARIABLE, configure_logs
from agent_actors.observe.redaction import MASK, is_secret_name, scrub


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch):
    for variable in (LEVEL_VARIABLE, FORMAT_VARIABLE, "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream():
    return io.StringIO()


def events_in(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# What a line looks like.


def test_an_event_is_one_json_object_with_the_usual_keys_first(stream):
    configure_logs("actor", stream=stream)
    structlog.get_logger().info("task.settled", disposition="completed", duration_ms=1.5)
    [event] = events_in(stream)
    assert list(event)[:4] == ["timestamp", "level", "event", "process"]
    assert event["timestamp"].endswith("Z")
    assert event == {
        "timestamp": event["timestamp"],
        "level": "info",
        "event": "task.settled",
        "process": "actor",
        "disposition": "completed",
        "duration_ms": 1.5,
    }


def test_what_is_bound_once_is_in_every_event(stream):
    configure_logs("actor", stream=stream)
    structlog.contextvars.bind_contextvars(task_id="job/ü", attempt=2)
    log = structlog.get_logger().bind(pool="default")
    log.info("task.begun")
    logging.getLogger("nats.aio").warning("slow consumer")
    ours, library = events_in(stream)
    assert (ours["task_id"], ours["attempt"], ours["pool"]) == ("job/ü", 2, "default")
    assert (library["task_id"], library["attempt"]) == ("job/ü", 2)


def test_a_terminal_gets_a_line_for_humans():
    stream = Terminal()
    configure_logs("up", stream=stream)
    structlog.get_logger().info("task.settled", disposition="completed")
    line = stream.getvalue()
    assert not line.startswith("{")
    assert "task.settled" in line
    assert "completed" in line
    assert "\x1b[" in line


def test_no_color_takes_the_colours_away(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    configure_logs("up", stream=stream)
    structlog.get_logger().info("task.settled")
    assert "\x1b[" not in stream.getvalue()


@pytest.mark.parametrize(("look", "is_json"), [("pretty", False), ("json", True), ("auto", True)])
def test_the_format_can_be_chosen_for_workers_that_have_no_terminal(
    look, is_json, monkeypatch, stream
):
    monkeypatch.setenv(FORMAT_VARIABLE, look)
    configure_logs("actor", stream=stream)
    structlog.get_logger().info("task.settled")
    assert stream.getvalue().startswith("{") == is_json


def test_an_exception_is_one_line_with_its_traceback(stream):
    configure_logs("actor", stream=stream)
    try:
        {}["nothing"]
    except LookupError:
        structlog.get_logger().exception("strategy.crashed")
    [event] = events_in(stream)
    assert event["level"] == "error"
    assert event["exception"].startswith("Traceback")
    assert event["exception"].endswith("KeyError: 'nothing'")


def test_text_that_is_no_unicode_is_logged_all_the_same(stream):
    configure_logs("actor", stream=stream)
    structlog.get_logger().info("file.read", name="a\udcff")
    assert events_in(stream)[0]["name"] == "a\udcff"


def test_values_of_any_type_can_be_logged(stream):
    configure_logs("actor", stream=stream)
    structlog.get_logger().info(
        "odd",
        set={1},
        tuple=(1, "a"),
        bytes=b"ab",
        type=int,
        struct=NatsConfig(user="me"),
        big=2**70,
    )
    [event] = events_in(stream)
    assert event["set"] == [1]
    assert event["tuple"] == [1, "a"]
    assert event["bytes"] == "b'ab'"
    assert event["type"] == "<class 'int'>"
    assert event["struct"]["user"] == "me"
    assert event["big"] == 2**70


def test_a_value_that_holds_itself_ends_somewhere(stream):
    configure_logs("actor", stream=stream)
    endless: dict[str, object] = {}
    endless["again"] = endless
    structlog.get_logger().info("odd", endless=endless)
    assert '"..."' in stream.getvalue()


# Levels.


def test_info_is_the_level_unless_told_otherwise(stream):
    configure_logs("actor", stream=stream)
    log = structlog.get_logger()
    log.debug("prompt")
    log.info("task.begun")
    logging.getLogger("nats").debug("ping")
    assert [event["event"] for event in events_in(stream)] == ["task.begun"]


def test_the_level_comes_from_the_environment(monkeypatch, stream):
    monkeypatch.setenv(LEVEL_VARIABLE, "DEBUG")
    configure_logs("actor", stream=stream)
    structlog.get_logger().debug("prompt")
    logging.getLogger("nats").debug("ping")
    assert [event["event"] for event in events_in(stream)] == ["prompt", "ping"]


def test_a_level_that_is_given_goes_before_the_environment(monkeypatch, stream):
    monkeypatch.setenv(LEVEL_VARIABLE, "debug")
    configure_logs("actor", level="error", stream=stream)
    structlog.get_logger().warning("not this")
    structlog.get_logger().error("but this")
    assert [event["event"] for event in events_in(stream)] == ["but this"]


@pytest.mark.parametrize("variable", [LEVEL_VARIABLE, FORMAT_VARIABLE])
def test_a_wrong_setting_is_named_with_what_would_be_right(variable, monkeypatch, stream):
    monkeypatch.setenv(variable, "loud")
    with pytest.raises(ConfigError, match=rf"^{variable}: is 'loud', must be one of "):
        configure_logs("actor", stream=stream)


# Libraries, Ray, and configuring more than once.


def test_what_libraries_log_takes_the_same_way(stream):
    configure_logs("supervisor", stream=stream)
    logging.getLogger("aiohttp.access").info("GET %s", "/health")
    [event] = events_in(stream)
    assert event["event"] == "GET /health"
    assert event["logger"] == "aiohttp.access"
    assert event["process"] == "supervisor"
    assert event["level"] == "info"


def test_a_record_that_cannot_be_formatted_does_not_hurt_the_library(stream, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would raise
    configure_logs("supervisor", stream=stream)
    logging.getLogger("broken").info("%d items", "no number")
    [event] = events_in(stream)
    assert (event["event"], event["logger"]) == ("log.unreadable", "broken")


def test_configuring_twice_logs_everything_once(stream):
    configure_logs("driver", stream=stream)
    configure_logs("actor", stream=stream)
    structlog.get_logger().info("ours")
    logging.getLogger("nats").warning("theirs")
    assert [(event["event"], event["process"]) for event in events_in(stream)] == [
        ("ours", "actor"),
        ("theirs", "actor"),
    ]


def test_a_logger_that_was_used_before_follows_to_the_new_stream(stream):
    configure_logs("driver", stream=io.StringIO())
    log = structlog.get_logger()
    log.info("before")
    configure_logs("actor", stream=stream)
    log.info("after")
    assert [(event["event"], event["process"]) for event in events_in(stream)] == [
        ("after", "actor")
    ]


def test_without_a_stream_it_is_standard_error_as_it_is_then(monkeypatch, stream):
    configure_logs("driver")
    monkeypatch.setattr(sys, "stderr", stream)
    structlog.get_logger().info("ours")
    assert [event["event"] for event in events_in(stream)] == ["ours"]


def test_handlers_of_others_stay(stream):
    class Foreign(logging.NullHandler):
        pass

    foreign = Foreign()
    logging.getLogger().addHandler(foreign)
    configure_logs("actor", stream=stream)
    configure_logs("actor", stream=stream)
    assert foreign in logging.getLogger().handlers


def test_ray_logs_the_same_way_and_only_once_and_its_files_stay(stream, tmp_path):
    from ray._private.log import PlainRayHandler, clear_logger
    from ray._private.ray_logging import setup_logger

    ray_log = logging.getLogger("ray")
    handlers, propagate, level = ray_log.handlers[:], ray_log.propagate, ray_log.level
    file = logging.FileHandler(tmp_path / "ray.log")
    clear_logger("ray")
    ray_log.addHandler(PlainRayHandler())
    ray_log.addHandler(file)
    ray_log.propagate = False
    try:
        configure_logs("actor", stream=stream)
        setup_logger(logging.INFO, "%(message)s")  # what ray.init and a worker's start do
        configure_logs("actor", stream=stream)
        ray_log.info("Connected to Ray")
    finally:
        file.close()
        ray_log.handlers[:], ray_log.propagate = handlers, propagate
        ray_log.setLevel(level)
    [event] = events_in(stream)
    assert (event["event"], event["logger"]) == ("Connected to Ray", "ray")
    assert "Connected to Ray" in (tmp_path / "ray.log").read_text()


class Broken(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device", text)


def test_a_full_disk_stops_no_task():
    configure_logs("actor", stream=Broken())
    structlog.get_logger().info("task.begun")
    logging.getLogger("nats").warning("slow")


def test_a_closed_stream_stops_no_task(stream):
    configure_logs("actor", stream=stream)
    stream.close()
    structlog.get_logger().info("task.begun")


# Secrets.


SECRET_NAMES = (
    "api_key",
    "API-Key",
    "apiKey",
    "apikey",
    "vllm_api_key",
    "AGENT_ACTORS_VLLM_API_KEY",
    "token",
    "accessToken",
    "X-Auth-Token",
    "nats_password",
    "Password",
    "passwd",
    "authorization",
    "Proxy-Authorization",
    "credentials",
    "nkey",
    "nkey_seed",
    "seed",
    "clientSecret",
    "secret",
    "private_key",
    "Set-Cookie",
)
HARMLESS_NAMES = (
    "total_tokens",
    "max_tokens",
    "prompt_tokens",
    "token_budget",
    "task_key",
    "task_id",
    "key",
    "credentials_file",
    "nkey_seed_file",
    "api_key_file",
    "secretary",
    "author_id",
    "author_role",
    "passed",
    "",
)


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_the_name_tells_a_secret(name):
    assert is_secret_name(name)


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_the_name_tells_what_is_harmless(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("nats://me:pw@h:4222", "nats://***@h:4222"),
        ("nats://me:p@w@h:4222", "nats://***@h:4222"),
        ("nats://me:p/w#?@h:4222", "nats://***@h:4222"),
        ("connect to https://key@h/v1 failed", "connect to https://***@h/v1 failed"),
        ("nats://a:b@h1:4222,nats://c:d@h2:4222", "nats://***@h1:4222,nats://***@h2:4222"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("authorization=Basic dXNlcjpwdw==", "authorization=***"),
        ("got Bearer abc-def, sorry", "got Bearer ***, sorry"),
        ("GET /v1?api_key=abc&model=m", "GET /v1?api_key=***&model=m"),
        ('{"api_key": "a b", "model": "m"}', '{"api_key": ***, "model": "m"}'),
        (r"{\"token\": \"abc\", \"n\": 1}", r"{\"token\": \***, \"n\": 1}"),
        ("Config(password='a b', user='u')", "Config(password=***, user='u')"),
        ("Config(credentials=['a', 'b'], user='u')", "Config(credentials=***, user='u')"),
        (
            "-----BEGIN USER NKEY SEED-----\nSU" + "A2" * 28 + "\n",
            "-----BEGIN USER NKEY SEED-----\n***\n",
        ),
        ("eyJhbGciOiJlZDI1NTE5In0.eyJqdGkiOiJYIn0.c2lnbmF0dXJlLW9mLWl0", "***"),
    ],
)
def test_credentials_in_a_text_are_masked_and_the_rest_is_kept(text, clean):
    assert scrub(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "task.settled",
        "ceremony-1:story-2",
        "http://127.0.0.1:8000/v1/chat/completions",
        "http://h:8000/users/@me",
        "https://h/users/@me",
        "https://h:443, mail to a@b.c",
        "usage: prompt_tokens=12, total_tokens: 40",
        "the attempt took longer than its 600 s",
        "max_tokens: expected `int` >= 1",
        "keyboard: qwerty",
    ],
)
def test_a_text_without_credentials_stays_as_it_is(text):
    assert scrub(text) == text


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "piece",
    [
        "a://", "://a:", "://@", "token=", "token='", "token=[", "bearer ", "eyJ", "eyJa.", "SU",
        "a:", '\\"token', "password ", "x",
    ],
)  # fmt: skip
def test_a_long_text_made_to_be_slow_is_scrubbed_in_linear_time(piece):
    scrub(piece * (1_000_000 // len(piece)) + " : @")


@dataclass
class Login:
    user: str
    password: str


def carriers(canary):
    """Return the ways in which a secret gets into a log, as values for a key that tells nothing."""
    as_json = json.dumps({"user": "u", "password": canary})
    texts = [
        f"nats://user:{canary}@127.0.0.1:4222",
        f"https://{canary}@example.com/v1",
        f"tls://user:a/{canary}@example.com",
        f"Bearer {canary}",
        f"Authorization: Basic {canary}",
        f"token={canary}",
        f"api_key: '{canary}'",
        as_json,
        json.dumps(as_json),
        repr({"Authorization": f"Bearer {canary}"}),
    ]
    named = st.sampled_from(SECRET_NAMES)
    return st.one_of(
        st.sampled_from(texts),
        st.sampled_from(texts).map(lambda text: f"cannot connect ({text}), trying again"),
        st.sampled_from(texts).map(str.encode),
        st.sampled_from(texts).map(ConnectionError),
        st.just(Secret(canary)),
        st.just(NatsConfig(url=texts[0], password=Secret(canary), token=Secret(canary))),
        st.just(Login(user="u", password=canary)),
        named.map(lambda name: {name: canary}),
        named.map(lambda name: {name: ["x", {"deep": canary}]}),
        named.map(lambda name: MappingProxyType({name: canary.encode()})),
        st.sampled_from(texts).map(lambda text: {text: 1}),
    )


def wrapped(values):
    return st.recursive(
        values,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=2),
            st.tuples(inner),
            st.dictionaries(st.sampled_from(["detail", "url", "args"]), inner, min_size=1),
        ),
        max_leaves=4,
    )


canaries = st.text("ABCXYZabcxyz0123456789-_~", min_size=4, max_size=12).map("Canary7".__add__)


def failing_with(problem):
    try:
        try:
            raise problem
        except type(problem) as cause:
            raise RuntimeError(f"while asked: {cause}") from cause
    except RuntimeError as error:
        return error


ways = {
    "a key": lambda log, value: log.info("e", value=value),
    "a bound key": lambda log, value: log.bind(value=value).warning("e"),
    "the event itself": lambda log, value: log.info(" ".join(("no", str(value)))),
    "an error": lambda log, value: log.error("e", exc_info=failing_with(ValueError(value))),
    "a library's message": lambda _log, value: logging.getLogger("nats").warning("got %s", value),
    "a library's error": lambda _log, value: logging.getLogger("nats").error(
        "e", exc_info=failing_with(ValueError(value))
    ),
}


@pytest.mark.parametrize("terminal", [False, True], ids=["json", "pretty"])
@pytest.mark.parametrize("way", ways.values(), ids=ways)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_secret_never_gets_out(way, terminal, data):
    canary = data.draw(canaries)
    value = data.draw(wrapped(carriers(canary)))
    stream = Terminal() if terminal else io.StringIO()
    configure_logs("actor", stream=stream)
    way(structlog.get_logger(), value)
    assert stream.getvalue()
    assert canary not in stream.getvalue()


@given(name=st.sampled_from(SECRET_NAMES), value=st.one_of(canaries, st.integers(10**9)))
def test_a_secret_under_its_name_is_masked_at_the_top_and_in_the_context(name, value):
    stream = io.StringIO()
    configure_logs("actor", stream=stream)
    with structlog.contextvars.bound_contextvars(**{name: value}):
        structlog.get_logger().info("e", **{f"other_{name}": value})
    assert str(value) not in stream.getvalue()
    assert events_in(stream)[0][name] == MASK


def test_a_task_id_that_looks_like_a_secret_can_still_be_found(stream):
    configure_logs("actor", stream=stream)
    structlog.get_logger().info("e", task_id="renew-token:story-7")
    assert events_in(stream)[0]["task_id"] == "renew-token:story-7"


def test_an_unset_secret_is_told_from_a_set_one(stream):
    configure_logs("actor", stream=stream)
    structlog.get_logger().info("e", api_key=None, tls={"password": None})
    [event] = events_in(stream)
    assert event["api_key"] is None
    assert event["tls"] == {"password": None}


def test_what_was_logged_is_not_changed_for_its_owner(stream):
    configure_logs("actor", stream=stream)
    mine = {"password": "pw", "list": ["nats://u:p@h"]}
    structlog.get_logger().info("e", mine=mine)
    assert mine == {"password": "pw", "list": ["nats://u:p@h"]}


def test_a_secret_in_an_exception_group_is_masked(stream):
    configure_logs("actor", stream=stream)
    both = ExceptionGroup("both", [ValueError("nats://u:hunter2@h"), KeyError("token=hunter2")])
    structlog.get_logger().error("e", exc_info=both)
    assert "hunter2" not in stream.getvalue()
    assert "nats://***@h" in stream.getvalue()


def test_a_program_that_configures_nothing_sees_no_prompts():
    """In a process of its own: structlog's configuration is global."""
    code = (
        "from agent_actors.observe.logs import keep_quiet; import structlog; keep_quiet();"
        "log = structlog.get_logger(); log.debug('a prompt'); log.info('news'); log.warning('oh')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "oh" in done.stderr
    assert "prompt" not in done.stderr
    assert "news" not in done.stderr


def test_a_client_that_was_there_before_the_program_was_kept_quiet_prints_no_prompts():
    code = (
        "from agent_actors.adapters.vllm import VLLMHTTPClient;"
        "from agent_actors.observe.logs import keep_quiet;"
        "from agent_actors.ports import ChatMessage, ChatRequest;"
        "client = VLLMHTTPClient('http://127.0.0.1:9'); keep_quiet();"
        "question = ChatMessage(role='user', content='a prompt');"
        "client._encoded(ChatRequest(messages=[question]), stream=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_program_that_configured_structlog_keeps_its_own_way():
    code = (
        "import structlog; structlog.configure(processors=[lambda *_: 'mine']);"
        "from agent_actors.observe.logs import keep_quiet; keep_quiet();"
        "structlog.get_logger().info('news')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "mine\n"
