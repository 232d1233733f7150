"""The release as an MLflow pyfunc, as code: MLflow runs this file, nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Only MLflow imports this module: it stands in the model's folder as its code.
import mlflow.pyfunc  # noqa: TID253
from mlflow.exceptions import MlflowException  # noqa: TID253
from mlflow.models import set_model  # noqa: TID253

from csrm_tasks.errors import DataError
from csrm_tasks.release.scorer import ReleaseScorer


class ReleaseModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """``predict`` on a frame with ``query`` and ``product_id`` or ``title``, brand, category."""

    def load_context(self, context: Any) -> None:
        """Load the bundle that was registered."""
        self.scorer = ReleaseScorer(Path(context.artifacts["bundle"]))

    # No type hints: MLflow would take them for its own schema and refuse missing columns.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return em, defect (probabilities), is_defect, promotion; one row per input row.

        A row without query, or with neither a known product nor a title, is refused with its
        number.
        """
        rows = len(model_input)

        def column(name: str) -> list[str | None]:
            if name not in model_input.columns:
                return [None] * rows
            return [v if isinstance(v, str) else None for v in model_input[name].tolist()]

        queries = [q or "" for q in column("query")]
        about = zip(column("title"), column("brand"), column("category"), strict=True)
        titles = [t and self.scorer.product_text(t, b or "", c or "") for t, b, c in about]
        try:
            scored = self.scorer.score(queries, column("product_id"), titles)
        except DataError as e:  # answered as 400 with its reason, not as a failure of the server
            raise MlflowException.invalid_parameter_value(str(e)) from e
        frame = type(model_input)
        return frame({name: values for name, values in scored._asdict().items()})


set_model(ReleaseModel())
