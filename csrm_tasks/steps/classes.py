"""Classes of steps that the DAGs treat alike: those that release, and those that take long."""

from __future__ import annotations

# Steps that change what is served, who is asked, or (``gate_tasks``, by its verdict) what the next
# week is compared with: not of a backfill, nor of a dry run
RELEASING = frozenset({
    "register", "promote", "publish_refresh", "rollout_state", "rollout_start", "rollout_apply",
    "audit_send", "audit_answers", "gate_tasks",
})  # fmt: skip
# Steps that train or score for long and fill the memory: schedule.training_hours, training_pool
TRAINING = frozenset({
    "ablation_run", "baseline_encoder", "baseline_prompt", "build_index", "embed_products",
    "embed_shard", "filter_fold", "leave_out", "mine_negatives", "mine_task_negatives",
    "pretrain_llm", "refresh", "score_pairs", "score_shard", "shorten_query_tower",
    "train_cross_encoder", "train_ebr", "train_llm", "train_towers", "translate_shard",
})  # fmt: skip
