"""The relevance LLM as a model that other servers load (A14)."""

from __future__ import annotations

from csrm_tasks import tracking
from csrm_tasks.steps.declaration import Context, Metadata, step

PROBED = 64  # dev pairs on which export and adapter are compared


@step("export_llm", inputs=["llm", "snapshot"], optional=["rqa"])
def export_llm(ctx: Context, *, precision: str = "") -> Metadata:
    """Merge the adapter into its base and write a 3-label classifier, compared with it (A14).

    ``precision``: fp32 or bf16; default, what it was trained in where that keeps to the adapter's
    probabilities, else fp32. Not part of a weekly run unless ``release.export_llm`` says so: our
    own steps score with base and adapter, and a merged model is as large as its base, every week
    again.
    """
    from csrm_tasks.llm.data import load_fields, load_pairs
    from csrm_tasks.llm.network.identity import read_card
    from csrm_tasks.llm.scoring.export import export_classifier, record

    llm, snapshot, rqa = ctx.input("llm"), ctx.input("snapshot").path, ctx.inputs.get("rqa")
    fields = load_fields(snapshot, rqa.path if rqa else None, read_card(llm.path).pivot)
    queries, products = fields.of(load_pairs(snapshot, "dev").head(PROBED))
    exported = export_classifier(llm.path, queries, products, ctx.out, precision)
    facts = record(read_card(ctx.out), exported)
    facts |= {"adapter": llm.ref, "adapter_digest": llm.digest}
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params={k: v for k, v in facts.items() if k != "max_delta"},
        metrics={"max_delta": exported.max_delta},
        files=[ctx.out / "llm.json"],
    )  # fmt: skip
    return facts
