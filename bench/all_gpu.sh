#!/usr/bin/env bash
# Every claim about one GPU, the tests that need one and then the benches, in 26 minutes at most.
#
#     bash bench/all_gpu.sh                    # all
#     bash bench/all_gpu.sh logprob decode     # some
#
# Lines go to results/*.jsonl, or to $OUT/*.jsonl. A part that exceeds its limit or fails is named at the end, and the next one
# runs all the same. PYTHON has this project's requirements, with `pip install liger-kernel cut-cross-entropy` for the peers of
# logprob, and flash-attn for the peer of rollout at its best; PEER_PYTHON has TRL (bench/bench_step.py). A peer that is not there is
# recorded as not run. In a copy of the files without their repository, COMMIT says which commit they are of.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || { echo "$python sees no CUDA device"; exit 1; }
declare -A limit=([tests]=180 [logprob]=240 [decode]=240 [mfu]=120 [rollout]=360 [step]=300 [kernels]=60 [memory]=60)  # seconds
failed=()
for part in ${@:-tests logprob decode mfu rollout step kernels memory}; do
    arguments=()
    if [ "$part" = step ] && [ -n "${PEER_PYTHON:-}" ]; then arguments=(--peer-python "$PEER_PYTHON"); fi
    echo "== $part, at most ${limit[$part]} s"
    start=$SECONDS
    script=(-m "bench.bench_$part")
    if [ "$part" = tests ]; then script=(-m pytest -q -m gpu); fi
    timeout -k 10 "${limit[$part]}" "$python" "${script[@]}" ${arguments[@]+"${arguments[@]}"} || failed+=("$part")
    echo "== $part took $((SECONDS - start)) s"
done
if [ ${#failed[@]} -gt 0 ]; then echo "no result: ${failed[*]}"; exit 1; fi
