"""What a release must stand before it reaches shoppers, whichever way it comes.

Read anew by promotion, by the start of a rollout, and when a release is brought back: the verdict
(for this bundle, the newest one, given against what is live now), what a person has decided, and
that the release knows data no older than the live one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.errors import RefusedError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import approval, ledger, rollout, verdicts
from csrm_tasks.release.bundle.manifest import release_id
from csrm_tasks.settings import Settings


def guard(
    settings: Settings,
    config: MarketConfig,
    bundle: Artifact,
    gate: Artifact,
    entries: Sequence[ledger.Entry],
) -> dict[str, Any]:
    """Return the verdict if all that promotion needs is there; else :class:`RefusedError`."""
    verdict = _passed(config, bundle, gate)
    release = release_id(bundle)
    _registered(entries, release, verdict["digest"], bundle.digest)
    _decided(config, entries, release, verdict["digest"])
    live = ledger.live(entries)
    if verdict["champion"] != live:
        raise RefusedError(
            f"{release} was judged against {verdict['champion']}: expected {verdict['champion']} "
            f"to be live in {config.market}, but {live} is; re-evaluate"
        )
    _not_older(settings, entries, bundle)
    return verdict


def vouched(settings: Settings, bundle: Artifact, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a ledger row says of a release that may reach shoppers, and of who vouched."""
    until = _learnt_until(_store(settings), bundle.inputs)
    return {
        "bundle": bundle.ref,
        "digest": bundle.digest,
        "embeddings": bundle.inputs["embeddings"],
        "verdict": verdict["digest"],
        **({"until": until} if until else {}),
    }


def still_approved(
    config: MarketConfig, release: str, verdict: Mapping[str, Any]
) -> Callable[[Sequence[ledger.Entry]], None]:
    """Return what is checked when the row is written: somebody may say no in between."""

    def check(entries: Sequence[ledger.Entry]) -> None:
        _decided(config, entries, release, verdict["digest"])

    return check


def why_not_now(
    config: MarketConfig, entries: Sequence[ledger.Entry], verdict: Mapping[str, Any]
) -> str:
    """Say why a run does not put its registered release live, and what does; empty: it may go on.

    ``verdict``: facts of the gate's artifact. A run that ends here has ended well, so this line in
    its log is all that tells whoever waits for the release.
    """
    release, market = verdict["release"], config.market
    if verdict["verdict"] != "PASS":
        return (
            f"the gate said {verdict['verdict']} of {release}, what was live stays; "
            f"reasons: csrm release history --market {market}"
        )
    waits = _undecided(config, entries, release, verdict["digest"])
    if not rollout.by_steps(config.rollout, entries):
        return waits
    begun = rollout.used(entries, release)
    if begun is not None:
        return f"{release} was {begun.action} by row {begun.seq}: see csrm rollout status"
    steps = f"csrm_rollout__{market} takes it from there, step by step"
    return f"{waits}; {steps}" if waits else f"{release} passed the gate; {steps}"


def refuse_taken_back(config: MarketConfig, entries: Sequence[ledger.Entry], release: str) -> None:
    """Refuse a release that was rolled back or given up, and say what a person can do."""
    row = ledger.taken_back(entries, release)
    if row is None:
        return
    how = f"by {row.actor}, row {row.seq} ({row.reason}), and stays back"
    if row.action == "aborted":
        raise RefusedError(f"{release} was given up {how}; train a new one")
    raise RefusedError(
        f"{release} was rolled back {how}; csrm release restore --market {config.market} "
        f"--actor NAME --reason WHY {release} brings it back"
    )


def refuse_older(market: str, entries: Sequence[ledger.Entry], release_id: str) -> None:
    """Refuse a release that waits behind a newer one: that one is what is rolled out next."""
    if rollout.used(entries, release_id) is not None:
        return
    for row in rollout.passed(entries):
        newer, begun = row.release_id, rollout.used(entries, row.release_id)
        if newer == release_id:
            return
        if begun is not None:
            raise RefusedError(
                f"{release_id} is not rolled out any more: {newer}, registered after it, was "
                f"{begun.action} by row {begun.seq}; train a new one"
            )
        if approval.decided(entries, newer, row.payload["verdict"]).word != "rejected":
            raise RefusedError(
                f"{newer} (row {row.seq}), registered after {release_id}, is awaiting rollout, and "
                f"only the newest is rolled out; to roll out {release_id} instead, first "
                f"csrm release reject --market {market} --actor NAME --reason WHY {newer}"
            )


