"""What stands against a connection: until it is done after all, or nobody tries any more."""

from agent_actors.adapters.jetstream.troubles import Troubles


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_trouble_stands_until_the_like_of_it_is_done():
    troubles = Troubles()
    troubles.note("$KV.agent_ledger.a", "denied")
    troubles.clear("agent.response.completed")
    assert troubles.reason(within_s=60) == "denied"
    troubles.clear("$KV.agent_ledger.b")
    assert troubles.reason(within_s=60) == ""


def test_each_request_of_jetstream_stands_for_itself():
    troubles = Troubles()
    troubles.note("$JS.API.STREAM.INFO.A", "no answer")
    troubles.clear("$JS.API.STREAM.INFO.B")
    assert troubles.reason(within_s=60) == "no answer"
    troubles = Troubles()
    troubles.note("$JS.hub.API.STREAM.INFO.A", "no answer")
    troubles.clear("$JS.hub.API.STREAM.INFO.B")
    assert troubles.reason(within_s=60) == "no answer"


def test_upper_and_lower_case_are_one_since_denials_come_in_lower_case():
    troubles = Troubles()
    troubles.note("$js.api.stream.info.a", "denied")
    troubles.note("$kv.agent_ledger.a", "denied")
    troubles.clear("$JS.API.STREAM.INFO.A")
    troubles.clear("$KV.agent_ledger.a")
    assert troubles.reason(within_s=60) == ""


def test_the_oldest_that_goes_on_is_told_so_that_what_is_told_does_not_flicker():
    clock = Clock()
    troubles = Troubles(clock)
    for clock.now_s, reason in enumerate(("first", "second", "first", "second")):
        troubles.note(reason, reason)
    assert troubles.reason(within_s=60) == "first"


def test_what_nobody_tries_any_more_is_forgotten():
    clock = Clock()
    troubles = Troubles(clock)
    troubles.note("a", "given up")
    clock.now_s = 10
    troubles.note("b", "goes on")
    assert troubles.reason(within_s=10) == "given up"
    clock.now_s = 11
    assert troubles.reason(within_s=10) == "goes on"
    clock.now_s = 21
    assert troubles.reason(within_s=10) == ""
