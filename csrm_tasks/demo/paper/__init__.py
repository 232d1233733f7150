"""Do both papers' tables and figures come out of this code? Over seeds, looked at by a rule."""
