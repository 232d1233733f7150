"""What the chosen LLM and the teacher say of gold, from scores that are there: as scored anew."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.scoring import calibration
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from tests.steps.test_steps_llm import Installation, needs_little, tiny, tracked
from tests.steps.test_steps_llm_shards import teacher_of

pytestmark = pytest.mark.usefixtures("fingerprints_hold")
__all__ = ["tiny", "tracked"]
P = ["p0", "p1", "p2"]


def table(artifact: Artifact) -> pl.DataFrame:
    return pl.read_parquet(artifact.file("scored.parquet"))


def candidates(tiny: Installation) -> list[Artifact]:
    one = tiny.train(rqa=tiny.rqa)
    return [one, tiny.publish_with("train_llm/other", tiny.train(), dev_micro_f1=1.01)]


def on_gold(tiny: Installation, llm: Artifact, **more: object) -> Artifact:
    given = {"snapshot": tiny.snapshot, "llm": llm.ref, "rqa": tiny.rqa}
    return tiny.run("score_pairs", given | more, split="gold")


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_they_are_the_chosen_candidates_at_its_temperature(
    tiny: Installation, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    needs_little(monkeypatch)
    monkeypatch.setattr(calibration, "fit_temperature", lambda p, likelihood: temperature)
    monkeypatch.setattr(calibration, "expected_calibration_error", lambda p, _: float(p.std()))
    monkeypatch.setattr(calibration, "log_loss", lambda p, _: 0.0)
    llms = candidates(tiny)
    own = [on_gold(tiny, llm) for llm in llms]
    refs = {"snapshot": tiny.snapshot, "llms": [a.ref for a in llms]}
    chosen = tiny.run("select_llm", refs)
    assert chosen.facts["chosen_ref"] == llms[1].ref
    slow = on_gold(tiny, chosen)
    monkeypatch.setattr(RelevanceScorer, "load", None)  # no model is run
    given = {"llm": chosen.ref, "rqa": tiny.rqa, "scored": [a.ref for a in own]}
    fast = tiny.run("chosen_scores", given)
    assert table(fast).drop(P).equals(table(slow).drop(P))
    assert table(fast).schema == table(slow).schema
    near = np.abs((table(fast).select(P) - table(slow).select(P)).to_numpy())
    assert near.max() <= (0.0 if temperature == 1.0 else 1e-6)
    assert not table(fast).equals(table(own[0]))
    assert fast.facts == slow.facts
    assert {k: fast.inputs[k] for k in ("llm", "rqa")} == {
        k: slow.inputs[k] for k in ("llm", "rqa")
    }


def test_scores_of_another_model_or_of_other_titles_are_refused(tiny: Installation) -> None:
    one, other = candidates(tiny)
    chosen = tiny.run("select_llm", {"snapshot": tiny.snapshot, "llms": [one.ref, other.ref]})
    untitled = tiny.run("score_pairs", {"snapshot": tiny.snapshot, "llm": other.ref}, split="gold")
    given = {"llm": chosen.ref, "rqa": tiny.rqa}
    for scores in ([on_gold(tiny, one).ref], [untitled.ref], []):
        with pytest.raises(ConfigError, match=f"needs the scores of {other.ref}, with the same"):
            tiny.run("chosen_scores", given | {"scored": scores})
    of_teacher = given | {
        "snapshot": tiny.snapshot, "teacher": teacher_of(tiny, "stack"), "scored": untitled.ref
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"is not of .* and these titles"):
        tiny.run("taught_scores", of_teacher)


def test_scores_with_equal_titles_under_another_reference_are_the_same_scores(
    tiny: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retriever's step that was repeated by newer code may have made the same titles again."""
    llm, titles = tiny.train(rqa=tiny.rqa), tiny.store.open(tiny.rqa)
    again = tiny.store.publish(
        "tiny/build_rqa/again", titles.path, facts=titles.facts, inputs={}, about={}
    )
    chosen = tiny.run("select_llm", {"snapshot": tiny.snapshot, "llms": [llm.ref]})
    own = on_gold(tiny, llm)
    monkeypatch.setattr(RelevanceScorer, "load", None)
    given = {"llm": chosen.ref, "rqa": again.ref, "scored": [own.ref]}
    assert table(tiny.run("chosen_scores", given)).drop(P).equals(table(own).drop(P))


def test_the_teachers_word_is_as_if_the_llm_had_been_run_for_it(
    tiny: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, teacher = tiny.train(rqa=tiny.rqa), teacher_of(tiny, "stack")
    alone, slow = on_gold(tiny, llm), on_gold(tiny, llm, teacher=teacher)
    monkeypatch.setattr(RelevanceScorer, "load", None)
    given = {"snapshot": tiny.snapshot, "llm": llm.ref, "rqa": tiny.rqa, "teacher": teacher}
    fast = tiny.run("taught_scores", given | {"scored": alone.ref})
    assert table(fast).equals(table(slow)) and fast.facts == slow.facts
    assert not np.allclose(table(fast).select(P), table(alone).select(P), atol=0.05)
