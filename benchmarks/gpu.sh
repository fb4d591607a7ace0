#!/usr/bin/env bash
# All that needs a GPU, in less than eight minutes on an H100: tests, a resumed run, speed, memory.
#
#     bash benchmarks/gpu.sh [--tiny]
#
# Needs: a CUDA GPU with 80 GB, Python 3.11 or later with torch for it, and this checkout. Packages
# of pyproject.toml that are missing are installed by pip; without a network give their wheels:
# PIP_FIND_LINKS=FOLDER PIP_NO_INDEX=1 bash benchmarks/gpu.sh. No video, no CLIP weights: clips and
# towers are random. PYTHON names another interpreter. Figures go to $OUT, or ./gpu-figures.
# --tiny: the same on the CPU with a tiny model, in a minute, to test this script.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-gpu-figures}
mkdir -p "$out"
export PEVL_CACHE=${PEVL_CACHE:-$(mktemp -d)}
"$python" -c 'import pevl_cli, pytest' 2>/dev/null || "$python" -m pip install -q -e '.[test]'
if [ "${1:-}" != "--tiny" ]; then
  "$python" -c 'import torch; assert torch.cuda.is_available(), "no CUDA GPU"; print(torch.cuda.get_device_name())'
fi
started=$SECONDS
"$python" -m pytest -m gpu -rs tests 2>&1 | tee "$out/tests.txt"
echo "tests: $((SECONDS - started)) s"
"$python" benchmarks/gpu.py "$@" --to "$out/figures.json" 2>&1 | tee "$out/figures.txt"
echo "all: $((SECONDS - started)) s"
