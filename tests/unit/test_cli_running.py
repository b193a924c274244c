"""How `up` and `serve` stay with a service: over a scripted one."""

import asyncio
import gc
import signal
from collections.abc import Iterator, Sequence

import pytest

from agent_actors.cli import running
from agent_actors.cli.foreground import until_signalled
from agent_actors.config import Config
from agent_actors.contract import ActorStatus, PoolStatus, ServiceStatus, utc_now
from agent_actors.errors import ServiceUnreachable
from agent_actors.supervisor import Ending

STARTING = ActorStatus(agent_id="default-1", state="starting", slots=0, slots_used=0)
POOL = PoolStatus(
    name="default", subjects=[], state="stalled", reason="no consumer", actors=[STARTING]
)
STATUS = ServiceStatus(version="1", supervisor_id="s", started=utc_now(), pools=[POOL])
# What comes of a call: an error, a signal that arrives meanwhile, or nothing of note.
Outcome = Exception | signal.Signals | None


class ScriptedService:
    """Does what it is told when it is asked to be ready, to tell its status, and to stop."""

    def __init__(self, *, ready: Sequence[Outcome] = (), status: Sequence[Outcome] = ()) -> None:
        self.ready = list(ready)
        self.statuses = list(status)
        self.stopping: list[Outcome] = []
        self.stops: list[float | None] = []
        self.kills = 0
        self.ending: Ending | None = None

    def wait_ready(self, timeout_s: float) -> None:
        _play(self.ready)

    def status(self, timeout_s: float = 10.0) -> ServiceStatus:
        _play(self.statuses)
        return STATUS

    def fate(self) -> Ending | None:
        return self.ending

    def stop(self, grace_s: float | None = None) -> None:
        self.stops.append(grace_s)
        _play(self.stopping)

    def kill(self) -> None:
        self.kills += 1

    async def ended(self) -> Ending:
        if not self.ending:
            await asyncio.Event().wait()
        return self.ending


def _play(script: list[Outcome]) -> None:
    outcome = script.pop(0) if script else None
    if isinstance(outcome, signal.Signals):
        signal.raise_signal(outcome)
    elif outcome:
        raise outcome


@pytest.fixture(autouse=True)
def same_signals_afterwards() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running, "ASK_EVERY_S", 0.0)


class Stage:
    """Runs a service and keeps what was said of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.said: list[ServiceStatus] = []

    def run(self, service: ScriptedService, *, watched: Outcome = None, within_s=None) -> None:
        async def watch() -> None:
            _play([watched])
            await asyncio.Event().wait()

        self._patch.setattr(running, "start_service", lambda _, **__: service)
        with asyncio.Runner() as runner:
            running.run_service(
                Config(),
                runner,
                say_ready=self.said.append,
                watch_also=watch,
                ready_within_s=within_s,
            )


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_a_signal_drains_the_service_once(stage: Stage):
    service = ScriptedService()
    with pytest.raises(KeyboardInterrupt):
        stage.run(service, watched=signal.SIGINT)
    assert stage.said == [STATUS]
    assert service.stops == [None]


def test_a_signal_before_it_is_ready_drains_it_too(stage: Stage):
    service = ScriptedService(ready=[signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        stage.run(service)
    assert stage.said == []
    assert service.stops == [None]


def test_a_second_signal_has_tasks_given_back_now(stage: Stage):
    service = ScriptedService()
    service.stopping = [signal.SIGINT]
    with until_signalled():
        stage.run(service, watched=signal.SIGINT)
    assert service.stops == [None, 0.0]
    assert service.kills == 0


def test_a_second_signal_that_comes_as_soon_as_the_first_is_told_is_heard(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    service = ScriptedService()
    signals: list[Outcome] = [signal.SIGINT]
    monkeypatch.setattr(running.click, "echo", lambda *_, **__: _play(signals))
    with until_signalled():
        stage.run(service, watched=signal.SIGINT)
    assert service.stops == [0.0]


def test_a_third_signal_kills_and_a_fourth_changes_nothing(stage: Stage):
    service = ScriptedService()
    service.stopping = [signal.SIGINT, signal.SIGINT]
    with until_signalled():
        try:
            stage.run(service, watched=signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
    assert service.stops == [None, 0.0]
    assert service.kills == 1


def test_it_ends_in_good_order_when_somebody_else_has_drained_the_service(
    stage: Stage, caplog: pytest.LogCaptureFixture
):
    service = ScriptedService()
    service.ending = "drained"
    stage.run(service)
    assert stage.said == [STATUS]
    assert (service.stops, service.kills) == ([], 1)
    gc.collect()  # asyncio then complains of errors that nobody has looked at
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_an_error_leaves_the_service_as_it_is(stage: Stage):
    service = ScriptedService()
    with pytest.raises(ServiceUnreachable, match="a part has ended"):
        stage.run(service, watched=ServiceUnreachable("a part has ended"))
    assert service.stops == []


def test_it_waits_for_a_service_that_takes_its_time(stage: Stage):
    service = ScriptedService(ready=[ServiceUnreachable(), ServiceUnreachable(), None])
    with pytest.raises(KeyboardInterrupt):
        stage.run(service, watched=signal.SIGINT)
    assert stage.said == [STATUS]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ([], "pool default: no consumer; waiting for default-1, for which Ray may lack"),
        ([ServiceUnreachable()], "the supervisor is silent"),
    ],
)
def test_a_service_that_is_not_ready_in_time_is_told_by_what_is_missing(
    stage: Stage, status: Sequence[Outcome], said: str
):
    service = ScriptedService(ready=[ServiceUnreachable("the supervisor is silent")], status=status)
    with pytest.raises(ServiceUnreachable, match=f"not ready after 0 s: {said}"):
        stage.run(service, within_s=0.0)


def test_one_that_is_superseded_before_it_is_ready_ends_in_good_order(
    stage: Stage, capsys: pytest.CaptureFixture[str]
):
    service = ScriptedService(ready=[ServiceUnreachable("its supervisor has ended")])
    service.ending = "superseded"
    stage.run(service)
    assert (stage.said, service.stops, service.kills) == ([], [], 0)
    assert "Another service has taken over: this one ends." in capsys.readouterr().err


def test_one_whose_supervisor_cannot_be_made_says_why(stage: Stage):
    service = ScriptedService(ready=[ServiceUnreachable("the runtime_env is wrong")])
    service.ending = "drained"
    with pytest.raises(ServiceUnreachable, match="the runtime_env is wrong"):
        stage.run(service)


def test_a_service_that_falls_silent_for_good_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(running, "LOST_AFTER_S", 0.0)
    silent = ServiceUnreachable("the supervisor is silent")
    service = ScriptedService(status=[None, None, silent])
    with pytest.raises(ServiceUnreachable, match="the supervisor is silent"):
        stage.run(service)
    assert service.statuses == []


def test_a_service_that_comes_back_is_kept(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running, "LOST_AFTER_S", 3600.0)
    silent = ServiceUnreachable("the supervisor is restarting")
    service = ScriptedService(status=[None, silent, silent, None, signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        stage.run(service)
    assert service.stops == [None]
