"""The sections of a market file, one frozen model per room; unknown keys are refused.

Defaults are the papers' values (A5, A22, A31); the demo market's file overrides what a laptop
needs smaller. A field exists only where a step reads it.
"""

from csrm_tasks.sections.ablation import Ablation
from csrm_tasks.sections.base import FORMS, Rates, Section
from csrm_tasks.sections.curation import Filter
from csrm_tasks.sections.data import Behaviour, Health, Ingest, Limits, Snapshot, Spark
from csrm_tasks.sections.flow import Controls, Schedule, WeekOfDays
from csrm_tasks.sections.llm import (
    Augmentation,
    Distillation,
    Llm,
    Lora,
    MergeMethod,
    Mixture,
    Negatives,
    Pretraining,
)
from csrm_tasks.sections.notify import Notify
from csrm_tasks.sections.release import (
    COMPARED,
    Gate,
    Release,
    Retention,
    Rollout,
    Serving,
    Step,
)
from csrm_tasks.sections.retrieval import Ebr, Mining, Retrieval, RqaText, SameClass
from csrm_tasks.sections.review import Review
from csrm_tasks.sections.second_stage import SecondStage
from csrm_tasks.sections.towers import Towers
from csrm_tasks.sections.workers import Worker

__all__ = [
    "COMPARED",
    "FORMS",
    "Ablation",
    "Augmentation",
    "Behaviour",
    "Controls",
    "Distillation",
    "Ebr",
    "Filter",
    "Gate",
    "Health",
    "Ingest",
    "Limits",
    "Llm",
    "Lora",
    "MergeMethod",
    "Mining",
    "Mixture",
    "Negatives",
    "Notify",
    "Pretraining",
    "Rates",
    "Release",
    "Retention",
    "Retrieval",
    "Review",
    "Rollout",
    "RqaText",
    "SameClass",
    "Schedule",
    "SecondStage",
    "Section",
    "Serving",
    "Snapshot",
    "Spark",
    "Step",
    "Towers",
    "WeekOfDays",
    "Worker",
]
