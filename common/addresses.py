"""Which addresses a user's URL may reach: public ones alone, and what the settings exempt.

A name is resolved once and every address it has is checked; the connection goes to a checked
address, never to the name, so that a second answer of the name server changes nothing.

Sources: the IANA special-purpose registries as ``ipaddress`` holds them; RFC 6052 (NAT64),
RFC 3056 (6to4), RFC 4380 (Teredo) for addresses inside addresses.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote, urlsplit

from common.errors import UrlForbidden, UrlUnreachable
from common.settings import Settings

DEFAULT_PORTS = {"http": 80, "https": 443}
GLOBAL_UNICAST = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")
PATH_CHARACTERS = "/%:@!$&'()*+,;=~-._?[]"  # stay as they are


@dataclass(frozen=True)
class Target:
    """A URL taken apart. ``host`` is ASCII; ``path`` begins with a slash and holds the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """The URL as it is asked for."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """Host and port for the Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(url: str) -> Target:
    """Take an http or https URL apart. Raises UrlForbidden when it is none that we follow."""
    if any(char.isspace() or not char.isprintable() or char == "\\" for char in url):
        raise UrlForbidden("the URL holds spaces, backslashes or control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("ascii" if ":" in parts.netloc[:1] else "idna")
    except ValueError as error:  # UnicodeError is one
        raise UrlForbidden(f"not a URL: {error}") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise UrlForbidden("only http and https URLs are followed")
    if "@" in parts.netloc:
        raise UrlForbidden("a URL must not hold a user name or password")
    if not host or port == 0:
        raise UrlForbidden("the URL names no host")
    path = quote(parts.path or "/", safe=PATH_CHARACTERS)
    if parts.query:
        path += "?" + quote(parts.query, safe=PATH_CHARACTERS)
    return Target(parts.scheme, host.decode(), port or DEFAULT_PORTS[parts.scheme], path)


def check_url(settings: Settings, url: str) -> Target:
    """Check all of a URL that can be checked without asking a name server; return its parts.

    Raises:
        UrlForbidden: no http or https URL, or the literal address of a place that is not public.
    """
    target = parse_url(url)
    try:
        address = ip_address(target.host)
    except ValueError:
        return target
    if not _may_reach(settings, target, address):
        raise UrlForbidden(f"{target.host} is not a public address")
    return target


def resolve(settings: Settings, target: Target) -> list[str]:
    """Return the addresses of a target, every one of them checked.

    Raises:
        UrlForbidden: one of them is not public.
        UrlUnreachable: the name has none.
    """
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UrlUnreachable(f"{target.host} has no address: {error}") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not _may_reach(settings, target, ip_address(address)):
            raise UrlForbidden(f"{target.host} is not at a public address")
    return addresses


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of the public internet, also looked at as what it carries."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not address.is_reserved
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if address not in GLOBAL_UNICAST or not address.is_global:
        return False
    if address.sixtofour is not None:
        return is_public(address.sixtofour)
    return address.teredo is None


def _may_reach(settings: Settings, target: Target, address: IPv4Address | IPv6Address) -> bool:
    if is_public(address):
        return True
    for exempt in filter(None, (part.strip() for part in settings.egress_allow.split(","))):
        if exempt.lower() == f"{target.host.lower()}:{target.port}":
            return True
        try:
            network = ip_network(exempt)
        except ValueError:  # a host and port that are not this one
            continue
        if address in network:
            return True
    return False
