"""Deliveries of one import: written to hidden files, and shown together when all is read.

``{landing}/{market}/{day}/{locale}/{kind}-{layout}_{split}.parquet``. The contract has no field for
a public split, but days: each split lies one week behind the one before it, so that a snapshot up
to the training split's week has no row of the others. The split also stands in every label's
identifier and guideline. Rows that do not land are kept by reason, and counted.

Equal input is equal bytes; a file that is there with equal content is left alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path
from typing import TextIO

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contract.contracts import (
    CATALOGUE,
    LABELS,
    Reason,
)
from csrm_tasks.json_files import write_json
from csrm_tasks.layouts.delivery import DeliveryTable, hidden, show
from csrm_tasks.text import INVISIBLE

COLUMNS = {
    "catalogue": ("product_id", "title", "brand", "category", "description"),
    "labels": ("label_id", "query", "product_id", "grade", "rater_id", "guideline_version"),
    "query_categories": (
        "label_id",
        "query",
        "category",
        "label",
        "rater_id",
        "guideline_version",
    ),
}
LIMITS = {c.name: c.max_chars for c in (*CATALOGUE.columns, *LABELS.columns)}


def refusal(column: str, text: str) -> str | None:
    """Return why the contract would refuse ``text`` in a required column; None: it would not."""
    seen = text if text.isascii() else text.translate(INVISIBLE)
    if not seen.strip():
        return str(Reason.MISSING)
    if len(text) > LIMITS[column]:
        return str(Reason.TOO_LONG)
    return None if _encodable(text) else str(Reason.NUL)


def refused_title(title: str) -> str | None:
    """Return why a product cannot land with ``title``, else None."""
    return refusal("title", title) if title.strip() else "no_title"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a UTF-16 character, which JSON can say
        return False
    return "\0" not in text


class Landing:
    """What an import reads, on its way into the landing zone.

    ``root``: the market's folder there. ``kept``: where rows that do not land are kept.
    ``locales``: language → locale. ``splits``: the layout's, in the order of their weeks.
    """

    def __init__(
        self, layout: str, root: Path, kept: Path, locales: Mapping[str, str],
        first_day: date, splits: Sequence[str],
    ) -> None:  # fmt: skip
        self.layout, self.root, self.kept, self.locales = layout, root, kept, locales
        self.days = {s: (first_day + timedelta(7 * i)).isoformat() for i, s in enumerate(splits)}
        self.read: Counter[str] = Counter()  # rows by file
        self.left_out: Counter[tuple[str, str]] = Counter()  # by reason and file
        self.notes: Counter[str] = Counter()  # what was landed otherwise than delivered
        self.remarks: list[str] = []  # what a person has to know of the layout's files
        self._products: dict[tuple[str, str], set[str]] = {}  # by split and locale
        self._labels: dict[str, set[str]] = {"labels": set(), "query_categories": set()}
        self._tables: dict[Path, DeliveryTable] = {}
        self._files: dict[str, TextIO] = {}
        self._stack = ExitStack()

    def has_product(self, split: str, locale: str, product_id: str) -> bool:
        """Return whether a split's own catalogue of a locale has a product by now."""
        return product_id in self._products.get((split, locale), ())

    def product(
        self, split: str, locale: str, product_id: str, title: str,
        brand: str = "", category: str = "", description: str = "",
    ) -> str | None:  # fmt: skip
        """Land a product once in a split; returns why it cannot land (a required value), else None.

        An optional value that the contract would refuse is left empty, and a long description cut.
        """
        known = self._products.setdefault((split, locale), set())
        if product_id in known:
            return "repeated_id"
        why = refused_title(title) or refusal("product_id", product_id)
        if why is None:
            known.add(product_id)
            rest = (
                self._optional("brand", brand),
                self._optional("category", category),
                self._optional("description", description[: LIMITS["description"]]),
            )
            self.notes["description_cut"] += len(description) > LIMITS["description"]
            self._add("catalogue", split, locale, (product_id, title, *rest))
        return why

    def _optional(self, column: str, text: str) -> str:
        why = refusal(column, text) if text else None
        if why and why != Reason.MISSING:
            self.notes[f"{column}_left_empty_{why}"] += 1
        return "" if why else text

    def refused_label(
        self, split: str, label_id: str, query: str, kind: str = "labels"
    ) -> str | None:
        """Return why a label of ``kind`` cannot land, else None; each kind has its identifiers."""
        if not query.strip():
            return "no_query"
        if f"{split}-{label_id}" in self._labels[kind]:
            return "repeated_id"
        return refusal("label_id", f"{split}-{label_id}") or refusal("query", query)

    def label(
        self, split: str, locale: str, label_id: str, query: str, product_id: str, grade: str
    ) -> str | None:
        """Land a label; returns why it cannot land, else None.

        The data sets do not say who judged: all are one rater's, so that rows that are there twice
        never count as agreement (A10). Its product is of its own split, or of the first one.
        """
        why = self.refused_label(split, label_id, query)
        splits = (split, next(iter(self.days)))
        if why is None and not any(self.has_product(s, locale, product_id) for s in splits):
            why = "unknown_product"
        if why is None:
            self._add_label("labels", split, locale, label_id, (query, product_id, grade))
        return why

    def category_label(
        self, split: str, locale: str, label_id: str, query: str, category: str, label: str
    ) -> str | None:
        """Land an answer of the query-category task; returns why it cannot land, else None.

        ``category``: the path as it is. Who judged, as in :meth:`label`.
        """
        kind = "query_categories"
        why = self.refused_label(split, label_id, query, kind)
        if why is None:
            why = refusal("category", category) if category.strip() else "no_category"
        if why is None:
            self._add_label(kind, split, locale, label_id, (query, category, label))
        return why

    def _add_label(
        self, kind: str, split: str, locale: str, label_id: str, said: tuple[str, ...]
    ) -> None:
        label_id = f"{split}-{label_id}"
        self._labels[kind].add(label_id)
        row = (label_id, *said, self.layout, f"{self.layout} {split}")
        self._add(kind, split, locale, row)

    def _add(self, kind: str, split: str, locale: str, row: tuple[str, ...]) -> None:
        name = f"{kind}-{self.layout}_{split}.parquet"
        path = self.root / self.days[split] / locale / name
        if path not in self._tables:
            self._tables[path] = DeliveryTable(path, COLUMNS[kind])
        self._tables[path].add(row)

    def leave_out(self, reason: str, file: Path, row: int, content: object) -> None:
        """Keep a row that does not land: its file and number, and what tells it."""
        self.left_out[reason, file.name] += 1
        if reason not in self._files:
            path = hidden(self._kept(reason))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[reason] = self._stack.enter_context(path.open("w", encoding="ascii"))
        # ASCII: half a UTF-16 character is kept as the escape that it was delivered as.
        line = json.dumps({"file": file.name, "row": row, "content": content}, default=str)
        self._files[reason].write(line + "\n")

    def _kept(self, reason: str) -> Path:
        return self.kept / f"left_out-{reason}.jsonl"

    def abandon(self) -> None:
        """Remove what is hidden still, and folders that nothing lies in."""
        for path, table in self._tables.items():
            table.discard()
            _remove_empty(path.parent, self.root.parent)
        self._stack.close()
        for reason in self._files:
            hidden(self._kept(reason)).unlink(missing_ok=True)
        _remove_empty(self.kept, self.kept.parent.parent)

    def show(self) -> list[str]:
        """Make all visible, the catalogues first; returns what to tell, in lines.

        Raises :class:`DataError` where nothing landed, or where files of another import of this
        layout lie in the market, which this one does not have.
        """
        for table in self._tables.values():
            table.close()
        self._stack.close()
        counts = {path: table.rows for path, table in sorted(self._tables.items())}
        if not any(path.name.startswith(tuple(self._labels)) for path in counts):
            raise DataError(f"no label is left to land: {self._reasons() or 'the files are empty'}")
        ours = set(self.root.glob(f"*/*/*-{self.layout}_*.parquet"))
        for path in sorted(ours - set(counts)):
            raise DataError(
                f"{path}: is of another import; remove it, or import into another --market"
            )
        for path in sorted(counts, key=lambda p: not p.name.startswith("catalogue")):
            show(path)
        for path in {*self.kept.glob("left_out-*.jsonl")} - {*map(self._kept, self._files)}:
            path.unlink()  # a reason of an earlier import of this market
        for reason in self._files:
            show(self._kept(reason))
        self._report(counts)
        return list(self._told(counts))

    def _report(self, counts: Mapping[Path, int]) -> None:
        self.kept.mkdir(parents=True, exist_ok=True)
        landed = {p.relative_to(self.root).as_posix(): n for p, n in counts.items()}
        out: dict[str, dict[str, int]] = {}
        for (reason, file), n in sorted(self.left_out.items()):
            out.setdefault(reason, {})[file] = n
        report = self.kept / "report.json"
        body = {"read": self.read, "landed": landed, "left_out": out, "notes": +self.notes}
        write_json(hidden(report), body)
        show(report)

    def _told(self, counts: Mapping[Path, int]) -> Iterator[str]:
        for file, n in self.read.items():
            yield f"{file}: {n:,} rows"
        for path, n in counts.items():
            yield f"{path}: {n:,}"
        for reason in sorted(self._files):
            n = sum(c for (r, _), c in self.left_out.items() if r == reason)
            yield f"left out, {reason}: {n:,} ({self._kept(reason)})"
        for note, n in sorted((+self.notes).items()):
            yield f"{note}: {n:,}"
        yield from self.remarks

    def _reasons(self) -> str:
        each: Counter[str] = Counter()
        for (reason, _), n in self.left_out.items():
            each[reason] += n
        return ", ".join(f"{reason} {n:,}" for reason, n in sorted(each.items()))


def _remove_empty(folder: Path, above: Path) -> None:
    """Remove a folder and those that it lies in, up to ``above``, as far as they are empty."""
    while folder != above and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
