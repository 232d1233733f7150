"""Before a rollout starts: what its steps can detect, and how long a decision takes.

By the very bounds that will judge it (:mod:`.sequential`, :mod:`.preference`), as if every day had
the recent days' sessions. A bound that shrinks as h(m) and an estimate with standard error s(m), in
m effective sessions: a release that is no worse passes a margin with a power of 80 % once
h(m) + z·s(m) is within it, and an effect is detectable after m where it is h(m) + z·s(m) or more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist

from csrm_tasks.release.online.checks import DISCORDANT, PLANNED, share_of_alpha
from csrm_tasks.release.online.sequential import boundary, rho_for
from csrm_tasks.sections import Rollout, Step

POWER = 0.8
Z = NormalDist().inv_cdf(POWER)
LONGEST = 3650  # days after which "never" is said
SQUARE = 0.9  # mean square of a session's preference: most sessions have one or two credits


@dataclass(frozen=True)
class Traffic:
    """What a day brings."""

    sessions: float  # a day
    converting: float  # share that buys
    clicking: float  # share in which anything is clicked or carted


@dataclass(frozen=True)
class Line:
    """One measure of one step."""

    measure: str
    margin: float  # loss to be ruled out, in the measure's own unit
    detectable: float | None  # loss found with a power of 80 % in max_days; None: nothing is seen
    days: int | None  # until a release that is no worse passes, with that power; None: too long


def lines(step: Step, plan: Rollout, traffic: Traffic) -> list[Line]:
    """Return what each measure of ``step`` can tell, counting this step's data alone."""
    alpha = share_of_alpha(plan)
    found = []
    if step.weight:
        spread = traffic.converting * (1 - traffic.converting)
        alone = traffic.sessions * (100 - step.interleave) / 100
        found.append(_line(
            "conversion", step.margin * traffic.converting, spread, plan.planned_sessions,
            alone * step.share * (1 - step.share), alpha, plan,
        ))  # fmt: skip
    if step.interleave:
        daily = traffic.sessions * step.interleave / 100 * traffic.clicking
        found.append(
            _line(
                "preference", step.preference_margin, SQUARE, PLANNED / SQUARE, daily, alpha, plan
            )
        )
    if step.audits:
        planned = max(1, *(s.audits for s in plan.steps))
        found += [
            _line(name, step.audit_margin, DISCORDANT, planned, plan.audit_queries, alpha, plan)
            for name in ("EM@1", "Defect@5")
        ]
    return found


def _line(
    measure: str, margin: float, spread: float, planned: float, daily: float, alpha: float,
    plan: Rollout,
) -> Line:  # fmt: skip
    """``spread``: variance of one of the ``daily`` effective units; planned in the same units."""

    def reach(days: float) -> float:
        return detectable(daily * days, spread, planned, alpha)

    if not daily:
        return Line(measure, margin, None, None)
    return Line(measure, margin, reach(plan.max_days), _first_day(reach, margin))


def detectable(units: float, spread: float, planned: float, alpha: float) -> float:
    """Return the difference found with a power of 80 % in so many units: bound and z errors."""
    bound = boundary(units, rho_for(planned, alpha), alpha) / units
    return sqrt(spread) * (bound + Z / sqrt(units))


def _first_day(reach: Callable[[float], float], margin: float) -> int | None:
    """Return the first whole day on which ``reach``, which falls, is within the margin."""
    if not margin or reach(LONGEST) > margin:
        return None
    low, high = 0.0, float(LONGEST)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if reach(middle) <= margin else (middle, high)
    return ceil(high - 1e-3)


def table(plan: Rollout, traffic: Traffic) -> list[str]:
    """Return lines of text for people: steps, and what each measure can tell."""
    shown = [
        f"{traffic.sessions:,.0f} sessions a day, {traffic.converting:.2%} convert, "
        f"{traffic.clicking:.1%} click or cart"
    ]
    for number, step in enumerate(plan.steps):
        mixed = f", {step.interleave} % interleaved" if step.interleave else ""
        shown.append(f"step {number}: {step.weight} %{mixed}, {step.days} days at least")
        shown += [_text(line, plan) for line in lines(step, plan, traffic)]
    return shown


def _text(line: Line, plan: Rollout) -> str:
    if line.detectable is None:
        return f"  {line.measure}: nothing is seen of it"
    late = line.days is None or line.days > plan.max_days
    when = "not within ten years" if line.days is None else f"{line.days} days"
    asked = f"; a person is asked after {plan.max_days}" if late else ""
    return (
        f"  {line.measure}: margin {line.margin:.4f}, in {plan.max_days} days a loss of "
        f"{line.detectable:.4f} is found; an equal release passes in {when}{asked}"
    )
