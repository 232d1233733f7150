"""Miniatures of the tools' own files, with the oddities that real ones have, and faults in them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.judgements import scales
from csrm_tasks.judgements.formats import quepid
from csrm_tasks.judgements.formats.book import Asked
from csrm_tasks.judgements.reading import Readings, Wanted, read_files

FOUR = "0=irrelevant,1=irrelevant,2=substitute,3=exact"


def read(
    folder: Path, form: str, content: object, grades: str | None = None, **asked: Any
) -> Readings:
    path = folder / ("book.csv" if form == "quepid-csv" else f"{form}.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    scale = None if grades is None else scales.parse(grades)
    return read_files([path], Wanted(form, Asked(**asked), scale))


def said(found: Readings) -> list[tuple[Any, ...]]:
    return [(j.query, j.product_id, j.grade, j.rater, j.explanation) for j in found.judgements]


def judgment_list(ratings: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"name": "Judgments", "type": "IMPORT_JUDGMENT", **more,
            "judgmentRatings": [{"query": "star wars", "ratings": ratings}]}  # fmt: skip


@pytest.mark.parametrize("wrapped", ["body", "answer", "lines"])
def test_opensearch_judgments_as_put_as_got_and_as_indexed(tmp_path: Path, wrapped: str) -> None:
    body = judgment_list([{"docId": "11", "rating": 3}, {"docId": 12, "rating": "0.0"}])
    content: object = body
    if wrapped == "answer":
        content = {"took": 1, "hits": {"total": {"value": 1}, "hits": [{"_source": body}]}}
    if wrapped == "lines":
        content = f"{json.dumps({'_id': 'a', '_source': body})}\n\n"
    found = read(tmp_path, "opensearch", content, FOUR)
    rows = [("star wars", "11", 2, "opensearch", ""), ("star wars", "12", 0, "opensearch", "")]
    assert said(found) == rows
    assert found.scale == {"3": "exact", "0": "irrelevant"}


def test_opensearch_query_with_its_reference_answer_is_the_query(tmp_path: Path) -> None:
    body = judgment_list([])
    body["judgmentRatings"] = [
        {
            "query": "c# book#\nreferenceAnswer: a book on C#",
            "ratings": [{"docId": "1", "rating": 3}],
        }
    ]
    assert said(read(tmp_path, "opensearch", body, FOUR))[0][:3] == ("c# book", "1", 2)


def book(judgements: list[dict[str, Any]], **about: Any) -> dict[str, Any]:
    pair = {"query_text": "우유", "doc_id": "p1", "position": 1,
            "document_fields": '{"title": "우유 1L"}', "judgements": judgements}  # fmt: skip
    return {"name": "Book", "show_rank": False, "support_implicit_judgements": True,
            "query_doc_pairs": [pair, pair | {"doc_id": 7.0, "judgements": []}],
            **about}  # fmt: skip


LABELS = {"0": "Irrelevant", "1": "Substitute", "2": "Exact"}
QUEPID = [
    {"rating": 2.0, "unrateable": False, "judge_later": False, "user_email": "anna@x.example",
     "explanation": "the very milk"},
    {"rating": None, "unrateable": True, "judge_later": False, "user_email": "ben@x.example",
     "explanation": "no picture"},
    {"rating": None, "unrateable": False, "judge_later": True, "user_email": "cho@x.example",
     "explanation": None},
    {"rating": 0.0, "unrateable": False, "judge_later": False, "explanation": None},
]  # fmt: skip


@pytest.mark.parametrize("place", ["book", "scorer"])
def test_quepid_book_says_its_scale_reasons_and_what_cannot_be_judged(
    tmp_path: Path, place: str
) -> None:
    scale: Mapping[str, Any] = {"scale": "0,1,2", "scale_with_labels": LABELS}
    about = dict(scale) if place == "book" else {"scorer": {"name": "nDCG@10", **scale}}
    found = read(tmp_path, "quepid", book(QUEPID, **about))
    assert said(found) == [
        ("우유", "p1", 2, "anna@x.example", "the very milk"),
        ("우유", "p1", None, "ben@x.example", "no picture"),
        ("우유", "p1", 0, "quepid", ""),
    ]
    assert found.passed_over["not judged yet"] == 1


def test_quepid_csv_has_a_column_a_rater_also_for_two_of_one_name(tmp_path: Path) -> None:
    text = "query,docid,Anna,Unknown,Anna\r\nmilk,p1,3,,0.0\r\n =milk,p2,,2,\r\n"
    found = read(tmp_path, "quepid-csv", text, FOUR)
    assert said(found) == [
        ("milk", "p1", 2, "Anna", ""), ("milk", "p1", 0, "Anna~2", ""),
        ("=milk", "p2", 1, "quepid-csv", ""),
    ]  # fmt: skip


def test_rre_groups_share_documents_in_either_writing(tmp_path: Path) -> None:
    queries = [{"template": "q.json", "placeholders": {"$query": "fender", "$lang": "en"}},
               {"template": "q.json", "placeholders": {"$query": "fender bass"}}]  # fmt: skip
    group = {"name": "Brand", "queries": queries,
             "relevant_documents": {"1": {"gain": 3}, "2": {"gain": 0}}}  # fmt: skip
    topics = {"index": "core1", "id_field": "id", "topics": [{"query_groups": [group]}]}
    rows = [
        ("fender", "1", 2),
        ("fender", "2", 0),
        ("fender bass", "1", 2),
        ("fender bass", "2", 0),
    ]
    assert [r[:3] for r in said(read(tmp_path, "rre", topics, FOUR))] == rows
    by_rating = group | {"relevant_documents": {"3": ["1"], "0": ["2"]}}
    flat = {"query_placeholder": "$query", "query_groups": [by_rating]}
    assert [r[:3] for r in said(read(tmp_path, "rre", flat, FOUR))] == rows
    quepid = {"id_field": "id", "template": "template.json",
              "queries": [q | {"relevant_documents": {"3": ["1"], "0": ["2"]}}
                          for q in queries]}  # fmt: skip
    assert [r[:3] for r in said(read(tmp_path, "rre", quepid, FOUR))] == rows


def test_qrels_may_have_negative_grades_of_which_a_person_says_what_they_are(
    tmp_path: Path,
) -> None:
    queries = tmp_path / "queries.tsv"
    queries.write_text("1\tmilk\n2\ttea\n")
    grades = "-2=unrateable,0=irrelevant,1=substitute,2=exact"
    found = read(tmp_path, "trec", "1 0 d1 2\n1 Q0 d2 -2\n\n2 0 d1 0\n", grades, queries=queries)
    assert [r[:3] for r in said(found)] == [
        ("milk", "d1", 2), ("milk", "d2", None), ("tea", "d1", 0)
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"row 2: rating '-2' has no meaning"):
        read(tmp_path, "trec", "1 0 d1 2\n1 0 d2 -2\n", FOUR, queries=queries)
    with pytest.raises(DataError, match=r"row 1: query: 9 is not in queries\.tsv"):
        read(tmp_path, "trec", "9 0 d1 2\n", FOUR, queries=queries)
    with pytest.raises(DataError, match="say --queries FILE"):
        read(tmp_path, "trec", "1 0 d1 2\n", FOUR)


SEARCHES: list[dict[str, Any]] = [
    {"request": {"query": {"match": {"title": "amsterdam"}}}},
    {"request": {"query": {"match": {"title": {"query": "amsterdam", "operator": "and"}}}}},
    {"request": {"query": {"bool": {
        "must": [{"multi_match": {"query": "amsterdam", "fields": ["title"]}}],
        "should": [{"match_phrase": {"title": "amsterdam"}}],
        "filter": [{"match": {"shop": "main"}}, {"term": {"locale": "nl"}}]}}}},
    {"request": {"query": {"neural": {"vector": {"query_text": "amsterdam", "k": 5}}}}},
    {"template_id": "t", "params": {"query_string": "amsterdam", "field": "title"}},
    {"template_id": "t", "params": {"text": "amsterdam", "size": 10}},
]  # fmt: skip


@pytest.mark.parametrize("search", SEARCHES)
def test_rank_eval_tells_the_query_of_a_search(tmp_path: Path, search: dict[str, Any]) -> None:
    ratings = [{"_index": "i", "_id": "d1", "rating": 3}, {"_index": "i", "_id": "d2", "rating": 0}]
    body = {"requests": [{"id": "amsterdam_query", **search, "ratings": ratings}], "metric": {}}
    found = read(tmp_path, "rank-eval", body, FOUR)
    assert [r[:3] for r in said(found)] == [("amsterdam", "d1", 2), ("amsterdam", "d2", 0)]


@pytest.mark.parametrize("search", [
    {"request": {"query": {"bool": {"must": [{"match": {"a": "x"}}, {"match": {"b": "y"}}]}}}},
    {"request": {"query": {"match_all": {}}}}, {"params": {"field": "title", "lang": "nl"}},
])  # fmt: skip
def test_rank_eval_never_guesses_which_text_is_the_query(
    tmp_path: Path, search: dict[str, Any]
) -> None:
    ratings = [{"_index": "i", "_id": "d1", "rating": 3}]
    with pytest.raises(DataError, match=r"row 1: request: of 'q9' holds .* params\.query_string"):
        read(
            tmp_path, "rank-eval", {"requests": [{"id": "q9", **search, "ratings": ratings}]}, FOUR
        )


def chosen(word: object, kind: str = "choices", name: str = "relevance") -> dict[str, Any]:
    return {"id": "x", "from_name": name, "to_name": "title", "type": kind, "value": {kind: word}}


def task(*annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    about = {"query": "milk", "item": {"product_id": "p1", "title": "Milk"}} | data
    return {"id": 1, "data": about, "annotations": list(annotations),
            "predictions": [{"result": [chosen(["exact"])]}]}  # fmt: skip


@pytest.mark.parametrize(
    ("times", "repeated"),
    [(("", "2026-01-02"), 1), (("2026-01-02", ""), 1), (("2026-01-02", "2026-01-02"), 1),
     (("2026-01-02", "2026-01-03"), 0)],
)  # fmt: skip
def test_one_grade_said_twice_contradicts_nothing(
    tmp_path: Path, times: tuple[str, str], repeated: int
) -> None:
    """Said at two times it is said again; a time that is not said may be either."""
    told = [{"result": [chosen(["Exact"])], "completed_by": 6} | ({"created_at": at} if at else {})
            for at in times]  # fmt: skip
    found = read(tmp_path, "label-studio", [task(*told)])
    assert {j.grade for j in found.judgements} == {2}
    assert (len(found.judgements), found.repeated) == (2 - repeated, repeated)


def test_label_studio_annotations_are_judgements_predictions_are_not(tmp_path: Path) -> None:
    why = {"from_name": "why", "type": "textarea", "value": {"text": ["same", "brand"]}}
    who = {"id": 4, "email": "anna@x.example"}
    tasks = [task(
        {"result": [chosen(["Exact"]), why], "completed_by": who, "was_cancelled": False},
        {"result": [{"type": "relation", "from_id": "x"}], "completed_by": 5,
         "was_cancelled": True},
        {"result": [chosen([["Relevant", "substitute"]], "taxonomy")], "completed_by": 6},
        {"result": [], "completed_by": 7},
    )]  # fmt: skip
    found = read(tmp_path, "label-studio", tasks)
    assert said(found) == [
        ("milk", "p1", 2, "anna@x.example", "same brand"), ("milk", "p1", None, "5", ""),
        ("milk", "p1", 1, "6", ""),
    ]  # fmt: skip
    assert +found.passed_over == {"not judged yet": 1, "a model's predictions": 1}


def test_label_studio_stars_short_export_and_a_mind_that_was_changed(tmp_path: Path) -> None:
    five = "1=irrelevant,2=irrelevant,3=substitute,4=substitute,5=exact"
    early = {
        "result": [chosen(2, "rating")],
        "completed_by": 1,
        "updated_at": "2026-01-02T10:00:00Z",
    }
    late = {
        "result": [chosen(5, "rating")],
        "completed_by": 1,
        "updated_at": "2026-01-03T10:00:00Z",
    }
    found = read(tmp_path, "label-studio", [task(early, late)], five)
    assert [(j.grade, j.rated_at[:10]) for j in found.judgements] == [
        (0, "2026-01-02"), (2, "2026-01-03")
    ]  # fmt: skip
    short = [{"id": 1, "query": "milk", "product_id": "p1", "grade": "substitute",
              "explanation": "near", "annotator": 3}]  # fmt: skip
    assert said(read(tmp_path, "label-studio", short)) == [("milk", "p1", 1, "3", "near")]


def test_label_studio_asks_which_of_two_questions_is_the_grade(tmp_path: Path) -> None:
    both = {"result": [chosen(["yes"], name="readable"), chosen(["exact"], name="fit")]}
    with pytest.raises(DataError, match="It has readable, fit; say --question"):
        read(tmp_path, "label-studio", [task(both)])
    assert said(read(tmp_path, "label-studio", [task(both)], question="fit"))[0][2] == 2
    with pytest.raises(DataError, match="row 1: result: fit has 2 choices"):
        read(tmp_path, "label-studio", [task({"result": [chosen(["exact", "e"], name="fit")]})])


def record(responses: object, **more: Any) -> dict[str, Any]:
    return {"id": "r1", "fields": {"query": "milk", "title": "Milk"},
            "metadata": {"product_id": "p1"}, "responses": responses,
            "suggestions": {"relevance": {"value": "exact", "score": 0.9, "agent": "llm"}},
            "vectors": {}, "_server_id": None, **more}  # fmt: skip


def test_argilla_of_both_versions(tmp_path: Path) -> None:
    grades = [{"value": "exact", "user_id": "u1"}, {"value": "irrelevant", "user_id": "u2"}]
    whys = [{"value": "no milk", "user_id": "u2"}]
    new = record({"relevance": grades, "explanation": whys})
    rows = [("milk", "p1", 2, "u1", ""), ("milk", "p1", 0, "u2", "no milk")]
    found = read(tmp_path, "argilla", [new])
    assert said(found) == rows
    assert found.passed_over["a model's suggestions"] == 1

    def one(value: str, user: str, status: str) -> dict[str, Any]:
        return {"values": {"relevance": {"value": value}}, "user_id": user, "status": status}

    old = record([one("exact", "u1", "submitted"), one("exact", "u2", "discarded"),
                  one("substitute", "u3", "draft")])  # fmt: skip
    found = read(tmp_path, "argilla", [old])
    assert [r[2:4] for r in said(found)] == [(2, "u1"), (None, "u2")]
    assert found.passed_over["not judged yet"] == 1


FAULTS: dict[str, tuple[str, object, str | None, str]] = {
    "no scale": ("opensearch", judgment_list([{"docId": "1", "rating": 1}]), None,
                 "row 1: rating '1' is on a scale that the file does not say"),
    "a rating off the scale": (
        "opensearch", judgment_list([{"docId": "1", "rating": 4}]), FOUR,
        "row 1: rating '4' has no meaning"),
    "a document is missing": (
        "opensearch", judgment_list([{"docId": "1", "rating": 3}, {"docId": " ", "rating": 3}]),
        FOUR, "row 2: docId: is missing"),
    "a query is missing": (
        "quepid", {"query_doc_pairs": [{"doc_id": "1", "judgements": QUEPID}]}, FOUR,
        "row 1: query_text: is missing"),
    "a document twice, two grades": (
        "opensearch", judgment_list([{"docId": "1", "rating": 3}, {"docId": "1", "rating": 0}]),
        FOUR, "rater 'opensearch' says exact in .* row 1 and irrelevant in .* row 2"),
    "a scale in words of others": (
        "quepid", book(QUEPID, scale_with_labels={"0": "Poor", "2": "Perfect"}), None,
        "its scale is 0=Poor, 2=Perfect, whose words are not ours"),
    "a rating is missing": (
        "opensearch", judgment_list([{"docId": "1", "rating": 3}, {"docId": "2", "rating": None}]),
        FOUR, "row 2: rating is missing"),
    "a document twice as a key": (
        "rre", '{"queries": [{"placeholders": {"$query": "q"}, "relevant_documents": '
        '{"1": {"gain": 3}, "1": {"gain": 0}}}]}', FOUR, "1: is there twice with other content"),
    "a query set": ("opensearch", {"name": "q", "querySetQueries": []}, FOUR, "no judgmentRatings"),
    "an answer": ("rank-eval", {"metric_score": 0.4, "details": {}}, FOUR, "has no requests"),
    "no JSON": ("rre", "{", FOUR, "is no JSON"),
    "another shape": ("argilla", [record({"relevance": {"value": "exact"}})], None, "a JSON list"),
    "only predictions": ("label-studio", [task()], None, "has no judgement .1 a model's predic"),
    "a CSV of something else": ("quepid-csv", "id,text\n1,milk\n", FOUR, "header is id, text"),
    "a short row": ("quepid-csv", "query,docid,Anna\nmilk,p1\n", FOUR, "row 2: has 2 fields"),
    "nothing": ("quepid-csv", "", FOUR, "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_with_file_and_cure(tmp_path: Path, name: str) -> None:
    form, content, grades, message = FAULTS[name]
    with pytest.raises(DataError, match=message) as e:
        read(tmp_path, form, content, grades)
    assert "\n" not in str(e.value)
    assert form in str(e.value) or "book.csv" in str(e.value)


def test_what_is_said_twice_alike_counts_once(tmp_path: Path) -> None:
    twice = judgment_list([{"docId": "1", "rating": 3}, {"docId": "1", "rating": 3.0}])
    found = read(tmp_path, "opensearch", twice, FOUR)
    assert (len(found.judgements), found.repeated) == (1, 1)


def test_two_books_that_differ_are_named_both(tmp_path: Path) -> None:
    paths = []
    for name, rating in (("a.json", 3), ("b.json", 0)):
        paths.append(tmp_path / name)
        body = judgment_list([{"docId": "1", "rating": rating}])
        paths[-1].write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json row 1 .*b\.json row 1; import each"):
        read_files(paths, Wanted("opensearch", grades=scales.parse(FOUR)))


@pytest.mark.parametrize("given", ["0", "0=good", "=exact", "1=exact,1.0=irrelevant"])
def test_grades_that_say_nothing_are_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="--grades"):
        scales.parse(given)


@pytest.mark.parametrize("given", [
    "0=irrelevant,2=exact", "0=irrelevant,1=exact,2=exact,3=substitute",
    "0=complement,1=substitute,2=exact",
])  # fmt: skip
def test_an_export_needs_one_rating_for_each_grade(given: str) -> None:
    with pytest.raises(ConfigError, match="--grades"):
        scales.writing(given)


@pytest.mark.parametrize("limit", [131_072, 16_000_000])
def test_a_quote_that_is_never_closed_in_a_large_book_is_one_line(
    tmp_path: Path, limit: int
) -> None:
    path = tmp_path / "book.csv"
    rows = "".join(f"shoe {i},doc-{i},2\n" for i in range(9_000))
    path.write_text(f'query,docid,ann\nshoe,"1,2\n{rows}', encoding="utf-8")
    before = csv.field_size_limit(limit)  # of the whole process: what ran before may have set it
    try:
        with pytest.raises(
            DataError, match=r"book\.csv: row 2: cannot be read .* look for a quote"
        ):
            quepid.read(path, Asked())
    finally:
        csv.field_size_limit(before)
