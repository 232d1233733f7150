"""MLflow, object store and database that stop answering at any one of their calls.

A call fails before it takes effect, or after it (the answer is lost); once, or from then on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy.engine.default import DefaultDialect

from csrm_tasks.blobs import LocalBlobs
from tests.release_world import Registry


@dataclass
class Outage:
    """Counts calls of one kind and fails the ``nth`` (0: none)."""

    nth: int
    error: Callable[[], Exception]
    late: bool = False  # the call took effect, its answer was lost
    lasting: bool = True  # so do all calls after it
    calls: int = 0

    def wrap(self, true: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``true``, counted."""

        def call(*args: Any, **given: Any) -> Any:
            self.calls += 1
            over = self.calls > self.nth and self.lasting
            down = bool(self.nth) and (self.calls == self.nth or over)
            if down and not (self.late and self.calls == self.nth):
                raise self.error()
            result = true(*args, **given)
            if down:
                raise self.error()
            return result

        return call


class FlakyRegistry:
    """A registry every call of which is counted."""

    def __init__(self, true: Registry, outage: Outage) -> None:
        self._true, self._outage = true, outage

    def __getattr__(self, name: str) -> Any:
        return self._outage.wrap(getattr(self._true, name))


def mlflow_500() -> Exception:
    return RestException({"error_code": "INTERNAL_ERROR", "message": "500: secret-host"})


def mlflow_gone() -> Exception:
    return MlflowException("API request to http://secret-host failed")


def store_gone() -> Exception:
    return EndpointConnectionError(endpoint_url="http://secret-host")


def store_refuses() -> Exception:
    return ClientError({"Error": {"Code": "SlowDown", "Message": "secret-host"}}, "PutObject")


def disk_full() -> Exception:
    return OSError(28, "No space left on device", "secret-host")


def database_gone() -> Exception:
    return sqlite3.OperationalError("secret-host is not there")


@contextmanager
def _counted(owner: type, names: Sequence[str], outage: Outage) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(owner, name, outage.wrap(getattr(owner, name)))
        yield


def object_store(outage: Outage) -> AbstractContextManager[None]:
    """Let every call on blobs count."""
    return _counted(LocalBlobs, ("read", "put_if_absent", "replace"), outage)


def database(outage: Outage) -> AbstractContextManager[None]:
    """Let every statement (BEGIN is one) and every commit count."""
    return _counted(DefaultDialect, ("do_execute", "do_commit"), outage)


def commits(outage: Outage) -> AbstractContextManager[None]:
    """Let every commit count."""
    return _counted(DefaultDialect, ("do_commit",), outage)
