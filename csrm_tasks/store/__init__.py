"""What a market has delivered: relational tables (SQLite or PostgreSQL) and the event lake."""

from csrm_tasks.store.engine import HEAD, open_store, reading, upgrade, writing

__all__ = ["HEAD", "open_store", "reading", "upgrade", "writing"]
