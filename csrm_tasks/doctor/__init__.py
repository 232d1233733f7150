"""``csrm doctor``: what of an installation will not work, in plain words with the cure."""
