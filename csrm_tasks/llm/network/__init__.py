"""The relevance LLM as a network: base, LoRA, label-row head, packed attention, shards."""
