"""The parts in which Airflow draws the training DAGs, and the last of them, which both share."""

from __future__ import annotations

from collections.abc import Callable

from airflow.sdk import TaskGroup, XComArg
from csrm_wiring import is_approved

# Of the training DAGs, in their order: a title, and what a pointer on it shows
PARTS = {
    "data": ("Data", "the snapshot, and what is live"),
    "retrieval": ("Retrieval", "BM25's pseudo pairs, the retriever, its titles for RQA"),
    "llm": ("LLM", "the relevance LLM, and what it learns from"),
    "rounds": ("Rounds", "self-distillation, merged adapters, the best of all"),
    "towers": ("Towers", "the online towers, taught by the LLM"),
    "judgement": ("Judgement", "gold scores, the bundle, the gate"),
    "release": ("Release", "registered, and promoted if it may be"),
}


def part(name: str) -> TaskGroup:
    """Return one of a training DAG's parts, to add tasks in; their ids stay without a prefix."""
    title, about = PARTS[name]
    return TaskGroup(name, prefix_group_id=False, group_display_name=title, tooltip=about)


def released(task: Callable[..., XComArg], bundle: XComArg, verdict: XComArg) -> None:
    """Record a bundle, and promote it: the last and only risky step guards itself as well."""
    registered = task("register", bundle=bundle, gate=verdict)
    promoted = task("promote", bundle=bundle, gate=verdict, register=registered)
    registered >> is_approved(verdict) >> promoted
