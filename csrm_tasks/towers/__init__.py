"""Online twin towers: pairs to distil, model, training, export and runtime (A27-A35)."""
