"""How many pairs have raters enough for gold, in a store that is there already."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import Settings


def rated_enough(config: MarketConfig, settings: Settings) -> tuple[int, int] | None:
    """Return pairs, and their queries, that ``snapshot.gold_raters`` raters graded so far.

    None where this installation has no store yet, or one of another version; none is made or
    changed. Whether they agree, and whether an
    earlier snapshot has learnt from the query, is for the snapshot to say (A10).
    """
    url = sa.make_url(settings.db_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        return None
    from csrm_tasks.store import HEAD, reading
    from csrm_tasks.store.engine import connect, revision_of
    from csrm_tasks.store.tables import LABELS

    engine = connect(settings.db_url)
    if revision_of(engine) != HEAD:
        return None

    named = sa.func.count(sa.distinct(sa.func.nullif(LABELS.c.rater_id, "")))
    nameless = sa.func.sum(sa.case((LABELS.c.rater_id == "", 1), else_=0))
    pairs = (
        sa.select(LABELS.c.locale, LABELS.c.query, LABELS.c.product_id)
        .where(LABELS.c.market == config.market, LABELS.c.locale.in_(config.gold_locales))
        .group_by(LABELS.c.locale, LABELS.c.query, LABELS.c.product_id)
        .having(named + nameless >= config.snapshot.gold_raters)
        .subquery()
    )
    asked = sa.func.count(sa.distinct(pairs.c.locale + "/" + pairs.c.query))
    counted = sa.select(sa.func.count(), asked)
    with reading(engine) as connection:
        found, queries = connection.execute(counted.select_from(pairs)).one()
    return int(found), int(queries)
