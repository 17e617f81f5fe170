#!/bin/sh
# Runs the tests or the benchmark for a GPU with an interpreter that has torch, from a checkout:
#     scripts/gpu.sh test|bench PYTHON [ARGUMENT...]
# WHEELS names a folder of packages that the interpreter lacks; nothing is downloaded.
set -eu
what=$1 python=$2
shift 2
cd "$(dirname "$0")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    PYTHONPATH="$PYTHONPATH:$site"
fi
if [ "$what" = bench ]; then
    "$python" benchmarks/gpu.py "$@"
    exit
fi
# Several processes with pytest-xdist: a CUDA error ends only one of them.
workers=
if "$python" -c 'import xdist' 2>/dev/null; then
    workers="--numprocesses $(($(nproc) / 4)) --dist worksteal"
fi
status=0
# shellcheck disable=SC2086
OMP_NUM_THREADS=1 "$python" -m pytest tests/gpu -m gpu -ra --durations 10 $workers \
    -o faulthandler_timeout=120 --continue-on-collection-errors "$@" || status=$?
[ "$status" -eq 5 ] || exit "$status" # 5: no test was collected; the summary above says why
