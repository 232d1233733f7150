"""The question of ``csrm_rollout`` that waits in Airflow, answered by what the board decided.

A run that asks is parked until somebody answers in Airflow, or until the time for it is over, and
the next run waits behind it: a yes on the board would wait as long.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser

log = logging.getLogger("csrm")
ANSWERS = {"approve": "Approve", "reject": "Reject"}  # action of the board → option of the question


def answer(user: BaseUser, market: str, release: str, action: str) -> None:
    """Answer what was asked about ``release``, as Airflow's own page does; raises nothing.

    The ledger has the decision already: where nobody asked, somebody has answered meanwhile or
    Airflow does not take it, a line of the log is all.
    """
    if action not in ANSWERS:
        return
    try:
        _answer(user, f"csrm_rollout__{market}", release, ANSWERS[action])
    except Exception as e:  # noqa: BLE001
        log.warning("board: the question in Airflow is left to its own page (%s)", type(e).__name__)


def _answer(user: BaseUser, dag: str, release: str, option: str) -> None:
    from airflow.api_fastapi.core_api.datamodels.hitl import UpdateHITLDetailPayload
    from airflow.api_fastapi.core_api.routes.public.hitl import update_hitl_detail
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    asked = (
        select(TaskInstance.run_id, TaskInstance.task_id, HITLDetail.body)
        .join(HITLDetail, HITLDetail.ti_id == TaskInstance.id)
        .where(TaskInstance.dag_id == dag, HITLDetail.responded_at.is_(None))
    )
    payload = UpdateHITLDetailPayload(chosen_options=[option])
    with create_session() as session:
        for run, task, body in session.execute(asked).all():
            if f"`{release}`" in (body or ""):  # as `waiting` of csrm_wiring names it
                update_hitl_detail(dag, run, task, payload, user, session)
