"""What a training of the LLM costs: parameters, memory, time."""
