"""The store opens at the newest schema, on SQLite and PostgreSQL, whoever comes first."""

from __future__ import annotations

import multiprocessing

import pytest
import sqlalchemy as sa

from csrm_tasks.errors import ConfigError
from csrm_tasks.store.engine import HEAD, alembic_config, downgrade, open_store, reading, writing
from csrm_tasks.store.models import Base, LedgerEntry

LEDGER = LedgerEntry.__table__


@pytest.fixture
def url(database: str) -> str:
    return database


def test_up_down_up_and_nothing_left_to_migrate(url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    engine = open_store(url)
    with reading(engine) as connection:
        assert ScriptDirectory.from_config(alembic_config(connection)).get_current_head() == HEAD
        context = MigrationContext.configure(
            connection,
            opts={"version_table": "csrm_alembic_version", "compare_type": True},
        )
        assert compare_metadata(context, Base.metadata) == []
    downgrade(engine, "base")
    assert set(sa.inspect(engine).get_table_names()) == {"csrm_alembic_version"}
    open_store(url)
    assert set(Base.metadata.tables) < set(sa.inspect(engine).get_table_names())


def add_entries(url: str, n: int) -> None:
    engine = open_store(url)
    for _ in range(n):
        with writing(engine, "demo") as connection:
            seq = connection.scalar(sa.select(sa.func.count()).select_from(LEDGER))
            row = {"market": "demo", "seq": seq, "at": "", "actor": "", "action": "", "reason": ""}
            empty = {
                "release_id": None,
                "previous": None,
                "payload": {},
                "prev_hash": "",
                "hash": "",
            }
            connection.execute(sa.insert(LEDGER), [row | empty])


def test_processes_that_open_a_new_store_and_write_at_once(url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=add_entries, args=(url, 10)) for _ in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(120)
    assert [w.exitcode for w in workers] == [0, 0, 0]
    with reading(open_store(url)) as connection:
        found = connection.scalars(sa.select(LEDGER.c.seq).order_by(LEDGER.c.seq)).all()
    assert found == list(range(30))  # a lost update would have repeated a number and failed


def test_a_reader_sees_one_state_while_a_writer_commits(url: str) -> None:
    engine = open_store(url)
    count = sa.select(sa.func.count()).select_from(LEDGER)
    with reading(engine) as connection:
        before = connection.scalar(count)
        add_entries(url, 1)
        assert connection.scalar(count) == before
    with reading(engine) as connection:
        assert connection.scalar(count) == (before or 0) + 1


def test_a_failed_transaction_leaves_nothing(url: str) -> None:
    engine = open_store(url)
    table = Base.metadata.tables["days"]
    row = {"market": "m", "day": "2026-01-04", "digest": "", "rows_in": 1, "quarantined": 0}
    with pytest.raises(RuntimeError), writing(engine, "m") as connection:
        connection.execute(sa.insert(table), [row | {"share": 0.0}])
        raise RuntimeError
    with reading(engine) as connection:
        assert connection.execute(sa.select(table)).all() == []


@pytest.mark.parametrize("bad", ["mysql://u:secret@h/d", "postgresql://u:secret@h/d", "no url"])
def test_other_databases_are_refused_without_showing_the_password(bad: str) -> None:
    with pytest.raises(ConfigError, match="CSRM_DB_URL") as e:
        open_store(bad)
    assert "secret" not in str(e.value)
