"""What Airflow shows on a task's page (csrm_tasks/steps/docs.py)."""

from __future__ import annotations

from inspect import getdoc

from airflow.sdk import DAG, get_parsing_context

from csrm_tasks.steps.docs import task_doc


def explain(dag: DAG) -> None:
    """Have each task's page say what its step does, reads and makes, and what to do if it fails.

    Tasks that run no step have the docstring of their function: Airflow sets it, but where they are
    mapped. In a task's own process only that task is asked for its page, by those who collect
    lineage.
    """
    own = get_parsing_context().task_id
    for one in [dag.get_task(own)] if own and own in dag.task_ids else dag.tasks:
        given = (one.partial_kwargs if one.is_mapped else vars(one)).get("op_kwargs") or {}
        if "step" in given:
            doc = task_doc(given["step"], given["inputs"])
        elif one.is_mapped:
            doc = getdoc(getattr(one, "python_callable", None)) or ""
        else:
            continue
        if one.is_mapped:
            one.partial_kwargs["doc_md"] = doc
        else:
            one.doc_md = doc
