"""What the study measures, beside the papers' own figures, and what it claims of it.

Fixed before a seed was trained. A cell is a figure of one arm; a claim compares two arms by a
measure, and is judged by the rules of docs/STUDY.md (:mod:`csrm_tasks.demo.curation.effects`) at
the looks of :mod:`.stopping`. What an arm is trained on, its part says (:mod:`.ladder`,
:mod:`.baselines`, :mod:`.distil`, :mod:`.labels`, :mod:`.curated`).
"""

from __future__ import annotations

from dataclasses import dataclass

from csrm_tasks.demo.paper.measures import MEASURES
from csrm_tasks.demo.study.verdict import Rule
from csrm_tasks.errors import ConfigError

T2, T3 = "paper 1, table 2", "paper 1, table 3"
S51, S52, S62 = ("paper 1, section 5.1", "paper 1, section 5.2", "paper 1, section 6.2")
F3 = "paper 1, figure 3"
OURS = "beside figure 3"
P2, F2 = "paper 2, table 2", "paper 2, figure 2"
# Parts in the order in which they are run: one that needs another's models trains them.
PARTS = ("ladder", "baselines", "titles", "distil", "labels", "curation")
SHARES = (0.1, 0.3, 1.0)  # of the target's train queries, figure 3


@dataclass(frozen=True)
class Cell:
    """A figure of one arm, and the paper's own of what it stands for."""

    part: str
    arm: str
    measure: str
    title: str
    source: str
    paper: float | None = None  # as the paper prints it, None where it prints none


@dataclass(frozen=True)
class Claim:
    """That an arm is above its control (gain), or not below it (no loss), by a measure."""

    part: str
    arm: str
    control: str
    measure: str
    title: str
    source: str
    rule: Rule = "gain"
    told: str | None = None  # the paper's words, where it does not print both arms' figures

    def paper_step(self) -> str:
        """Return the difference that the paper has, in the measure's unit, or its words."""
        if self.told is not None:
            return self.told
        one, other = (paper_figure(a, self.measure) for a in (self.arm, self.control))
        if one is None or other is None:
            return "–"
        what = MEASURES[self.measure]
        step = what.sign * (one - other)
        return f"{100 * step:+.2f}" if what.points else f"{step:+.3f}"


def _f1(part: str, arm: str, title: str, paper: float | None, source: str = T2) -> Cell:
    return Cell(part, arm, "micro_f1", title, source, paper)


CELLS: tuple[Cell, ...] = (
    _f1("baselines", "zero_shot", "prompted, zero-shot (GPT-4o there)", 0.850),
    _f1("baselines", "encoder_small", "encoder SFT, small (RoBERTa-base)", 0.764),
    _f1("baselines", "encoder_large", "encoder SFT, large (RoBERTa-large)", 0.780),
    _f1("ladder", "sft", "SFT, source labels", 0.908),
    _f1("ladder", "mt", "SFT+MT, source labels", 0.916),
    _f1("ladder", "mt_rqa", "SFT+MT+RQA, source labels", 0.937),
    _f1("ladder", "labels", "SFT+MT+RQA, and target labels", 0.951),
    _f1("ladder", "rqa_star", "SFT+MT+RQA*", 0.956),
    _f1("ladder", "sd1", "SFT+MT+RQA*+SD-1", 0.962),
    _f1("ladder", "sd2", "SFT+MT+RQA*+SD-2", 0.965),
    _f1("ladder", "sd3", "SFT+MT+RQA*+SD-3", 0.964),
    Cell("ladder", "sft", "gap", "transfer gap, without MT", S51, 0.689),
    Cell("ladder", "mt", "gap", "transfer gap, with MT", S51, 0.676),
    Cell("ladder", "rqa_star", "fit", "fit of own train labels, RQA* (A18)", "–"),
    Cell("titles", "bm25", "titles", "titles of BM25", S52, 0.65),
    Cell("titles", "ebr", "titles", "titles of the distilled EBR (RQA)", S52, 0.82),
    Cell("titles", "ebr_star", "titles", "titles of RQA*", S52, 0.88),
    Cell("distil", "hard", "defect_f1", "defect: towers by hard labels", T3, 0.7050),
    Cell("distil", "teacher", "defect_f1", "defect: teacher", T3, 0.9518),
    Cell("distil", "student", "defect_f1", "defect: distilled towers", T3, 0.9509),
    Cell("distil", "hard", "em_f1", "EM: towers by hard labels", T3, 0.8150),
    Cell("distil", "teacher", "em_f1", "EM: teacher", T3, 0.9553),
    Cell("distil", "student", "em_f1", "EM: distilled towers", T3, 0.9317),
    *(
        Cell("distil", arm, measure, f"{MEASURES[measure].title}, {when}", S62)
        for measure in ("em_at_1", "defect_at_5", "conversion")
        for arm, when in (("hard", "before"), ("student", "after"))
    ),
    *(
        Cell("labels", f"{arm}_{round(100 * share)}", "micro_f1",
             f"{name}, {round(100 * share)} % of the target's queries labelled", F3)
        for share in SHARES for arm, name in (
            ("hard", "hard labels"), ("sd", "self-distilled"), ("nc", "noise-corrected loss (A51)"),
        )
    ),
    *(
        Cell("labels", f"{arm}_{round(100 * share)}", "fit",
             f"fit of own train labels, {round(100 * share)} %, {name} (A18)", "–")
        for share in SHARES
        for arm, name in (("hard", "hard"), ("sd", "self-distilled"), ("nc", "noise-corrected"))
    ),
    Cell("curation", "sft", "qc_f1", "QC: SFT", P2, 0.8760),
    Cell("curation", "ta", "qc_f1", "QC: + translation", P2, 0.8834),
    Cell("curation", "ta_sns", "qc_f1", "QC: + translation, negatives", P2, 0.8885),
    Cell("curation", "ta_sns_svf", "qc_f1", "QC: + translation, negatives, filter", P2, 0.8873),
    Cell("curation", "ta_sns_thr", "qc_f1", "QC: + translation, negatives, threshold", P2, 0.8919),
    Cell("curation", "sft", "qi_f1", "QI: SFT", P2, 0.8662),
    Cell("curation", "ta", "qi_f1", "QI: + translation", P2, 0.8738),
    Cell("curation", "ta_svf", "qi_f1", "QI: + translation, filter", P2, 0.8799),
    Cell("curation", "ta_svf_thr", "qi_f1", "QI: + translation, filter, threshold", P2, 0.8839),
)  # fmt: skip

