"""The report's part on which options of the market dev has kept in this run (A41)."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from csrm_tasks.evaluation.report import parts

Json = Mapping[str, Any]


def ablation_part(ablation: Json | None) -> str:
    """Return the section on the facts of the step ``ablate``; "" where the run had none."""
    if ablation is None:
        return ""
    rows = [
        [
            f"<code>{escape(o['option'])}</code>",
            parts.estimate(o["delta"], signed=True),
            "" if o["hard"] is None else parts.estimate(o["hard"], signed=True),
            ", ".join(parts.number(d, signed=True) for d in o["by_seed"]),
            _kept(o["kept"]),
            f'<span class="text">{escape(o["reason"])}</span>',
        ]
        for o in ablation["options"]
    ]
    caption = (
        f"F1 on dev ({escape(ablation['dev_locale'])}, {ablation['dev_queries']:,} queries; of "
        f"{escape(', '.join(ablation['tasks']))}, each option by the tasks that it changes) of "
        f"{ablation['seeds']} short trainings ({ablation['steps']:,} steps) with everything minus "
        "those without the option, with 90 % limits to either side that count other queries and "
        f"other seeds (a difference varies by {ablation['noise']:.3f} from seed to seed). One that "
        "others have measured to help is dropped where dev rules out that it brings "
        f"{ablation['gain']:g}, another is kept where a loss of {ablation['margin']:g} is ruled out"
    )
    head = ["option", "difference", "precision on near wrong pairs", "by seed", "", "why"]
    return (
        "<h2>What dev has kept of the market’s options</h2>"
        '<p class="note">Dropped ones are off in this run’s trainings. Dev also chooses states, '
        "rounds and the temperature, so figures on it are no measure of the chosen model: gold is."
        "</p>" + parts.table(caption, head, rows)
    )


def _kept(kept: bool) -> str:
    tone, sign, word = ("good", "✓", "kept") if kept else ("open", "–", "dropped")
    return f'<span class="chip {tone}"><span aria-hidden="true">{sign}</span> {word}</span>'
