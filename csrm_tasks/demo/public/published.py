"""Figures that others have published on the same data, each with where it was read.

Only what was read in a source is here. None was measured by CSRM, and bases of 12 to 14 billion
parameters stand behind most of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published figure; shares, not points."""

    data: str  # cikm2025 | esci
    what: str  # figure
    value: float
    of: str  # whose, and on which rows
    source: str


PAPER_2 = "A Data-Centric Approach to Multilingual E-Commerce Product Search (paper 2)"
EAR_MP, SECOND, FOURTH = "arXiv:2510.23018", "arXiv:2601.05259", "arXiv:2510.21671"
ESCI = "github.com/amazon-science/esci-data at 035d698, README"
KDD = "baseline of Amazon, KDD Cup 2022's public test"
ESCI_FIGURES = ("task 1 nDCG", "task 2 micro-F1", "task 3 micro-F1")
CIKM_FIGURES = ("F1 QC", "F1 QI", "mean F1")
PUBLISHED = (
    Published("cikm2025", "F1 QC", 0.8760, "Qwen3-14B, SFT; dev", f"{PAPER_2}, table 2"),
    Published("cikm2025", "F1 QI", 0.8662, "Qwen3-14B, SFT; dev", f"{PAPER_2}, table 2"),
    Published("cikm2025", "F1 QC", 0.8919, "… augmented, thresholds; dev", f"{PAPER_2}, table 2"),
    Published("cikm2025", "F1 QI", 0.8839, "… augmented, thresholds; dev", f"{PAPER_2}, table 2"),
    Published("cikm2025", "F1 QC", 0.8965, "DcuRAGONS, 1st; final", f"{PAPER_2}, table 3"),
    Published("cikm2025", "F1 QI", 0.8897, "DcuRAGONS, 1st; final", f"{PAPER_2}, table 3"),
    Published("cikm2025", "mean F1", 0.8931, "DcuRAGONS, 1st; final", f"{PAPER_2}, table 3"),
    Published("cikm2025", "mean F1", 0.8889, "Qwen2.5-14B, 2nd; private board", SECOND),
    Published("cikm2025", "mean F1", 0.8865, "paper 2's team, 3rd; final", f"{PAPER_2}, table 3"),
    Published("cikm2025", "mean F1", 0.8857, "Gemma-3 12B, 4th; private test", FOURTH),
    Published("cikm2025", "F1 QC", 0.8796, "EAR-MP, DeBERTa-v3-large", EAR_MP),
    Published("cikm2025", "F1 QI", 0.8744, "EAR-MP, DeBERTa-v3-large", EAR_MP),
    Published("esci", "task 1 nDCG", 0.852, KDD, ESCI),
    Published("esci", "task 2 micro-F1", 0.655, KDD, ESCI),
    Published("esci", "task 3 micro-F1", 0.780, KDD, ESCI),
)


def published(data: str, what: str) -> list[Published]:
    """Return what is kept here of one figure, as listed."""
    return [one for one in PUBLISHED if (one.data, one.what) == (data, what)]
