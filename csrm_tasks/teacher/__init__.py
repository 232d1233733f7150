"""What teaches the towers: the LLM, a stack of it and lexical evidence, or people's labels."""
