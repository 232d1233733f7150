"""Training of the relevance LLM: tasks, mixture, loop, self-distillation rounds."""
