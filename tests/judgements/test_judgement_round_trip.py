"""Whatever is written for a tool is read again as the same grades, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.errors import DataError
from csrm_tasks.judgements import scales
from csrm_tasks.judgements.formats.book import Asked, Judgement, Page, grades_digest
from csrm_tasks.judgements.formats.registry import FORMATS
from csrm_tasks.judgements.reading import Readings, Wanted, read_files
from csrm_tasks.judgements.writing import write_page
from csrm_tasks.text import compose, normalise

SAYS_ITS_SCALE = {"opensearch", "quepid", "rre", "label-studio", "argilla"}
SCALES = ("0=irrelevant,1=substitute,2=exact", "0=irrelevant,2=substitute,3=exact",
          "1=irrelevant,3=substitute,5=exact")  # fmt: skip
READ = {"opensearch": "judgments.json", "quepid": "book.json", "quepid-csv": "book.csv",
        "rre": "ratings.json", "trec": "qrels.txt", "rank-eval": "rank_eval.json",
        "label-studio": "tasks.json", "argilla": "records.json"}  # fmt: skip

letters = st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp"))
texts = st.text(letters, min_size=1, max_size=20).filter(lambda t: normalise(t) != "")
products = st.text("abcXYZ0189-_.", min_size=1, max_size=8).filter(lambda t: t.strip(".") != "")
people = st.sampled_from(["anna@shop.example", "ben@shop.example", "민수"])
reasons = st.one_of(st.just(""), texts.map(lambda t: compose(" ".join(t.split())) or "x"))


@st.composite
def judged(draw: st.DrawFn, raters: bool) -> list[Judgement]:
    rows = draw(st.lists(
        st.tuples(texts.map(compose), products, st.integers(0, 2), people, reasons),
        min_size=1, max_size=12,
        unique_by=lambda r: (normalise(r[0]), r[1], r[3] if raters else ""),
    ))  # fmt: skip
    return [Judgement(q, p, g, r if raters else "", why if raters else "")
            for q, p, g, r, why in rows]  # fmt: skip


def there_and_back(
    to: str, judgements: list[Judgement], scale: str, what: str = "consensus"
) -> Readings:
    page = Page(what, "demo ko-KR", judgements, scales.writing(scale))
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        write_page(page, to, out)
        grades = None if to in SAYS_ITS_SCALE else scales.parse(scale)
        asked = Asked(queries=out / "queries.tsv" if to == "trec" else None)
        return read_files([out / READ[to]], Wanted(to, asked, grades))


@pytest.mark.parametrize("to", FORMATS)
@settings(max_examples=150, deadline=None)
@given(data=st.data(), scale=st.sampled_from(SCALES))
def test_what_is_written_is_read_as_the_same_grades(
    to: str, data: st.DataObject, scale: str
) -> None:
    form = FORMATS[to]
    judgements = data.draw(judged(form.raters))
    what = "audits" if form.raters else "consensus"
    back = there_and_back(to, judgements, scale, what)
    assert grades_digest(back.judgements) == grades_digest(judgements)
    # a CSV of raters has no place for a title; gold and consensus are nobody's in particular
    assert back.ours == ([] if to == "quepid-csv" else [f"csrm-{what} demo ko-KR"])

    def rows(ones: list[Judgement]) -> set[tuple[object, ...]]:
        return {
            (normalise(j.query), j.product_id, j.grade, j.rater if form.raters else "",
             " ".join(j.explanation.split()) if form.reasons else "")
            for j in ones
        }  # fmt: skip

    assert rows(back.judgements) == rows(judgements)


@pytest.mark.parametrize("to", FORMATS)
def test_gold_says_that_it_is_gold(to: str) -> None:
    back = there_and_back(to, [Judgement("우유", "p1", 2)], SCALES[0], "gold")
    assert back.ours == ["csrm-gold demo ko-KR"]


@pytest.mark.parametrize("to", ["quepid", "label-studio"])
def test_what_cannot_be_judged_comes_back_so(to: str) -> None:
    ones = [Judgement("milk", "p1", None, "anna@shop.example", "no title"),
            Judgement("milk", "p1", 2, "ben@shop.example")]  # fmt: skip
    back = there_and_back(to, ones, SCALES[0]).judgements
    assert [(j.grade, j.rater, j.explanation) for j in back] == [
        (None, "anna@shop.example", "no title"), (2, "ben@shop.example", "")
    ]  # fmt: skip


@pytest.mark.parametrize("to", [name for name, form in FORMATS.items() if form.soft])
def test_soft_grades_leave_as_a_models_and_are_no_judgements(to: str, tmp_path: Path) -> None:
    ones = [Judgement("milk", "p1", None, probabilities=(0.1, 0.2, 0.7))]
    page = Page("soft", "demo ko-KR", ones, scales.writing(None))
    path = write_page(page, to, tmp_path / "out")[0]
    text = path.read_text(encoding="utf-8")
    assert ("1.6" if to == "opensearch" else "0.7") in text
    with pytest.raises(DataError, match=r"has no judgement|rating '1\.6'"):
        read_files([path], Wanted(to))


def test_a_document_that_qrels_cannot_name_is_refused_before_anything_is_there(
    tmp_path: Path,
) -> None:
    page = Page("consensus", "demo", [Judgement("q", "a b", 1)], scales.writing(None))
    with pytest.raises(DataError, match="'a b'"):
        write_page(page, "trec", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_opensearch_gets_a_query_set_of_the_same_queries(tmp_path: Path) -> None:
    ones = [Judgement("milk", "p1", 2), Judgement("tea", "p1", 0), Judgement("milk", "p2", 1)]
    page = Page("consensus", "demo ko-KR", ones, scales.writing(None))
    paths = write_page(page, "opensearch", tmp_path / "out")
    judged_, queries = (json.loads(p.read_text()) for p in paths)
    assert judged_["type"] == "IMPORT_JUDGMENT"
    assert judged_["judgmentRatings"][0] == {
        "query": "milk", "ratings": [{"docId": "p1", "rating": 2}, {"docId": "p2", "rating": 1}]
    }  # fmt: skip
    assert queries["sampling"] == "manual"
    assert queries["querySetQueries"] == [{"queryText": "milk"}, {"queryText": "tea"}]
    assert max(len(body["name"]) for body in (judged_, queries)) <= 50


def test_an_export_into_the_folder_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = Page("consensus", "demo ko-KR", [Judgement("milk", "p1", 2)], scales.writing(None))
    paths = write_page(page, "trec", Path())
    assert paths and all(p.parent == tmp_path and p.is_file() for p in paths)
