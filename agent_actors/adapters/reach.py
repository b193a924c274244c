"""How far into the web an agent reaches: which methods, URLs, headers and addresses.

A URL is judged twice: by its name, before anything is asked of anyone, and by the addresses
that the name means, before a connection is made. Nothing here talks to the network.
"""

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NoReturn

from yarl import URL

from agent_actors.config_tools import HttpConfig
from agent_actors.errors import ToolRefused

Address = IPv4Address | IPv6Address

MAX_ECHO_CHARS = 100
DEFAULT_PORTS = {"http": 80, "https": 443}

# What two parsers of URLs may see differently: WHATWG's drop tabs and line ends and turn
# backslashes into slashes.
_MISREAD = re.compile(r"[\x00-\x20\x7f\\]")
_LABEL = r"[a-z0-9_-]{1,63}"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
# inet_aton(3), and so getaddrinfo(3), reads these as an address: 127.1, 0x7f.1, 2130706433.
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
# Those that say where a message goes and where it ends, and those by which a permitted method
# becomes another one at the server.
_RESERVED_HEADERS = frozenset(
    (
        *("connection", "content-length", "expect", "host", "http2-settings", "keep-alive"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
        *("x-http-method", "x-http-method-override", "x-method-override"),
    )
)
_PROXY_HEADER_PREFIX = "proxy-"

# The one part of IPv6 from which public addresses are given (IANA IPv6 Global Unicast).
_GLOBAL_UNICAST = ip_network("2000::/3")
_6TO4 = ip_network("2002::/16")
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052: how an IPv6-only pod sees the rest of the web
_OWN_NETWORK = tuple(
    ip_network(text)
    for text in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1122, 1918
        *("::1/128", "fc00::/7"),  # RFC 4291, 4193
    )
)
# Services that hand a machine its credentials, where no other rule catches them: some of their
# addresses are public, others in the network that `allow_private` opens.
_METADATA = tuple(
    ip_network(text)
    for text in (
        "fd00:ec2::/32",  # AWS: instance metadata, EKS pod identity
        "fd20:ce::254/128",  # Google Cloud
        "168.63.129.16/32",  # Azure
        "192.0.0.0/24",  # Oracle; of the IETF's own use, though older Pythons call it public
    )
)


