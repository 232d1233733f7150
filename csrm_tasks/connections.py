"""The URL that an Airflow connection means, whichever way it was written down."""

from __future__ import annotations

from urllib.parse import urlsplit

from csrm_tasks.errors import ConfigError

WEB = ("http", "https")


def url_of(
    conn_type: str, host: str | None, schema: str | None, port: int | None, path: str = ""
) -> str:
    """Return the URL of a connection's fields; ``path`` where they have none.

    As a URI a connection is the URL with the token as password (``https://:token@host/v1``):
    Airflow then holds the scheme as its type and the path as its schema. As fields its host is a
    whole URL, or a host name with schema (http or https), type and port as Airflow's HTTP hook
    reads them. Where nothing says so, it is https. Raises :class:`ConfigError` without a host.
    """
    name, said, query = (host or "").strip(), (schema or "").strip("/ "), ""
    if not name:
        raise ConfigError("the connection has no host: give it as https://:token@host/path")
    scheme = said if said in WEB else conn_type
    path = path if said in WEB or not said else said
    if "://" in name:
        found = urlsplit(name)
        scheme, name, path = found.scheme, found.netloc, found.path.strip("/") or path
        query = f"?{found.query}" if found.query else ""
    elif ":" in name:
        name = f"[{name}]"  # an address of IPv6
    if port and urlsplit(f"//{name}").port is None:
        name = f"{name}:{port}"
    return f"{scheme if scheme in WEB else 'https'}://{name}/{path}{query}"
