"""How a task fails: at once and in words, or to be tried again, by the class of its fault.

:mod:`csrm_tasks.steps.faults` tells classes apart. Airflow asks :class:`ByFault` for what a task
raised; what cannot change by another try is raised as ``AirflowFailException``, which it does not
ask about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowFailException, AirflowTaskTimeout

from csrm_tasks.errors import CsrmError

if TYPE_CHECKING:
    from airflow.sdk import Context

RETRIES = 3  # csrm_tasks.steps.faults has the same; it is not imported to parse a file
TIMED_OUT = 1  # further tries of a task that took too long: a training goes on at its checkpoint


class ByFault(RetryPolicy):
    """Network and capacity are tried again later and later, what is not known twice, soon."""

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,
        context: Context | None = None,
    ) -> RetryDecision:
        """Return Airflow's decision about one failed try; ``try_number`` counts from 1."""
        del max_tries, context
        if isinstance(exception, AirflowTaskTimeout):
            again = try_number <= TIMED_OUT
            return RetryDecision.retry() if again else RetryDecision.fail("it took too long again")
        from csrm_tasks.steps.faults import fault_of, wait_after

        seconds, kind = wait_after(exception, try_number), fault_of(exception).value
        if seconds is None:
            return RetryDecision.fail(f"no further try: {kind}")
        return RetryDecision.retry(timedelta(seconds=seconds), f"tried again: {kind}")


def retried() -> dict[str, Any]:
    """Return the arguments of every task that say how often it is tried, and when."""
    # A task whose process was killed has raised nothing: Airflow tries it again by these alone.
    return {
        "retries": RETRIES, "retry_delay": timedelta(seconds=10), "retry_policy": ByFault(),
    }  # fmt: skip


@contextmanager
def refusals_fail(step: str = "") -> Iterator[None]:
    """Let what another try would meet again fail the task at once, in words.

    What did not answer, or is full, is raised as it is: it may be back soon.
    """
    try:
        yield
    except Exception as e:
        from csrm_tasks.release import away, denied
        from csrm_tasks.steps import faults

        who, kind = denied.by(e), faults.fault_of(e)
        if kind is faults.Fault.FINAL:
            said = str(e) if isinstance(e, CsrmError) else away.trouble(str(who), e)
            raise AirflowFailException(said) from e
        if kind is faults.Fault.MEMORY:
            raise AirflowFailException(faults.out_of_memory(step)) from e
        raise
