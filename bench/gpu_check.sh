#!/usr/bin/env bash
# Everything that a GPU can tell about drrkit in eight minutes, in one command:
#
#     bench/gpu_check.sh [--dry-run] [FOLDER]      FOLDER: $OUT, else build/gpu_check
#
# Needs Python with torch for CUDA, numpy, pytest and pytest-xdist ($PYTHON, else python3), and drrkit
# built in place; where drrkit/_C is missing it is built, which takes nvcc. Every stage has a limit
# in seconds and a log; none ends the others. FOLDER gets seven logs and summary.json, written last.
# compute-sanitizer and ncu are used where they are and work. With --dry-run the stages run on the
# emulator, at small sizes. The exit code is 1 where a stage failed.
set -uo pipefail
cd "$(dirname "$0")/.."
DRY=
if [ "${1:-}" = --dry-run ]; then
    DRY=--dry-run
    shift
fi
OUT="$(realpath -m "${1:-${OUT:-build/gpu_check}}")"
PYTHON="${PYTHON:-python3}"
mkdir -p "$OUT"
export PYTHONPATH=. OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
STAGES=()

stage() { # stage NAME LIMIT COMMAND...
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    timeout -k 5 "$limit" "$@" >"$OUT/$name.log" 2>&1
    STAGES+=("$name:$?:$((SECONDS - start))")
}

skip() { # skip NAME WHY: exit code 77
    stage "$1" 5 bash -c 'echo "$0"; exit 77' "$2"
}

build_and_import() {
    ls drrkit/_C*.so >/dev/null 2>&1 || "$PYTHON" setup.py -q build_ext --inplace
    "$PYTHON" -m bench.gpu_check import $DRY
}

sanitize() {
    local code=0 tool
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    "$SANITIZER" "$PYTHON" -c 'import torch; torch.ones(1).cuda()' ||
        { echo "compute-sanitizer is refused here"; exit 77; }
    local core=tests/core/test_ops.py
    for tool in memcheck racecheck synccheck initcheck; do
        "$SANITIZER" --tool "$tool" --error-exitcode 9 "$PYTHON" -m pytest -q -x -p no:cacheprovider \
            "$core" -k "cuda and ($([ "$tool" = memcheck ] && echo test || echo adjoint))" || code=1
        echo "$tool: exit code so far $code"
    done
    exit $code
}

counters() {
    "$NCU" --kernel-name 'regex:(textures|copy|project|gather)' --launch-count 12 --set full \
        "$PYTHON" -m bench.gpu_check speed --repeats 2 || { echo "ncu is refused here"; exit 77; }
}

export -f build_and_import sanitize counters
export PYTHON DRY
SANITIZER="$(command -v compute-sanitizer || true)" NCU="$(command -v ncu || true)"
export SANITIZER NCU
CORE=(tests/core/test_{ops,identities,projector,second_order,pack,pose_maps,render}.py)

stage import 120 bash -c build_and_import
stage smoke 100 "$PYTHON" -m bench.gpu_check smoke $DRY
if [ -z "$SANITIZER" ] || [ -n "$DRY" ]; then
    skip sanitizer "there is no compute-sanitizer, or this is a dry run"
else
    stage sanitizer 90 bash -c sanitize
fi
stage streams 60 "$PYTHON" -m bench.gpu_check streams $DRY
stage speed 100 "$PYTHON" -m bench.gpu_check speed $DRY
if [ -z "$NCU" ] || [ -n "$DRY" ]; then
    skip counters "there is no ncu, or this is a dry run"
else
    stage counters 40 bash -c counters
fi
if [ -n "$DRY" ]; then
    stage tests 60 "$PYTHON" -m pytest -q -p no:cacheprovider --collect-only "${CORE[@]}"
else
    stage tests 180 "$PYTHON" -m pytest -q -p no:cacheprovider -n 12 -k cuda "${CORE[@]}"
fi
"$PYTHON" -m bench.gpu_check summary "$OUT" "${STAGES[@]}"
