#!/usr/bin/env bash
# What: OpenCC's way "to standard Traditional" leads one character to two standard forms, by the
# region that its text is said to be from. 濕 of Taiwan stays 濕 (tw2t), 濕 of Hong Kong becomes 溼
# (hk2t), Japanese 湿 becomes 濕 (jp2t) and Simplified 湿 becomes 溼 (s2t). Each is right by its own
# table; catalogues of two regions that were both "standardised" still write one word in two ways.
# Version: opencc 1.4.2.
# Why it matters: a search that folds texts by converting each to the standard of OpenCC misses the
# wet wipes of the other region. What one wants is the class of forms that the tables link, and any
# member of it: all four forms above are in one.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q opencc==1.4.2
cat > "$folder/try.py" <<'PY'
from opencc import OpenCC

routes = {"tw2t": "濕", "hk2t": "濕", "jp2t": "湿", "s2t": "湿"}
standard = {route: OpenCC(route).convert(form) for route, form in routes.items()}
for route, form in routes.items():
    print(f"{route}: {form} -> {standard[route]}")
assert standard == {"tw2t": "濕", "hk2t": "溼", "jp2t": "濕", "s2t": "溼"}, standard

# The class by links: what any regional table turns a form into, or comes from.
tables = [OpenCC(t) for t in ("tw2t", "hk2t", "jp2t", "t2tw", "t2hk", "t2jp")]
linked, fresh = set("濕"), set("濕")
while fresh:
    fresh = {table.convert(form) for table in tables for form in fresh} - linked
    linked |= fresh
print("one class:", "".join(sorted(linked)))
assert linked == set("濕溼湿"), linked
PY
"$folder/venv/bin/python" "$folder/try.py"
