"""
### Rollout: from approval to all sessions, by small steps

Every morning: `find` what the ledger says. **A release waits?** Ask, where the market wants a
person to approve (no answer in time is a no, unless somebody has said yes by command), and `start`
its first step; a newer release waits while another is under way, and is not asked about while a
hold-out is open. A no to a release that has begun
fails with the command that gives it up. **One is under way?** Take in raters' answers, send the
day's blind audit, `evaluate` all evidence up to the day, and `apply` the decision: wait, advance,
launch, hold, roll back.

**Window**: the day in parameter `day`, else the run's data interval; it must be published. A
backfill does nothing: what is served is decided by the present.
**A task failed?** Clear it: every transition is one row of the ledger, made once. Answers that
cannot be read do not keep the day from being judged without them. **Held?** A
person decides: `csrm rollout status`, then `csrm rollout advance` or `csrm_rollback`.
**Raters** get `{landing}/{market}/audits/{day}.tasks.csv`; their answers are expected beside it as
`{day}.answers.csv`, and a fuller one takes its place. docs/ROLLOUT.md says how a step is judged.
"""

from __future__ import annotations

from csrm_approval import ask, has_queries, is_approved_by_a_person, is_under_way, whether_to_ask
from csrm_wiring import DAY, fact, market_dag, releasing, tasks_of

from csrm_tasks.markets import MarketConfig


def rollout(market: MarketConfig) -> None:
    """find → ask → start, beside: answers → audit → evaluate → apply."""
    task = tasks_of(market)
    day = "{{ day_of(params, dag_run) }}"
    state = task("rollout_state", "find")

    # A release waits: who approves is a person, or the policy; `start` checks for itself.
    start = task("rollout_start", "start", state=state, rule="none_failed_min_one_success")
    way = whether_to_ask(state)
    asked = ask(market, state)
    way >> asked >> is_approved_by_a_person(state, asked.output) >> start
    way >> start

    # One is under way.
    open_ = is_under_way(state, day)
    # Answers that cannot be read fail their task and the run; they hold up no rollback
    look = task("rollout_evaluate", "evaluate", day=day, rule="all_done_min_one_success")
    task("rollout_apply", "apply", look=look)
    open_ >> look
    if any(step.audits for step in market.rollout.steps):
        answers = task("audit_answers", "take_answers", day=day, state=state)
        open_ >> answers >> look
        audit = task("audit_tasks", "draw_audit", day=day, state=state)
        read = {
            "snapshot": fact(audit, "snapshot"),
            "llm": fact(audit, "llm"),
            "rqa": fact(audit, "rqa"),
        }
        scored = task("score_pairs", "grade_by_llm", pairs=audit, **read)
        task("audit_estimate", audit=audit, scored=scored)
        sent = task("audit_send", "send_audit", audit=audit)
        open_ >> audit >> has_queries(audit) >> [sent, scored]


for m in releasing():  # Airflow finds the DAGs among the names of this module
    globals()[f"csrm_rollout__{m.market}"] = market_dag(
        "csrm_rollout", m, rollout, doc=__doc__, schedule=m.schedule.rollout, params={"day": DAY}
    )
