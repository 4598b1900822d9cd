#!/usr/bin/env bash
# What needs a GPU, in less than 8 minutes: the gpu tests, the operator and the whole network.
#
#   pip install --no-build-isolation --no-deps -e . && bench/gpu_suite.sh
#
# Results go to bench/results/<gpu>/ (or OUT). Every part runs, whatever became of the others; the
# status is 1 if any of them failed or ran out of time. SMALL=1 is a dry run on the CPU.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
out=${OUT:-$("$python" bench/common.py)} || exit 1
mkdir -p "$out"

if [ "${SMALL:-0}" = 1 ]; then
    rga=(--device cpu --stages 3 --batch 1 --rounds 1)
    step=(--device cpu --arch resnet18 --size 32x16 --batch 4 --rounds 1)
else
    # Replayed from CUDA graphs: the GPU's time, not the time Python takes to launch.
    rga=(--device cuda --dtype bfloat16 --batch 64 --stages 1,4,2,3 --rounds 15 --compile --cuda-graph)
    step=(--device cuda --amp --channels-last --batch 64 --rounds 15 --cuda-graph)
fi

failed=()
part() { # name, seconds, command
    local name=$1 seconds=$2 begin=$SECONDS
    shift 2
    echo "== $name"
    timeout "$seconds" "$@"
    local status=$?
    echo "== $name: status $status after $((SECONDS - begin)) s"
    [ "$status" = 0 ] || failed+=("$name")
}

part tests 120 "$python" -m pytest -q -m gpu -p no:cacheprovider
part bench_step 90 "$python" bench/bench_step.py "${step[@]}" --json "$out/bench_step.json"
part bench_rga 250 "$python" bench/bench_rga.py "${rga[@]}" --json "$out/bench_rga.json"

echo "results: $out"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
