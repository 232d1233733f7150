"""What a search is answered with: the order of its products, by one release or by two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csrm_tasks.release.interleaving import coins, draft
from csrm_tasks.serving.requests import Search
from csrm_tasks.serving.second_stage import Reranked


@dataclass(frozen=True)
class Ranking:
    """Positions in what was asked."""

    order: list[int]  # shown, best first
    defects: list[int]  # left out
    unknown: list[int]  # without a vector and without a title
    releases: list[str] | None = None  # of each shown product, who picked it; "": neither did
    reranked: tuple[Reranked, ...] = ()  # by second stages, of the releases that have one


def interleave(
    stable: Ranking, following: Ranking, names: Sequence[str], seed: str, search: Search
) -> Ranking:
    """Return both rankings as one list; ``names``: of the stable and of the next release.

    A product that was sent twice is shown once. What both leave out is left out.
    """
    ids, first = search.ids(), dict[str, int]()
    for position, name in enumerate(ids):
        first.setdefault(name, position)
    old, new = ([first[ids[i]] if ids[i] else i for i in r.order] for r in (stable, following))
    picked = draft(old, new, coins(seed, search.session_id, search.query))
    by_team = {"stable": names[0], "next": names[1], None: ""}
    shown, out = {ids[i] or i for i in picked}, {*stable.defects} & {*following.defects}
    return Ranking(
        list(picked),
        sorted(i for i in out if (ids[i] or i) not in shown),
        sorted({*stable.unknown, *following.unknown}),
        [by_team[team] for team in picked.values()],
        tuple(dict.fromkeys((*stable.reranked, *following.reranked))),
    )
