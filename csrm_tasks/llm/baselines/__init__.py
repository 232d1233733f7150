"""What the relevance LLM is compared with: a fine-tuned encoder, a prompted base."""
