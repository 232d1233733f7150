"""What a person may decide on the board, and doing it through :mod:`csrm_tasks.release.manage`.

A form says what its page showed (the hash of the ledger's newest row). Where the ledger has grown
since, nothing is done, unless it grew by this very form: a double click is one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from csrm_tasks.board.releases import waiting
from csrm_tasks.errors import RefusedError
from csrm_tasks.markets import load_market
from csrm_tasks.release import approval, away, ledger, manage, rollout
from csrm_tasks.release.ledger import Entry
from csrm_tasks.settings import Settings

Action = Literal["approve", "reject", "hold", "resume", "advance", "roll_back"]
ACTIONS: tuple[Action, ...] = get_args(Action)
ROWS: dict[Action, tuple[str, ...]] = {  # what each writes
    "approve": ("approved",), "reject": ("rejected",), "hold": ("held",), "resume": ("resumed",),
    "advance": ("advanced",), "roll_back": ("aborted", "rolled_back"),
}  # fmt: skip
LEAST, MOST = 3, 500  # characters of a reason


@dataclass(frozen=True)
class Offer:
    """One decision that the ledger allows now."""

    action: Action
    release: str  # that it is about; of a rollback, the one to leave
    label: str
    effect: str


@dataclass(frozen=True)
class Asked:
    """One form as it came back."""

    action: Action
    release: str
    reason: str
    seen: str  # hash of the newest ledger row when the page was drawn


def offers(entries: Sequence[Entry]) -> tuple[Offer, ...]:
    """Return what may be decided, in the order of the page."""
    state = rollout.current_rollout(entries)
    found = [] if state is None or state.launched else _of_rollout(state)
    for row in waiting(entries):
        found += _of_waiting(entries, row)
    return (*found, *_way_back(entries, state))


def _of_waiting(entries: Sequence[Entry], row: Entry) -> list[Offer]:
    release = row.release_id
    word = approval.decided(entries, release, row.payload["verdict"]).word
    said = "" if word == "nothing" else f" Said so far: {word}."
    found = []
    if word != "approved":
        effect = f"It may be rolled out by the next run.{said}"
        found.append(Offer("approve", release, "Approve", effect))
    if word != "rejected":
        found.append(Offer("reject", release, "Reject", f"It is not rolled out.{said}"))
    return found


def _of_rollout(state: rollout.CurrentRollout) -> list[Offer]:
    release, found = state.release, []
    if not state.passed and not state.paused:
        effect = "It stays at its step whatever the evidence; failures still roll it back."
        found.append(Offer("hold", release, "Hold", effect))
    if not state.passed and state.paused:
        found.append(Offer("resume", release, "Resume", "It goes on by its evidence."))
    if state.held or state.paused or state.passed:
        effect = "It goes to its next step now, because you say so."
        found.append(Offer("advance", release, "Advance", effect))
    return found


def _way_back(entries: Sequence[Entry], state: rollout.CurrentRollout | None) -> list[Offer]:
    lives = ledger.live_stack(entries)
    if state is not None and not state.launched:
        effect = f"It is given up for good; {state.control} serves everybody."
        return [Offer("roll_back", state.release, "Roll back", effect)]
    if len(lives) < 2:
        return []
    return [Offer("roll_back", lives[-1], "Roll back", f"{lives[-2]} serves everybody at once.")]


def reason_of(text: str) -> str:
    """Return a reason as it goes into the ledger: one line; :class:`RefusedError` for none."""
    reason = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not LEAST <= len(reason) <= MOST:
        raise RefusedError(f"say why, in {LEAST} to {MOST} characters, for the ledger")
    return reason


@away.one_line
def act(settings: Settings, market: str, asked: Asked, actor: str) -> Entry:
    """Do what a form asks, once, and return its ledger row.

    Raises :class:`RefusedError` with one line where the page was out of date, or what was asked
    is not possible; :class:`AwayError` or :class:`DeniedError` as the command line does.
    """
    load_market(market, settings.markets)  # a market that is not there is refused first
    entries = ledger.verified(settings, market)
    done = _done_by_this_form(entries, asked, actor)
    if done is None:
        ledger.require_head(entries, asked.seen)
        _require_offered(entries, asked, market)
        done = DO[asked.action](settings, market, asked, actor)
    if asked.action in ("approve", "reject"):
        manage.follow(settings, market)
    return done


def _require_offered(entries: Sequence[Entry], asked: Asked, market: str) -> None:
    if not any((o.action, o.release) == (asked.action, asked.release) for o in offers(entries)):
        what = asked.action.replace("_", " ")
        raise RefusedError(f"{market}: {what} of {asked.release} is not possible now; look again")


def _done_by_this_form(entries: Sequence[Entry], asked: Asked, actor: str) -> Entry | None:
    seen = next((e.seq for e in entries if e.hash == asked.seen), len(entries))
    for row in entries[seen:]:
        about = ledger.left_by(row) if asked.action == "roll_back" else row.release_id
        said = row.action in ROWS[asked.action] and about == asked.release
        if said and (row.actor, row.reason) == (actor, asked.reason):
            return row
    return None


def _approve(settings: Settings, market: str, asked: Asked, actor: str) -> Entry:
    return manage.approve(settings, market, asked.release, actor, asked.reason, asked.seen)


def _reject(settings: Settings, market: str, asked: Asked, actor: str) -> Entry:
    return manage.reject(settings, market, asked.release, actor, asked.reason, asked.seen)


def _hold(settings: Settings, market: str, asked: Asked, actor: str) -> Entry:
    return manage.hold(settings, market, actor, asked.reason)


def _resume(settings: Settings, market: str, asked: Asked, actor: str) -> Entry:
    return manage.resume(settings, market, actor, asked.reason)


def _advance(settings: Settings, market: str, asked: Asked, actor: str) -> Entry:
    manage.advance(settings, market, actor, asked.reason)
    entries = ledger.verified(settings, market)  # after the last step the promotion follows it
    return _done_by_this_form(entries, asked, actor) or entries[-1]


def _roll_back(settings: Settings, market: str, asked: Asked, actor: str) -> Entry:
    return manage.rollback(settings, market, actor, asked.reason, asked.release)


DO: dict[Action, Callable[[Settings, str, Asked, str], Entry]] = {
    "approve": _approve, "reject": _reject, "hold": _hold, "resume": _resume,
    "advance": _advance, "roll_back": _roll_back,
}  # fmt: skip
