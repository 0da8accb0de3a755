#!/usr/bin/env bash
# What a GPU has to show, in at most 6 minutes of one H100: the selection table, the step table with its loader and its
# host waits, and tiny runs that must agree with the CPU. Results: JSON files with the card's name.
#
#     benchmarks/gpu.sh [FOLDER]        # default: benchmarks/results/gpu
#     DEVICE=cpu benchmarks/gpu.sh /tmp/dry      # a dry run with tiny models
set -uo pipefail
cd "$(dirname "$0")/.."
OUTPUT=${1:-benchmarks/results/gpu}
DEVICE=${DEVICE:-cuda}
PYTHON=${PYTHON:-python}
RUNS=uniform,preset_jest,preset_flexi_jest,preset_active_clip,preset_rho_loss,cached_reference,preset_aced
QUICK=()
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
mkdir -p "$OUTPUT"
if [ "$DEVICE" = cpu ]; then
    RUNS=uniform,preset_jest
    QUICK=(--quick)
    DEVICE_OF_RUNS=far # the simulated device
else
    DEVICE_OF_RUNS=$DEVICE
fi

failed=0
part() { # NAME SECONDS COMMAND: one part may fail, and the others still run
    echo "== $1"
    local name=$1 seconds=$2
    shift 2
    timeout "$seconds" "$@" || { echo "$name failed with exit status $?"; failed=1; }
}
part "selection" 90 "$PYTHON" benchmarks/selection.py --device "$DEVICE" "${QUICK[@]}" --output "$OUTPUT/selection.json"
part "steps" 210 "$PYTHON" benchmarks/device_steps.py --device "$DEVICE" "${QUICK[@]}" --output "$OUTPUT/steps.json"
part "runs" 60 "$PYTHON" -m tests.device --device "$DEVICE_OF_RUNS" --runs "$RUNS" --output "$OUTPUT/runs.json"
exit $failed
