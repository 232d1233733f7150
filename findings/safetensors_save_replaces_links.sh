#!/usr/bin/env bash
# safetensors 0.8.0: save_file() puts a new file, readable by its owner only, in the place of what
# was there; 0.7.0 wrote through a symbolic link and gave the mode that the umask asks for.
#
# Who meets it: a training job whose checkpoint path is a link to a larger disk fills the small disk
# from the second save on and leaves the old weights behind the link; weights that a job writes as
# one user can no longer be read by a server that runs as another, although umask is 022.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
cat > try.py <<'PY'
import os
import sys

import numpy as np
import safetensors
from safetensors.numpy import save_file

os.umask(0o022)
weights = {"w": np.zeros(10, np.float32)}
name = safetensors.__version__
os.mkdir(name)
os.mkdir(f"{name}/large_disk")
with open(f"{name}/large_disk/model", "w") as f:
    f.write("old")
os.symlink("large_disk/model", f"{name}/model")
save_file(weights, f"{name}/model")
save_file(weights, f"{name}/plain")
mode = os.stat(f"{name}/plain").st_mode & 0o777
linked = os.path.islink(f"{name}/model")
behind = os.path.getsize(f"{name}/large_disk/model")
print(f"safetensors {name}: mode {mode:o}, still a link: {linked}, bytes behind it: {behind}")
expected = {"0.7.0": (0o644, True, 104), "0.8.0": (0o600, False, 3)}[name]
if (mode, linked, behind) != expected:
    sys.exit(f"behaviour changed: expected {expected}")
PY
for version in 0.7.0 0.8.0; do
  venv/bin/pip install -q --disable-pip-version-check "safetensors==$version" "numpy==2.3.5"
  venv/bin/python try.py
done