CLAIMS: tuple[Claim, ...] = (
    Claim("baselines", "encoder_large", "encoder_small", "micro_f1", "a larger encoder", T2),
    Claim("baselines", "sft", "encoder_small", "micro_f1", "SFT over the encoder", T2),
    Claim("baselines", "sft", "zero_shot", "micro_f1", "SFT over the prompted model", T2),
    Claim("ladder", "mt", "sft", "micro_f1", "MT", T2),
    Claim("ladder", "mt_rqa", "mt", "micro_f1", "RQA", T2),
    Claim("ladder", "labels", "mt_rqa", "micro_f1", "target labels", T2),
    Claim("ladder", "rqa_star", "labels", "micro_f1", "RQA* over RQA", T2),
    Claim("ladder", "sd1", "rqa_star", "micro_f1", "SD-1", T2),
    Claim("ladder", "sd2", "sd1", "micro_f1", "SD-2 over SD-1", T2),
    Claim("ladder", "sd3", "sd2", "micro_f1", "SD-3 is not below SD-2", T2, "no loss"),
    Claim("ladder", "mt", "sft", "gap", "MT narrows the transfer gap", S51),
    Claim("titles", "ebr", "bm25", "titles", "the distilled EBR's titles over BM25's", S52),
    Claim("titles", "ebr_star", "ebr", "titles", "RQA*'s titles over RQA's", S52),
    Claim("distil", "student", "hard", "defect_f1", "defect: distilled over hard labels", T3),
    Claim("distil", "student", "teacher", "defect_f1",
          "defect: the student is not below its teacher", T3, "no loss"),
    Claim("distil", "student", "hard", "em_f1", "EM: distilled over hard labels", T3),
    Claim("distil", "teacher", "student", "em_f1", "EM: the teacher is above its student", T3),
    Claim("distil", "student", "hard", "em_at_1", "EM@1, after over before", S62,
          told="+3.5 % of itself"),
    Claim("distil", "student", "hard", "defect_at_5", "Defect@5, less after than before", S62,
          told="45.8 % of itself less"),
    Claim("distil", "student", "hard", "conversion", "session conversion, after over before", S62,
          told="+0.866 % of itself"),
    *(
        Claim("labels", f"sd_{round(100 * share)}", f"hard_{round(100 * share)}", "micro_f1",
              f"self-distillation, {round(100 * share)} % of the queries labelled", F3,
              told="above, the more so with few labels")
        for share in SHARES
    ),
    *(
        Claim("labels", f"nc_{round(100 * share)}", f"hard_{round(100 * share)}", "micro_f1",
              f"noise-corrected loss (A51), {round(100 * share)} % of the queries labelled", OURS,
              told="not in the paper")
        for share in SHARES
    ),
    Claim("curation", "ta", "sft", "qc_f1", "QC: translation", P2),
    Claim("curation", "ta_sns", "ta", "qc_f1", "QC: negatives", P2),
    Claim("curation", "ta_sns_svf", "ta_sns", "qc_f1", "QC: the filter does not lower F1", P2,
          "no loss"),
    Claim("curation", "ta_sns_thr", "ta_sns", "qc_f1", "QC: a threshold of its own", P2),
    Claim("curation", "ta", "sft", "qi_f1", "QI: translation", P2),
    Claim("curation", "ta_svf", "ta", "qi_f1", "QI: filter", P2),
    Claim("curation", "ta_svf_thr", "ta_svf", "qi_f1", "QI: a threshold of its own", P2),
)  # fmt: skip
# Whose curves are drawn; paper 2 finds the peaks at 0.35 to 0.4 (QC) and 0.15 to 0.2 (QI).
CURVES = {"qc": ("ta_sns", "0.35 to 0.40"), "qi": ("ta_svf", "0.15 to 0.20")}


def paper_figure(arm: str, measure: str) -> float | None:
    """Return what the paper prints of an arm; None where it prints nothing."""
    return next((c.paper for c in CELLS if (c.arm, c.measure) == (arm, measure)), None)


def chosen(names: str | None) -> tuple[str, ...]:
    """Return the parts of a comma-separated list, in their order; all of them where there is none.

    Raises :class:`ConfigError` for a name that is no part.
    """
    if names is None:
        return PARTS
    asked = [n.strip() for n in names.split(",") if n.strip()]
    unknown = [n for n in asked if n not in PARTS]
    if unknown or not asked:
        what = repr(unknown[0]) if unknown else "nothing"
        raise ConfigError(f"--only names {what}; the study's parts are {', '.join(PARTS)}")
    return tuple(p for p in PARTS if p in asked)
