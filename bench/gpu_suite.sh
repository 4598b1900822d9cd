#!/usr/bin/env bash
# What needs a GPU, in less than 8 minutes: the operator, the whole network, the gpu tests, the
# compiled peers.
#
#   bench/gpu_suite.sh
#
# It builds the package first (in PYTHON's environment, which has torch, by the CUDA toolkit at hand)
# and ends at once where an implementation cannot run, since then every test of it would skip. Rows
# and the log go to bench/results/<gpu>/ (or OUT), rows as soon as they are known. Every part runs,
# whatever became of the others, the most telling first; the status is 1 if any of them failed or ran
# out of time. SMALL=1 is a dry run on the CPU, without building.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
out=${OUT:-$("$python" bench/common.py)} || exit 1
mkdir -p "$out"
export PYTHONUNBUFFERED=1

if [ "${SMALL:-0}" = 1 ]; then
    limit=2000
    small=(--help)  # without a GPU there is nothing to compile for
    rga=(--device cpu --stages 3 --batch 1 --rounds 1 --impl torch --passes eval)
    compiled=()
    step=(--device cpu --arch resnet18 --size 32x16 --batch 4 --rounds 1)
else
    limit=465  # seconds for all parts
    small=()
    # Replayed from CUDA graphs: the GPU's time, not the time Python takes to launch.
    rga=(--device cuda --dtype bfloat16 --batch 64 --stages 1,4,2,3 --rounds 15 --cuda-graph)
    compiled=(--compile)
    step=(--device cuda --amp --channels-last --batch 64 --rounds 15 --cuda-graph)
fi

failed=()
part() { # name, seconds at most, command
    local name=$1 seconds=$2 begin=$SECONDS left=$((limit - SECONDS)) status=124
    shift 2
    [ "${SMALL:-0}" = 0 ] || seconds=$left
    [ "$seconds" -lt "$left" ] || seconds=$left
    echo "== $name"
    # An interrupt lets Python say where it was, and pytest what had failed.
    [ "$seconds" -le 0 ] || { timeout --signal=INT --kill-after=10 "$seconds" "$@"; status=$?; }
    echo "== $name: status $status after $((SECONDS - begin)) s"
    [ "$status" = 0 ] || failed+=("$name")
}

# Skipped tests pass: without `cuda` or `triton` nothing would run and nothing would fail.
UNAVAILABLE='
import sys, rga_fast
missing = [f"{i.name}: {i.note}" for i in rga_fast.implementations() if not i.available]
sys.exit("not available: " + "; ".join(missing) if missing else 0)
'

ready() {
    [ "${SMALL:-0}" = 0 ] || return 0
    echo "== install"
    RGA_FAST_REQUIRE_EXTENSION=1 "$python" -m pip install -q --no-build-isolation --no-deps -e . &&
        "$python" -c "$UNAVAILABLE"
}

suite() {
    ready || { echo "failed: install"; return 1; }
    SECONDS=0
    local layouts=contiguous,channels_last
    part warm 80 "$python" bench/warm_triton.py --dtype bfloat16 --layout $layouts "${small[@]}"
    part bench_rga 100 "$python" bench/bench_rga.py "${rga[@]}" --json "$out/bench_rga.json"
    part bench_step 110 "$python" bench/bench_step.py "${step[@]}" --passes train,eval \
        --json "$out/bench_step.json"
    part warm_tests 50 "$python" bench/warm_triton.py --dtype float32,float16 --layout $layouts \
        --defaults "${small[@]}"
    part tests 120 "$python" -m pytest tests -q -m gpu --tb=short -p no:cacheprovider
    part bench_rga_compiled $limit "$python" bench/bench_rga.py "${rga[@]}" "${compiled[@]}" \
        --json "$out/bench_rga-compiled.json"
    echo "results: $out"
    [ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}"; return 1; }
}

suite 2>&1 | tee "$out/gpu_suite.log"
exit "${PIPESTATUS[0]}"
