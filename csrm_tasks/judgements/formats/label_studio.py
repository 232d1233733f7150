"""Label Studio: tasks with their annotations (JSON or JSON-MIN), and the labelling interface.

A person's annotation is a judgement, one that was skipped (``was_cancelled``) cannot be judged, and
what a model predicts is none. One person's several annotations of a task are told apart by time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from csrm_tasks.judgements.formats.book import (
    QUESTION,
    WHY,
    WORDS,
    Asked,
    Book,
    Judgement,
    Page,
    Rated,
    ours,
)
from csrm_tasks.judgements.formats.fields import (
    Json,
    answers,
    identifier,
    mapping,
    named,
    objects,
    query_text,
    read_json,
    size,
    word_of,
    write_document,
)
from csrm_tasks.layouts.files import fault, text_of

INTERFACE = """<View>
  <Header value="$query"/>
  <Text name="title" value="$title"/>
  <Text name="brand" value="$brand"/>
  <Text name="category" value="$category"/>
  <Choices name="grade" toName="title" choice="single" required="true">
{choices}
  </Choices>
  <TextArea name="explanation" toName="title"/>
</View>
"""


def read(path: Path, asked: Asked) -> Book:
    """Read an export; raises :class:`DataError` naming the file, the task and its field."""
    rated: list[Rated] = []
    passed: Counter[str] = Counter()
    title = ""
    document = read_json(path)
    tasks = document if isinstance(document, list) else [document]
    for row, task in enumerate(objects(path, tasks, "tasks"), 1):
        data = _flat(mapping(path, row, task.get("data", task), "data"))
        query = query_text(path, row, named(data, "query"), "data.query")
        product = identifier(path, row, named(data, "product_id"), "data.product_id")
        title = title or ours(*data.values())
        passed["a model's predictions"] += size(task.get("predictions"))
        for one in _annotations(path, row, task):
            said = _said(path, row, one, asked, data)
            if said is None:
                passed["not judged yet"] += 1
                continue
            rating, why, unrateable = said
            at = text_of(one.get("updated_at") or one.get("created_at"))
            rater = _rater(one)
            rated.append(Rated(row, query, product, rating, rater, why, unrateable, at))
    return Book(rated, {}, title, passed)


def _flat(data: Json) -> dict[str, Any]:
    """Return the fields of a task's data, those of objects in it too; the outer ones count."""
    inner = (v for v in data.values() if isinstance(v, dict))
    return {k: v for one in inner for k, v in one.items()} | dict(data)


def _annotations(path: Path, row: int, task: Json) -> Iterator[Json]:
    """Yield the annotations; of JSON-MIN the task itself is one."""
    for name in ("annotations", "completions"):
        if name in task:
            yield from objects(path, task[name], name)
            return
    if "data" not in task:
        yield {"created_at": task.get("created_at"), "updated_at": task.get("updated_at"),
               "completed_by": task.get("annotator")}  # fmt: skip


def _rater(one: Json) -> str:
    who = one.get("completed_by")
    if isinstance(who, dict):
        return text_of(who.get("email") or who.get("id")).strip()
    return text_of(who).strip()


def _said(
    path: Path, row: int, one: Json, asked: Asked, data: Mapping[str, Any]
) -> tuple[str, str, bool] | None:
    """Return rating, reason and whether it cannot be judged; None: it is not judged yet."""
    if "result" not in one:  # JSON-MIN
        found = data.get(asked.question) if asked.question else named(data, "grade")
        rating = word_of(found)
        return (rating, text_of(named(data, WHY)), False) if rating else None
    texts, values = _values(path, row, one)
    why = texts.get(WHY) or (next(iter(texts.values())) if len(texts) == 1 else "")
    if one.get("was_cancelled") is True:
        return "", why, True
    if not values:
        return None
    question = answers(path, values, asked.question)
    return (values[question], why, False) if values.get(question) else None


def _values(path: Path, row: int, one: Json) -> tuple[dict[str, str], dict[str, str]]:
    """Return texts and chosen values of an annotation by their questions."""
    texts: dict[str, str] = {}
    values: dict[str, str] = {}
    for result in objects(path, one["result"], "result"):
        if "value" not in result:  # a relation of two others
            continue
        kind, name = text_of(result.get("type")), text_of(result.get("from_name"))
        value = mapping(path, row, result.get("value"), f"value of {name}")
        if kind == "textarea":
            given = value.get("text")
            texts[name] = (
                " ".join(map(text_of, given)) if isinstance(given, list) else text_of(given)
            )
        elif kind in value:
            values[name] = _chosen(path, row, name, value[kind])
    return texts, values


def _chosen(path: Path, row: int, name: str, value: object) -> str:
    """Return the one choice, number, or last level of a taxonomy; raises where there are more."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0][-1:]
    if isinstance(value, list):
        if len(value) != 1:
            what = f"{name} has {len(value)} choices; a grade is one: correct the annotation"
            raise fault(path, row, "result", what)
        value = value[0]
    return word_of(value)


def write(page: Page, folder: Path) -> list[Path]:
    """Write tasks (soft grades as predictions), and the interface that shows them."""
    tasks: dict[tuple[str, str], dict[str, Any]] = {}
    for one in page.judgements:
        task = tasks.setdefault((one.query, one.product_id), _task(page, one))
        made = "predictions" if one.probabilities is not None else "annotations"
        task.setdefault(made, []).append(_prediction(one) if made[0] == "p" else _annotation(one))
    choices = "\n".join(f'    <Choice value="{word}"/>' for _, word in sorted(WORDS.items()))
    interface = folder / "labeling_interface.xml"
    interface.write_text(INTERFACE.format(choices=choices), encoding="utf-8")
    return [write_document(folder / "tasks.json", list(tasks.values())), interface]


def _task(page: Page, one: Judgement) -> dict[str, Any]:
    shown = page.shown(one.product_id)
    about = {"query": one.query, "product_id": one.product_id, **shown, "set": page.title}
    return {"data": about}


def _annotation(one: Judgement) -> dict[str, Any]:
    result = [] if one.grade is None else [_result(WORDS[one.grade])]
    if one.explanation:
        why = {"from_name": WHY, "to_name": "title", "type": "textarea"}
        result.append(why | {"value": {"text": [one.explanation]}})
    made: dict[str, Any] = {"result": result, "was_cancelled": one.grade is None}
    if one.rater:
        made["completed_by"] = {"email": one.rater}
    return made | ({"created_at": one.rated_at} if one.rated_at else {})


def _prediction(one: Judgement) -> dict[str, Any]:
    word, score = one.surest
    return {"model_version": "csrm", "score": score, "result": [_result(word)]}


def _result(word: str) -> dict[str, Any]:
    return {"from_name": QUESTION, "to_name": "title", "type": "choices",
            "value": {"choices": [word]}}  # fmt: skip
