"""One file a tool: how its judgement files are read and written."""
