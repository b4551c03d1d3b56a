#!/usr/bin/env bash
# Every claim about one GPU, in 26 minutes at most: the tests that need one, then the benches.
#
#     bash bench/all_gpu.sh                    # all
#     bash bench/all_gpu.sh logprob decode     # some
#
# Lines go to results/*.jsonl, or to $OUT/*.jsonl. A part that fails or exceeds its limit is named
# at the end, and the next one runs all the same.
#
# PYTHON: has requirements.txt, and liger-kernel and cut-cross-entropy as peers of bench_logprob.
# PEER_PYTHON: has TRL, the peer of bench_step. A peer that is missing is recorded as not run.
# COMMIT: the commit of the files, where they were copied without their repository.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "$python sees no CUDA device"
    exit 1
fi

declare -A limit=(  # seconds
    [tests]=180 [logprob]=240 [decode]=240 [mfu]=120
    [rollout]=360 [step]=300 [kernels]=60 [memory]=60
)
failed=()
for part in ${@:-tests logprob decode mfu rollout step kernels memory}; do
    script=(-m "bench.bench_$part")
    if [ "$part" = tests ]; then
        script=(-m pytest -q -m gpu)
    fi
    if [ "$part" = step ] && [ -n "${PEER_PYTHON:-}" ]; then
        script+=(--peer-python "$PEER_PYTHON")
    fi
    echo "== $part, at most ${limit[$part]} s"
    start=$SECONDS
    timeout -k 10 "${limit[$part]}" "$python" "${script[@]}" || failed+=("$part")
    echo "== $part took $((SECONDS - start)) s"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "no result: ${failed[*]}"
    exit 1
fi