def refuse_begun(market: str, entries: Sequence[ledger.Entry], release: str) -> None:
    """Refuse a no that comes when the release has begun its way to shoppers: the release goes on
    unless it is taken back, and the message says by which command.
    """
    rows = [e for e in entries if e.release_id == release and e.action in ("promoted", "started")]
    if not rows:
        return
    state, gone = rollout.current_rollout(entries), ledger.taken_back(entries, release)
    back = f"csrm release rollback --market {market} --leaving {release} --actor NAME --reason WHY"
    if state is not None and state.release == release and not state.launched:
        at = "after its last step" if state.passed else f"at step {state.step} ({state.weight} %)"
        said = f"{release} is being rolled out, {at}: it is too late to reject it; {back}"
        raise RefusedError(f"{said} gives it up")
    if gone is not None:
        how = f"was {gone.action} by {gone.actor}, row {gone.seq}, and stays back"
        raise RefusedError(f"{release} {how}: there is nothing left to reject")
    live = ledger.live(entries)
    if live == release:
        since = f"{release} is live since row {rows[-1].seq}: it is too late to reject it"
        raise RefusedError(f"{since}; {back} goes back to the release before")
    raise RefusedError(f"{release} was live before {live}: there is nothing left to reject")


def _passed(config: MarketConfig, bundle: Artifact, gate: Artifact) -> dict[str, Any]:
    if config.gate is None:
        raise RefusedError(f"market {config.market} has no gate policy: nothing is promoted")
    verdict = verdicts.read(gate)
    if verdict["bundle_digest"] != bundle.digest:
        raise RefusedError(f"{gate.ref} judged another bundle than {bundle.ref}")
    if verdict["outcome"] != "PASS":
        reasons = "; ".join(verdict["reasons"])
        raise RefusedError(f"the gate said {verdict['outcome']} of {release_id(bundle)}: {reasons}")
    return verdict


def _registered(entries: Sequence[ledger.Entry], release: str, seal: str, digest: str) -> None:
    if ledger.find(entries, "registered", release, verdict=seal, digest=digest) is None:
        raise RefusedError(f"{release} is not registered with this verdict; run the register step")
    newest = [e for e in entries if (e.action, e.release_id) == ("registered", release)][-1]
    if newest.payload["verdict"] != seal:
        raise RefusedError(
            f"{release} was judged again since: row {newest.seq} says {newest.payload['outcome']}"
        )


def _decided(
    config: MarketConfig, entries: Sequence[ledger.Entry], release: str, seal: str
) -> None:
    waits = _undecided(config, entries, release, seal)
    if waits:
        raise RefusedError(waits)


def _undecided(
    config: MarketConfig, entries: Sequence[ledger.Entry], release: str, seal: str
) -> str:
    """Say what a release waits for where people have to say yes; empty: nothing."""
    decision = approval.decided(entries, release, seal)
    if decision.allows(config.release.approval):
        return ""
    why = "nobody has approved it"
    if decision.row is not None:
        why = (
            f"{decision.word}: {decision.row.actor}, row {decision.row.seq} ({decision.row.reason})"
        )
    return (
        f"{release} waits for approval ({why}): "
        f"csrm release approve --market {config.market} --actor NAME --reason WHY {release}"
    )


def _not_older(settings: Settings, entries: Sequence[ledger.Entry], bundle: Artifact) -> None:
    """Refuse data older than the live release's; where either is not known nothing is claimed."""
    live = ledger.live(entries)
    row = None if live is None else ledger.find(entries, "promoted", live)
    if row is None:
        return
    store = _store(settings)
    known = row.payload.get("until")
    if known is None:  # a row of before the ledger said so
        manifest = store.manifest(row.payload["bundle"]) or {"inputs": {}}
        known = _learnt_until(store, manifest["inputs"])
    until = _learnt_until(store, bundle.inputs)
    if known and until and until < known:
        raise RefusedError(
            f"{release_id(bundle)} has learnt from data up to {until}, the live {live} from data "
            f"up to {known}: an older week does not replace a newer one; retrain on a later week, "
            f"or roll {live} back first"
        )


def _learnt_until(store: ArtifactStore, inputs: Mapping[str, Any]) -> str | None:
    """Return the last day (ISO) of the snapshot that a bundle was made from."""
    snapshot = inputs.get("snapshot")
    manifest = store.manifest(snapshot) if snapshot else None
    until: str | None = manifest["facts"].get("until") if manifest else None
    return until


def _store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts, settings.cache)
