"""docs/DAGS.md is what the DAGs are, and says of every task which key brings it."""

from __future__ import annotations

import pytest

from tests import dag_reference


@pytest.mark.airflow
def test_the_page_of_the_dags_is_current() -> None:
    """Else: ``python -m tests.dag_reference --write``."""
    assert dag_reference.PAGE.read_text(encoding="utf-8") == dag_reference.reference()