class Reach:
    """Judges what is asked for by a pool's configuration; each verb raises ToolRefused."""

    def __init__(self, config: HttpConfig) -> None:
        self._config = config
        self._hosts = tuple(_HostRule(pattern) for pattern in config.hosts)

    def check_method(self, method: str) -> None:
        """Refuse a method that is not configured."""
        if method not in self._config.methods:
            _refuse(
                f"{method} is not among the methods that tools.http.methods of this pool "
                f"allows: {', '.join(self._config.methods)}"
            )

    def check_headers(self, headers: Mapping[str, str]) -> None:
        """Refuse headers that are not an agent's to set, or that would break out of their line."""
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name):
                _refuse(f"{name!r} is no name of a header")
            if not _HEADER_VALUE.fullmatch(value):
                _refuse(f"the header {name} has other characters than printable ASCII")
            if name.lower() in _RESERVED_HEADERS or name.lower().startswith(_PROXY_HEADER_PREFIX):
                _refuse(f"the header {name} is set by the service alone; leave it out")

    def parse(self, text: str) -> URL:
        """Return the URL that is to be asked, its host in the one form that was judged."""
        return self._judged(_parsed(text))

    def redirected(self, url: URL, location: str) -> URL:
        """Return where a redirection leads, judged like a URL that was asked for."""
        try:
            target = self._judged(url.join(_parsed(location)))
        except ToolRefused as refusal:
            raise ToolRefused(f"{refusal} ({url.raw_host} redirects there)") from None
        if url.scheme == "https" and target.scheme != "https":
            _refuse(f"{url.raw_host} redirects from https to http, which anyone could read")
        return target

    def check_addresses(self, host: str, addresses: Sequence[str]) -> None:
        """Refuse a host of which any address is not for agents."""
        for address in addresses:
            self._check_address(host, ip_address(address))

    def _judged(self, url: URL) -> URL:
        if url.scheme not in DEFAULT_PORTS:
            _refuse(f"a URL begins with http:// or https://, not with {url.scheme or 'nothing'}")
        if url.raw_user is not None or url.raw_password is not None:
            _refuse("a URL with a login in it; credentials go into the header Authorization")
        host = (url.raw_host or "").removesuffix(".")
        port = url.port or 0
        literal = self._check_host(host, port, url.scheme)
        if literal is not None:
            self._check_address(host, literal)
        return url.with_host(host).with_fragment(None)

    def _check_host(self, host: str, port: int, scheme: str) -> IPv4Address | None:
        """Refuse a host that is not on the list; return the address if it is written as one."""
        if ":" in host:
            _refuse(f"[{host}] is an IPv6 address, which cannot be on the list: name the host")
        if not _HOST_NAME.fullmatch(host):
            _refuse(f"{host[:MAX_ECHO_CHARS]!r} is no name of a host")
        literal = _ipv4(host)
        if literal is None and _ENDS_IN_NUMBER.fullmatch(host):
            _refuse(f"{host} is a number; an IPv4 address is written as in 192.0.2.1")
        if not any(rule.allows(host, port, scheme) for rule in self._hosts):
            _refuse(
                f"{host}:{port} is not among the hosts that tools.http.hosts of this pool "
                f"allows: {', '.join(self._config.hosts) or 'none'}"
            )
        return literal

    def _check_address(self, host: str, address: Address) -> None:
        address = _unwrapped(address)
        if _is_closed(address):
            _refuse(f"{host} has an address that is no public one, and that nothing opens")
        if not address.is_global and not self._config.allow_private:
            _refuse(f"{host} has a private address; tools.http.allow_private would open those")


class _HostRule:
    """One entry of the list: `host`, `host:port`, `*.host` for what is beneath it."""

    def __init__(self, pattern: str) -> None:
        host, _, port = pattern.lower().partition(":")
        self._beneath = host.removeprefix("*") if host.startswith("*.") else ""
        self._host = host
        self._port = int(port) if port else None

    def allows(self, host: str, port: int, scheme: str) -> bool:
        if port != (self._port or DEFAULT_PORTS[scheme]):
            return False
        if self._beneath:
            return host.endswith(self._beneath) and _ipv4(host) is None
        return host == self._host


def _parsed(text: str) -> URL:
    if _MISREAD.search(text):
        _refuse("a URL has no spaces, control characters or backslashes; percent-encode them")
    try:
        return URL(text)
    except (ValueError, IndexError) as error:  # IndexError: yarl 1.25 at `http://[]@`
        _refuse(f"that is no URL: {str(error)[:MAX_ECHO_CHARS]}")


def _ipv4(host: str) -> IPv4Address | None:
    try:
        return IPv4Address(host)
    except ValueError:
        return None


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that packets to this IPv6 address end at, or the address itself."""
    if isinstance(address, IPv4Address) or address.scope_id is not None:
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_closed(address: Address) -> bool:
    """Tell an address that is neither of the public web nor of a network of one's own.

    Teredo and the rest of 2001::/23 are not global, says Python. 6to4 has been given up
    (RFC 7526), and leads to the IPv4 address that is within it.
    """
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return True
    if any(address in network for network in _METADATA):
        return True
    if any(address in network for network in _OWN_NETWORK):
        return False
    if isinstance(address, IPv6Address) and (address not in _GLOBAL_UNICAST or address in _6TO4):
        return True
    return not address.is_global or address.is_multicast


def _refuse(reason: str) -> NoReturn:
    raise ToolRefused(f"refused: {reason}")
