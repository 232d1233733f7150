"""The release as an MLflow pyfunc, as code: MLflow runs this file, nothing is unpickled."""

from __future__ import annotations

from numbers import Integral, Real
from pathlib import Path

# Only MLflow imports this module: it stands in the model's folder as its code.
import mlflow.pyfunc  # noqa: TID253
from mlflow.exceptions import MlflowException  # noqa: TID253
from mlflow.models import set_model  # noqa: TID253

from csrm_tasks.errors import DataError
from csrm_tasks.release.bundle.scorer import ReleaseScorer

EXACT = 2**53  # from here on two integers may be one float


def text(value: object, name: str, row: int) -> str:
    """Return a value of a text column as text.

    MLflow's server hands numbers of JSON on as numbers, and a column of integers with a gap as
    floats: 7, 7.0 and "7" are one product. Raises :class:`DataError` for what is no text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise DataError(f"row {row}: {name} is a {type(value).__name__}; give it as text")
    if isinstance(value, Integral):
        return str(int(value))
    number = float(value)
    if not -EXACT < number < EXACT:
        raise DataError(f"row {row}: {name} is {value}, whose digits are lost; give it as text")
    return str(int(number)) if number.is_integer() else str(value)


class ReleaseModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """``predict`` on a frame with ``query`` and ``product_id`` or ``title``, brand, category."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        """Load the bundle that was registered."""
        self.scorer = ReleaseScorer(Path(context.artifacts["bundle"]))

    # No type hints: MLflow would take them for its own schema and refuse missing columns.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return em, defect (probabilities), is_defect, rank_score; one row per input row.

        A row without query, or with neither a known product nor a title, is refused with its
        number, and so is a value that is no text: see :func:`text`.
        """
        rows = len(model_input)

        def column(name: str) -> list[str | None]:
            if name not in model_input.columns:
                return [None] * rows
            given = model_input[name]
            rows_of = enumerate(zip(given.tolist(), given.isna(), strict=True))
            return [None if gone else text(value, name, i) for i, (value, gone) in rows_of]

        try:
            queries = [q or "" for q in column("query")]
            about = zip(column("title"), column("brand"), column("category"), strict=True)
            titles = [t and self.scorer.product_text(t, b or "", c or "") for t, b, c in about]
            scored = self.scorer.score(queries, column("product_id"), titles)
        except DataError as e:  # answered as 400 with its reason, not as a failure of the server
            raise MlflowException.invalid_parameter_value(str(e)) from e
        frame = type(model_input)
        return frame({name: values for name, values in scored._asdict().items()})


set_model(ReleaseModel())
