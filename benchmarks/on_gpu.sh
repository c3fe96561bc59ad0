#!/usr/bin/env bash
# Everything that only a GPU can show, in under eight minutes: on_gpu.py, with this checkout as the package.
#     benchmarks/on_gpu.sh              # writes benchmarks/on_gpu.json and benchmarks/on_gpu.md
#     benchmarks/on_gpu.sh FOLDER       # ... into that folder instead
# PYTHON names the interpreter (default: .venv/bin/python where there is one, else python3).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=${1:-$root/benchmarks}
[ -n "${PYTHON:-}" ] || { PYTHON=$root/.venv/bin/python; [ -x "$PYTHON" ] || PYTHON=python3; }

# The checkout is the package `tpas`, whatever its folder is called.
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
ln -s "$root" "$packages/tpas"
export PYTHONPATH=$packages${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
mkdir -p "$output"
"$PYTHON" "$root/benchmarks/on_gpu.py" --output "$output/on_gpu.json"
