"""The address that an Airflow connection means, whichever way it was written down."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from csrm_tasks.errors import ConfigError

WEB = ("http", "https")


@dataclass(frozen=True)
class Address:
    """Where requests go, and by which login; the URL has none, so that it may be told."""

    url: str
    login: str = ""
    password: str = field(default="", repr=False)


def address_of(
    conn_type: str,
    host: str | None,
    schema: str | None,
    port: int | None,
    login: str | None = None,
    password: str | None = None,
    path: str = "",
) -> Address:
    """Return the address of a connection's fields; ``path`` where they have none.

    As a URI a connection is the URL with the token as password (``https://:token@host/v1``):
    Airflow then holds the scheme as its type and the path as its schema. As fields its host is a
    whole URL, or a host name with schema (http or https), type and port as Airflow's HTTP hook
    reads them. Where nothing says so, it is https. A login that stands in the host is taken out of
    it; the fields' own comes before. Raises :class:`ConfigError` without a host, and for one that
    is no URL.
    """
    name, said = (host or "").strip(), (schema or "").strip("/ ")
    if not name:
        raise ConfigError("the connection has no host: give it as https://:token@host/path")
    scheme = said if said in WEB else conn_type
    path = path if said in WEB or not said else said
    if "://" not in name:
        name = f"//[{name}]" if _is_ipv6(name) else f"//{name}"
    inside = parse_address(name, "the connection's host")
    found = urlsplit(inside.url)
    scheme, name, path = found.scheme or scheme, found.netloc, found.path.strip("/") or path
    query = f"?{found.query}" if found.query else ""
    if port and found.port is None:
        name = f"{name}:{port}"
    url = f"{scheme if scheme in WEB else 'https'}://{name}/{path}{query}"
    return Address(url, login or inside.login, password or inside.password)


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def parse_address(url: str, whose: str) -> Address:
    """Return a URL without the login that stands in it, and the login.

    Raises :class:`ConfigError`, which names ``whose`` it is and nothing of it.
    """
    try:
        found = urlsplit(url)
        _ = found.port  # a login that is not quoted is cut at its first slash, and is no port
    except ValueError:
        raise ConfigError(
            f"{whose} is no URL: write it as https://host:port/path, and a login in it "
            "percent-encoded"
        ) from None
    inside, _, name = found.netloc.rpartition("@")
    login, _, password = inside.partition(":")
    return Address(found._replace(netloc=name).geturl(), unquote(login), unquote(password))
