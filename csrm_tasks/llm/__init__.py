"""The relevance LLM: prompts, label head, batching, mixture, training, scoring (A1-A19, A44)."""
