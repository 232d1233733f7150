"""From a pair to tokens: prompts, label tokens, ragged encoding, batches."""
