#!/usr/bin/env bash
# What: a Unigram tokenizer may cut a text otherwise once a piece is removed that occurs in no text:
# an unknown character costs the lowest score of all pieces less ten, so that whoever removes the
# lowest-scored piece makes unknown characters cheaper, and words that had pieces become <unk>.
# Version: tokenizers of the pin below.
# Why it matters: a vocabulary that is trimmed to the pieces in use (to shrink an encoder's table)
# turns known words into <unk>, unless the lowest-scored piece is kept, used or not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "tokenizers==0.23.3"
cat >"$work/seen.py" <<'PY'
from tokenizers import Tokenizer, models

used = [("<unk>", 0.0), ("tea", -1.0), ("te", -15.0), ("as", -15.0)]
unused = ("zebra", -20.0)


def tokens(pieces):
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    return [tokenizer.id_to_token(i) for i in tokenizer.encode("teas").ids]


whole, trimmed = tokens([*used, unused]), tokens(used)
print("with the unused piece:   ", whole)
print("without the unused piece:", trimmed)
assert whole == ["te", "as"], whole
assert trimmed == ["tea", "<unk>"], trimmed
PY
"$work/venv/bin/python" "$work/seen.py"
