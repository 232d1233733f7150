"""When a market's DAGs run, and which control arms its weekly one trains."""

from __future__ import annotations

from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator

from csrm_tasks.sections.base import Section


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError) as e:  # which one depends on how it is wrong
        raise ValueError(f"{name!r} is no time zone; give an IANA name such as Asia/Seoul") from e
    return name


Zone = Annotated[str, AfterValidator(_known_zone)]


class Schedule(Section):
    """Cron expressions by the clocks of ``timezone``; null means by hand only.

    A market's days are those of its time zone, whatever lands when: see docs/DATA.md.
    """

    timezone: Zone = "UTC"  # IANA name, such as Asia/Seoul
    ingest: str | None = "0 2 * * *"
    retrain: str | None = "0 4 * * 1"
    refresh: str | None = "0 3 * * *"  # after the night's ingest
    rollout: str | None = "0 6 * * *"  # likewise
    drill: str | None = "0 5 1 * *"


class Controls(Section):
    """Control arms trained beside the weekly model, to see what each part earns."""

    rqa_cold: bool = False  # stage 2 with the cold-start RQA instead of RQA*
    rqa_off: bool = False  # the chosen LLM without titles: what they resolve, by query
    # RQA* without what shoppers did with gold queries: how the chosen LLM reads gold by its titles
    rqa_unclicked: bool = False
    towers_seen: bool = False  # the same towers, taught gold queries, too (no gold pair)
    cross_encoder: bool = False  # one tower that reads query and title together, beside the two
    encoder: str | None = None  # base of a supervised encoder classifier (paper 1, table 2)
    prompt: str | None = None  # an LLM that is asked without training: a local causal model …
    prompt_connection: str | None = None  # … or a model behind this Airflow connection
