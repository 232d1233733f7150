"""What is said when a database or an object store does not answer in the middle of a release.

The ledger (database) decides and the routing document (object store) is what servers follow, so
either of them away can leave a command half done. It is safe to repeat; until then a person needs
one line: what is served now, and what to do. Nobody is served by MLflow: a move of a release goes
on without it, and it is repaired when it answers (:mod:`.views`). What cannot go on (a
registration, a training run's figures) is told of in the same line. What answers and does not let
us in (:mod:`.denied`) is told of likewise, with the variables to set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from csrm_tasks.errors import AwayError, CsrmError, DeniedError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import denied, ledger, routing
from csrm_tasks.settings import Settings

Market = TypeVar("Market", str, MarketConfig)
Given = ParamSpec("Given")
Result = TypeVar("Result")

OUR_FAULT = (sa.exc.ProgrammingError, sa.exc.IntegrityError, sa.exc.DataError)
DATABASE = (sa.exc.DBAPIError, sa.exc.TimeoutError)
STORAGE = "the storage"  # a folder
MLFLOW = "MLflow"
OBJECT_STORE = ("botocore", "boto3", "s3transfer")  # not imported for a folder's sake


def one_line(
    act: Callable[Concatenate[Settings, Market, Given], Result],
) -> Callable[Concatenate[Settings, Market, Given], Result]:
    """Let ``act(settings, market, …)`` raise :class:`AwayError` where a store does not answer.

    And :class:`DeniedError` where one does not let us in.
    """

    def told(
        settings: Settings, market: Market, /, *args: Given.args, **given: Given.kwargs
    ) -> Result:
        try:
            return act(settings, market, *args, **given)
        except CsrmError:
            raise
        except Exception as e:
            who = which(e)
            if who is None:
                raise
            name = market if isinstance(market, str) else market.market
            raise told_of(settings, name, who, e) from e

    update_wrapper(told, act)
    return told


def told_of(settings: Settings, market: str, who: str, error: Exception) -> CsrmError:
    """Return the one line about ``who`` does not answer, or does not let us in, and why."""
    now = served(settings, market)
    if denied.by(error) is not None:
        return DeniedError(
            f"{trouble(who, error)}; {now}; then run it again: nothing happens twice"
        )
    return AwayError(
        f"{trouble(who, error)}; {now}; run it again when it answers: nothing happens twice"
    )


def trouble(who: str, error: BaseException) -> str:
    """Say that ``who`` does not answer, or does not let us in and what to set."""
    closed = denied.by(error)
    if closed is None:
        return f"{who} does not answer ({kind(error)})"
    return f"{closed} does not let us in ({kind(error)}): {denied.CURES[closed]}"


def which(error: BaseException) -> str | None:
    """Name what does not answer or let us in: a store or MLflow; None for other errors."""
    if (closed := denied.by(error)) is not None:
        return closed
    if isinstance(error, DATABASE) and not isinstance(error, OUR_FAULT):
        return "the database"
    if type(error).__module__.partition(".")[0] in OBJECT_STORE:
        return "the object store"
    if _is_of_mlflow(error):
        return MLFLOW
    return STORAGE if isinstance(error, OSError) else None


def _is_of_mlflow(error: BaseException) -> bool:
    """Whether MLflow's client gave up, or its server said that it cannot (5xx) or not now (429)."""
    package = type(error).__module__.partition(".")[0]
    if package == "requests":  # nothing else here asks by it
        return True
    # Its client says INTERNAL_ERROR of much that no server was asked about.
    asked = type(error).__name__ == "RestException" or str(error).startswith("API request to")
    if package != "mlflow" or not asked:
        return False
    status: int = getattr(error, "get_http_status_code", lambda: 0)()
    return status >= 500 or status == 429


def kind(error: BaseException) -> str:
    """Return an error's kind without its text, which may hold addresses and statements."""
    code = next(filter(None, map(denied.code, denied.causes(error))), None)
    more = code or (error.strerror if isinstance(error, OSError) else None)
    return f"{type(error).__name__}: {more}" if more else type(error).__name__


def served(settings: Settings, market: str, entries: Sequence[ledger.Entry] | None = None) -> str:
    """Say what servers follow now and whether the ledger says more; raises nothing.

    ``entries``: the ledger as the caller has just read it; None: read here.
    """
    try:
        document = routing.read(settings, market)
        if document is None:
            return f"nothing of {market} is served"
        row, weight = document["ledger_seq"], document["weights"]
        arms = [(document[arm], weight[arm]) for arm in ("stable", "next", "holdout")]
    except Exception:  # noqa: BLE001 whatever it is, this line must be said
        return "what is served cannot be read: servers go on with the routing that they have"
    text = ", ".join(f"{release} to {share} %" for release, share in arms if release and share)
    said = f"served now: {text} (row {row} of the ledger)"
    try:
        rows = entries
        if rows is None or not routing.has_row(rows, row):  # another may have published meanwhile
            rows = ledger.verified(settings, market)
        turn = ledger.last_serving_row(rows)
    except Exception:  # noqa: BLE001
        return said
    if not routing.has_row(rows, row):
        return f"{said}; this ledger is older and does not have that row"
    if turn is None or turn.seq <= row:
        return said
    return f"{said}, but {turn.release_id} was {turn.action} by row {turn.seq}, which is not served"
