"""What an agent may ask for, judged without a network."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_actors.adapters.reach import Reach
from agent_actors.config_tools import HttpConfig
from agent_actors.errors import ToolRefused

GOOD = "http://example.org"
PUBLIC = ["1.1.1.1", "151.101.1.1", "2606:4700::1111", "64:ff9b::101:101", "::ffff:1.1.1.1"]
OWN = [
    *("127.0.0.1", "127.255.0.9", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("::1", "fc00::1", "fd12:3456::1", "::ffff:10.0.0.1", "64:ff9b::c0a8:101"),
]
CLOSED = [
    *("169.254.169.254", "169.254.170.2", "fe80::1", "fe80::1%eth0", "fd00:ec2::254"),
    *("fd00:ec2::23", "fd20:ce::254", "168.63.129.16", "100.100.100.200", "100.64.0.1"),
    *("0.0.0.0", "0.1.2.3", "::", "::127.0.0.1", "::a00:1", "224.0.0.1", "239.1.1.1", "ff02::1"),
    *("240.0.0.1", "255.255.255.255", "192.0.0.192", "192.0.2.1", "198.18.0.1", "203.0.113.1"),
    *("2002:7f00:1::", "2002:a9fe:a9fe::", "2002:101:101::1", "2001:0:1:2::1", "2001:db8::1"),
    *("::ffff:169.254.169.254", "::ffff:0.0.0.0", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1"),
    *("fec0::1", "100::1", "2606:4700::1111%eth0", "::1%lo", "::ffff:127.0.0.1%lo"),
]


def reach(*hosts: str, **config: object) -> Reach:
    return Reach(HttpConfig(hosts=hosts, **config))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_reached(address: str):
    reach().check_addresses("host", [address])


@pytest.mark.parametrize("address", OWN)
def test_private_addresses_need_to_be_opened(address: str):
    with pytest.raises(ToolRefused, match=r"host has a private address.*allow_private"):
        reach().check_addresses("host", [address])
    reach(allow_private=True).check_addresses("host", [address])


@pytest.mark.parametrize("allow_private", [False, True])
@pytest.mark.parametrize("address", CLOSED)
def test_nothing_opens_addresses_of_neither_the_web_nor_a_network_of_ones_own(
    address: str, *, allow_private: bool
):
    with pytest.raises(ToolRefused, match="nothing opens") as refusal:
        reach(allow_private=allow_private).check_addresses("host", [address])
    assert address not in str(refusal.value)


@given(st.ip_addresses(v=4))
def test_an_address_within_ipv6_is_judged_as_what_it_is(address: object):
    def verdict(text: str) -> str:
        try:
            reach().check_addresses("host", [text])
        except ToolRefused as refusal:
            return str(refusal)
        return ""

    inner = int(address)  # pyright: ignore[reportArgumentType]
    within = f"{inner >> 16:x}:{inner & 0xFFFF:x}"
    assert verdict(str(address)) == verdict(f"::ffff:{within}") == verdict(f"64:ff9b::{within}")


def test_one_bad_address_among_good_ones_is_enough():
    with pytest.raises(ToolRefused):
        reach().check_addresses("host", ["1.1.1.1", "10.0.0.1"])


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("example.org", "http://example.org/"),
        ("example.org", "https://example.org/a?b=c"),
        ("example.org", "https://EXAMPLE.org:443/"),
        ("example.org", "https://example.org./"),
        ("Example.ORG", "http://example.org"),
        ("example.org:8080", "http://example.org:8080/"),
        ("example.org:443", "https://example.org/"),
        ("*.example.org", "http://a.example.org/"),
        ("*.example.org", "http://a.b.example.org/"),
        ("xn--bcher-kva.example", "http://bücher.example/"),
        ("my_host", "http://my_host/"),
        ("1.1.1.1", "http://1.1.1.1/"),
    ],
)
def test_a_host_on_the_list_is_reached(pattern: str, url: str):
    assert reach(pattern).parse(url).raw_host


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("example.org", "http://www.example.org/"),
        ("example.org", "http://example.org:8080/"),
        ("example.org", "http://example.org:443/"),
        ("example.org", "https://example.org:80/"),
        ("example.org:443", "http://example.org/"),
        ("example.org:8080", "http://example.org/"),
        ("*.example.org", "http://example.org/"),
        ("*.example.org", "http://evilexample.org/"),
        ("*.example.org", "http://a.example.org.evil.com/"),
        ("*.example.org", "http://a.example.org:8080/"),
        ("example.org", "http://example.org.evil.com/"),
        ("*.0.0.1", "http://127.0.0.1/"),
        ("example.org", "http://exampleXorg/"),
        ("xn--bcher-kva.example", "http://bucher.example/"),
    ],
)
def test_a_host_beside_the_list_is_refused_with_the_list(pattern: str, url: str):
    with pytest.raises(ToolRefused, match=r"tools\.http\.hosts") as refusal:
        reach(pattern).parse(url)
    assert pattern in str(refusal.value)


def test_without_a_list_no_host_is_reached():
    with pytest.raises(ToolRefused, match="allows: none"):
        reach().parse("http://example.org/")


def test_fragments_and_dots_at_the_end_are_left_behind():
    url = reach("example.org").parse("http://EXAMPLE.org./path?a=b#secret")
    assert str(url) == "http://example.org/path?a=b"


def test_an_address_on_the_list_is_judged_before_anything_is_asked():
    with pytest.raises(ToolRefused, match="allow_private"):
        reach("10.0.0.1").parse("http://10.0.0.1/")
    assert reach("10.0.0.1", allow_private=True).parse("http://10.0.0.1/")
    with pytest.raises(ToolRefused, match="nothing opens"):
        reach("169.254.169.254", allow_private=True).parse("http://169.254.169.254/")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.org/", "begins with http"),
        ("ws://example.org/", "begins with http"),
        ("example.org", "begins with http"),
        ("//example.org/", "begins with http"),
        ("http:///etc/passwd", "no name of a host"),
        ("http:example.org", "no name of a host"),
        ("http://user@example.org/", "login"),
        ("http://user:secret@example.org/", "login"),
        ("http://:@example.org/", "login"),
        ("http://example.org /", "spaces"),
        ("http://exam\nple.org/", "control characters"),
        ("http://example.org\\@evil.com/", "backslashes"),
        ("http://ex%61mple.org/", "no name of a host"),
        ("http://a..b/", "no name of a host"),
        ("http://example.org../", "no name of a host"),
        ("http://" + "a" * 64 + ".org/", "no name of a host"),
        ("http://[::1/", "no URL"),
        ("http://example.org:99999/", "no URL"),
        ("http://[::1]/", "IPv6"),
        ("http://[fe80::1%25eth0]/", "IPv6"),
        ("http://2130706433/", "is a number"),
        ("http://0x7f000001/", "is a number"),
        ("http://0177.0.0.1/", "is a number"),
        ("http://127.1/", "is a number"),
        ("http://0/", "is a number"),
        ("http://example.0x/", "is a number"),
    ],
)
def test_urls_that_others_might_read_in_another_way_are_refused(url: str, reason: str):
    with pytest.raises(ToolRefused, match=reason) as refusal:
        reach("example.org", "*.example.org").parse(url)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/b", "https://example.org/b"),
        ("c?d=e#f", "https://example.org/a/c?d=e"),
        ("//example.org/b", "https://example.org/b"),
        ("https://other.example/", "https://other.example/"),
    ],
)
def test_redirections_lead_to_where_the_list_lets_them(location: str, leads_to: str):
    judge = reach("example.org", "other.example")
    assert str(judge.redirected(judge.parse("https://example.org/a/b"), location)) == leads_to


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://example.org/", "from https to http"),
        ("https://evil.com/", r"evil\.com:443 is not among.*example\.org redirects there"),
        ("https://a@example.org/", "login"),
        ("file:///etc/passwd", "begins with http"),
        ("/a b", "spaces"),
    ],
)
def test_redirections_are_judged_like_first_requests(location: str, reason: str):
    judge = reach("example.org")
    with pytest.raises(ToolRefused, match=reason):
        judge.redirected(judge.parse("https://example.org/a/b"), location)


PIECES = st.text("http://example.org@:[]%#?&\\/.１。\t0x17 ")  # noqa: RUF001 - digits of others
ANY_URL = st.one_of(st.text(), *(PIECES.map(start.__add__) for start in ("", "http://", GOOD)))


@given(ANY_URL)
def test_whatever_is_asked_for_or_redirected_to_stays_on_the_list(text: str):
    judge = reach("example.org", "*.example.org")
    first = judge.parse(GOOD)
    for judged in (judge.parse, lambda location: judge.redirected(first, location)):
        with contextlib.suppress(ToolRefused):
            url = judged(text)
            assert f".{url.raw_host}".endswith(".example.org")
            assert (url.scheme, url.port) in {("http", 80), ("https", 443)}
            assert url.raw_user is None
            assert str(url).isascii()


def test_a_method_that_is_not_configured_is_refused_with_those_that_are():
    judge = reach(methods=("GET", "POST"))
    judge.check_method("POST")
    with pytest.raises(ToolRefused, match=r"DELETE .*tools\.http\.methods.*GET, POST"):
        judge.check_method("DELETE")


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "HOST", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "TE"),
        *("Proxy-Authorization", "proxy-connection", "Expect", "X-HTTP-Method-Override"),
        *("", "A B", "A:B", "A\r\nHost", "Ä", "A\x00"),
    ],
)
def test_headers_that_are_not_an_agents_are_refused(name: str):
    with pytest.raises(ToolRefused, match="header"):
        reach().check_headers({name: "x"})


@pytest.mark.parametrize("value", ["a\r\nHost: evil", "a\n", "a\rb", "a\x00", "ä", "\x7f"])
def test_values_that_leave_their_line_are_refused_and_not_repeated(value: str):
    with pytest.raises(ToolRefused, match="the header X-Key has other characters") as refusal:
        reach().check_headers({"X-Key": value})
    assert value not in str(refusal.value)


def test_other_headers_are_an_agents_to_set():
    reach().check_headers({"Authorization": "Bearer x", "Accept": "text/html", "X-Empty": ""})
