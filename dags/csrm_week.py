"""The parts of a week of `csrm_retrain`: what each gives to those after it, and how it is wired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow.sdk import XComArg
from csrm_shards import ablated_of, filtered_of, indexing_of, scoring_of, translated_of
from csrm_wiring import (
    ASKED,
    controls_of,
    fact,
    negatives_of,
    peers_of,
    pretrained_of,
    tasks_judged_of,
    tasks_of,
)

from csrm_tasks.markets import MarketConfig


@dataclass(frozen=True)
class Week:
    """What all parts of a week read: the live release, the snapshot, BM25."""

    market: MarketConfig
    live: XComArg
    snap: XComArg
    bm25: XComArg

    def of_live(self, name: str) -> dict[str, Any]:
        """Return a part of the live release as an input."""
        return fact(self.live, name)

    def add(self, step: str, task_id: str = "", /, **given: object) -> XComArg:
        """Add a task that reads the snapshot among others."""
        return tasks_of(self.market)(step, task_id, snapshot=self.snap, **given)


@dataclass(frozen=True)
class Retrieved:
    """What retrieval gives to those after it."""

    ebr: XComArg
    index: XComArg
    rqa: XComArg
    rqa_live: XComArg  # by the live retriever: the live LLM reads it, and RQA* is compared with it
    unclicked: dict[str, XComArg]


@dataclass(frozen=True)
class Towers:
    """What teaching the towers gives to judgement."""

    teacher: XComArg  # who teaches them: LLM, stack or labels
    towers: XComArg
    export: XComArg
    vectors: XComArg
    exports: dict[str, Any]  # all that are scored on gold; the candidate's are the last
    second: dict[str, XComArg]  # the second stage, where the market has one
    review: dict[str, XComArg]  # pairs without a sure grade, where the market asks for a sheet


def retrieval(week: Week) -> Retrieved:
    """The retriever, now with local behaviour: RQA* (A23); before it, what the live one finds."""
    market, add, bm25, live_ebr = week.market, week.add, week.bm25, week.of_live("ebr")
    of_live = {"snapshot": week.snap, "ebr": live_ebr, "previous": week.of_live("index")}
    index0 = indexing_of(market)("build_index_live", of_live)
    rqa0 = add("build_rqa", "build_rqa_live", bm25=bm25, ebr=live_ebr, index=index0)

    pseudo = add("pseudo_pairs", bm25=bm25)
    read = {"snapshot": week.snap, "llm": week.of_live("llm"), "rqa": rqa0, "pairs": pseudo}
    cvr = scoring_of(market)("score_pseudo", read, space="cvr")
    given = {"scored": cvr, "warm": live_ebr}
    given |= {"bm25": bm25} if market.retrieval.ebr.mining else {}
    ebr = add("train_ebr", local=True, **given)
    index = indexing_of(market)("build_index", {"snapshot": week.snap, "ebr": ebr})
    rqa = add("build_rqa", bm25=bm25, ebr=ebr, index=index)
    unclicked = without_clicks(market, {"snapshot": week.snap} | given, bm25, behind=rqa)
    return Retrieved(ebr, index, rqa, rqa0, unclicked)


def learnt_by_all(week: Week, found: Retrieved) -> dict[str, Any]:
    """Return what every training of the LLM reads, stage 2 and the rounds alike.

    All start from the live LLM's stage 0, where the market has one and it still fits, and from
    its adapter where the market says so; all of the pairs that the filter leaves (A39).
    """
    market, live_llm, snap = week.market, week.of_live("llm"), week.snap
    task = tasks_of(market)
    stage0 = pretrained_of(market, task, snapshot=snap, previous=live_llm)
    warm = {"warm": live_llm} if market.llm.warm_start == "live" else {}
    learnt = {"snapshot": snap, "rqa": found.rqa} | stage0 | warm
    learnt |= filtered_of(market, snap, stage0)
    # And of negatives that the live LLM calls irrelevant, where the market adds some (A38).
    given = {"snapshot": snap, "bm25": week.bm25, "ebr": found.ebr, "index": found.index}
    learnt |= negatives_of(market, task, llm=live_llm, rqa=found.rqa_live, **given)
    # And of train queries translated into languages that have no labels of their own (A37).
    learnt |= translated_of(market, snap, live_llm)
    return learnt | ablated_of(market, learnt)  # what dev keeps of the market's options (A41)


def distilled(week: Week, found: Retrieved, llm: XComArg) -> Towers:
    """The towers learn the chosen teacher's soft labels (A29-A31), but nothing of gold queries.

    Where dev refuses it (A50), labels. Beside them the same towers on hard labels (A32), and as a
    control some that were taught gold queries, too.
    """
    market, add = week.market, week.add
    seen = market.controls.towers_seen
    pairs = add("tower_pairs", seen=seen, bm25=week.bm25, ebr=found.ebr, index=found.index)
    teacher = add("choose_teacher", llm=llm)
    asked = {"snapshot": week.snap, "llm": llm, "pairs": pairs, "rqa": found.rqa}
    score = scoring_of(market, market.towers.score_shards)
    soft = score("score_tower_pairs", asked | {"teacher": teacher})
    towers = add("train_towers", target="soft", scored=soft)
    if market.towers.query_layers:
        towers = add("shorten_query_tower", towers=towers, scored=soft)
    export = add("export_towers", towers=towers)
    cross, second = crossed(week, soft, export)
    vectors = add("embed_products", export=export, **second)
    exports: dict[str, Any] = {"champion_towers": week.of_live("export")}
    if market.towers.hard_baseline:
        hard = add("train_towers", "train_towers_hard", target="hard")
        found.rqa_live >> hard  # nothing waits for it: beside what follows, not in front of it
        exports["towers_hard"] = add("export_towers", "export_hard", towers=hard)
    if seen:
        knows = add("train_towers", "train_towers_seen", seen=True, scored=soft)
        exports["towers_seen"] = add("export_towers", "export_seen", towers=knows)
    if market.controls.cross_encoder:
        exports["cross_encoder"] = cross
    review = {}
    if market.review.pairs:
        review["review"] = add("review_queue", llm=llm, teacher=teacher, scored=soft)
    judged = exports | {"towers": export}
    return Towers(teacher, towers, export, vectors, judged, second, review)


def crossed(
    week: Week, soft: XComArg, export: XComArg
) -> tuple[XComArg | None, dict[str, XComArg]]:
    """Return the cross-encoder and, stacked on the towers as far as dev keeps it, the second stage.

    Each where the market asks for it; the second stage as an input of those who take one.
    """
    market, add = week.market, week.add
    wanted = market.second_stage.enabled
    if not (wanted or market.controls.cross_encoder):
        return None, {}
    cross = add("train_cross_encoder", scored=soft)
    return cross, {
        "second_stage": add("second_stage", export=export, cross=cross)
    } if wanted else {}


def evaluated(
    week: Week, found: Retrieved, llms: dict[str, XComArg], llm: XComArg, towers: Towers,
    learnt: dict[str, Any],
) -> XComArg:  # fmt: skip
    """All on the same frozen gold pairs; each LLM reads the titles that it was trained with.

    What is later in this order is compared with what is before it.
    """
    market, add, rqa0 = week.market, week.add, found.rqa_live
    readers: dict[str, tuple[object, XComArg]] = {"champion": (week.of_live("llm"), rqa0)}
    if market.controls.rqa_cold:
        given = learnt | {"rqa": rqa0}
        cold = tasks_of(market)("train_llm", "train_llm_rqa_cold", arm="rqa_cold", **given)
        found.rqa >> cold  # as the hard towers, and behind them
        readers["rqa_cold"] = (cold, rqa0)
    readers |= {name: (one, found.rqa) for name, one in llms.items()}
    readers |= {name: (llm, titles) for name, titles in found.unclicked.items()}
    by_llm = {
        name: add("score_pairs", f"score_{name}", split="gold", llm=one, rqa=titles)
        for name, (one, titles) in readers.items()
    }
    by_llm |= without_scoring_again(week, found, [by_llm[name] for name in llms], llm, towers)
    scores = [*by_llm.values()]
    untrained = peers_of(market, tasks_of(market), week.snap, found.rqa)
    scores += untrained.values()
    tower_scores = {
        name: add("score_towers", f"score_{name}", export=one)
        for name, one in towers.exports.items()
    }
    tower_scores |= served_orders(week, towers, tower_scores)
    peers = {"baselines": add("baselines"), "champion": week.live}
    names = ",".join([*by_llm, *untrained, *tower_scores])
    peers |= controls_of(market, tasks_of(market), week.snap, llm) | ablation_in(learnt)
    peers |= towers.review
    scored = {"llm_scores": scores, "tower_scores": [*tower_scores.values()]}
    return add("evaluate", names=names, **scored, **peers)


def without_scoring_again(
    week: Week, found: Retrieved, candidates: list[XComArg], llm: XComArg, towers: Towers
) -> dict[str, XComArg]:
    """Return what the chosen LLM, and the stack on it, say of gold; it is one of ``candidates``."""
    read = {"llm": llm, "rqa": found.rqa}
    final = tasks_of(week.market)("chosen_scores", "score_final", scored=candidates, **read)
    scores = {"final": final}
    if week.market.towers.stacked_teacher:
        given = read | {"teacher": towers.teacher, "scored": final}
        scores["teacher"] = week.add("taught_scores", "score_teacher", **given)
    return scores


def served_orders(week: Week, towers: Towers, scores: dict[str, XComArg]) -> dict[str, XComArg]:
    """Return the order in which live release and candidate answer, where there is a second stage.

    A live release without one answers in the order of its towers.
    """
    if not towers.second:
        return {}
    live = {"export": week.of_live("export"), "second_stage": week.of_live("second_stage")}
    sides = {"champion": live, "": {"export": towers.export} | towers.second}
    found = {}
    for side, given in sides.items():
        name, of = (f"{side}_served", f"{side}_towers") if side else ("served", "towers")
        found[name] = week.add("score_second_stage", f"score_{name}", scores=scores[of], **given)
    return found


def ablation_in(learnt: dict[str, Any]) -> dict[str, XComArg]:
    """Return what the trainings were told to leave out (A41), for those who report it."""
    return {name: made for name, made in learnt.items() if name == "ablation"}


def judged(
    week: Week, found: Retrieved, llm: XComArg, towers: Towers, **evidence: XComArg
) -> tuple[XComArg, XComArg]:
    """Return the bundle, probed in a fresh process, and the gate's verdict on it."""
    task, add, export = tasks_of(week.market), week.add, towers.export
    parts = {"llm": llm, "ebr": found.ebr, "index": found.index, "rqa": found.rqa, "export": export}
    if week.market.release.export_llm:
        parts["llm_export"] = add("export_llm", llm=llm, rqa=found.rqa)
    bundle = add("bundle", embeddings=towers.vectors, **parts, **towers.second)
    probed = add("servability", bundle=bundle, towers=towers.towers)
    given = {"servability": probed, "champion": week.live} | evidence | towers.review
    of_tasks = {"snapshot": week.snap, "llm": llm, "champion_llm": week.of_live("llm")}
    given |= tasks_judged_of(week.market, task, **of_tasks)
    return bundle, task("gate", "judge", stage=2, asked=ASKED, bundle=bundle, **given)


def without_clicks(
    market: MarketConfig, given: dict[str, Any], bm25: XComArg, behind: XComArg
) -> dict[str, XComArg]:
    """Add RQA* without what shoppers did with gold queries, where a market asks for the control.

    ``given``: inputs of the retriever's training. Nothing waits for it: it is behind ``behind``.
    """
    if not market.controls.rqa_unclicked:
        return {}
    task = tasks_of(market)
    ebr = task("train_ebr", "train_ebr_unclicked", local=True, unclicked=True, **given)
    behind >> ebr
    found = {"snapshot": given["snapshot"], "ebr": ebr}
    found["index"] = indexing_of(market)("build_index_unclicked", found)
    return {"rqa_unclicked": task("build_rqa", "build_rqa_unclicked", bm25=bm25, **found)}
