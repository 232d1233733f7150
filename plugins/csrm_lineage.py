"""Lineage: what a task's step read and made, for Airflow's OpenLineage provider where it is there.

``[openlineage] extractors = csrm_lineage.StepExtractor`` has it asked. A task of ours notes the
reference of what it made (``dags/csrm_wiring.py``); names are ``csrm_tasks/steps/lineage.py``'s.
Only names of markets, steps, days and releases are told: no address, no connection.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

log = logging.getLogger("csrm")
MADE = "csrm_made"  # extra of the hook lineage: the reference of an artifact


def __getattr__(name: str) -> Any:  # noqa: ANN401 a class whose base may not be installed
    if name == "StepExtractor":
        return step_extractor()
    raise AttributeError(name)


@cache
def step_extractor() -> type:
    """Return the extractor; its base is loaded only once somebody asks for it."""
    from airflow.providers.openlineage.extractors.base import BaseExtractor, OperatorLineage

    class StepExtractor(BaseExtractor):
        """Data sets of tasks that run a step; any other task is left to Airflow's own ways."""

        @classmethod
        def get_operator_classnames(cls) -> list[str]:
            """Return the kind of operator that ``@task`` makes."""
            return ["_PythonDecoratedOperator"]

        def _execute_extraction(self) -> OperatorLineage:
            return OperatorLineage()  # before a task has run nobody knows what it will read

        def extract_on_complete(self, task_instance: RuntimeTaskInstance) -> OperatorLineage:
            """Return what the task's step read and made, by the reference that the task noted."""
            return OperatorLineage(**datasets(str(task_instance.id)))

    return StepExtractor


def datasets(task_instance: str) -> dict[str, list[Any]]:
    """Return inputs and outputs of what a task noted; trouble is one line in the log."""
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage import conf
    from airflow.sdk.lineage import get_hook_lineage_collector

    from csrm_tasks.errors import CsrmError
    from csrm_tasks.settings import load_settings
    from csrm_tasks.steps.lineage import edges_of

    found: dict[str, list[Any]] = {"inputs": [], "outputs": []}
    for extra in get_hook_lineage_collector().collected_assets.extra:
        if extra.key != MADE or extra.value["task_instance"] != task_instance:
            continue
        ref = extra.value["ref"]
        try:
            edges = edges_of(load_settings(market=ref.split("/")[0]), ref)
        except (CsrmError, OSError) as e:
            log.warning("lineage: %s is not told of (%s)", ref, type(e).__name__)
            continue
        for side, names in (("inputs", edges.read), ("outputs", edges.made)):
            found[side] += [Dataset(namespace=conf.namespace(), name=name) for name in names]
    return found
