#!/bin/sh
# Everything that is tried where a GPU is: tests, steps, real weights, peers. Takes the folder with the executables from its own place; leaves
# results.jsonl and tests.log in the folder that it is given. Ends with 1 without a GPU, and if a test fails.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?the folder for results}
shift
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
: >"$out/results.jsonl"
: >"$out/tests.log"
"$here/bench-gpu" probe >>"$out/results.jsonl" || exit 1
failed=0
# On paper alone: what goes wrong by order, and what is counted.
for test in "devices --skip faults --skip order" "gpu --skip nobody_waits --skip shrink" "nccl one_rank_of_nvidias"; do
    set -f
    # shellcheck disable=SC2086 # words
    set -- $test
    set +f
    name=$1
    shift
    echo "== $name" >>"$out/tests.log"
    if FERROTUNE_TEST_GPU=1 "$here/test-$name" --test-threads=1 "$@" >>"$out/tests.log" 2>&1; then passed=true; else passed=false failed=1; fi
    echo "{\"who\":\"test\",\"name\":\"$name\",\"passed\":$passed}" >>"$out/results.jsonl"
done
[ -n "${FERROTUNE_GPU_TESTS_ONLY:-}" ] && exit $failed
# shellcheck disable=SC2086 # words
"$here/bench-gpu" ${FERROTUNE_GPU_CASES:-} >>"$out/results.jsonl" || failed=1
if [ -d "$here/smollm2" ]; then
    "$here/ferrotune" doctor >"$out/doctor.txt" 2>&1 || failed=1
    # The same steps on the GPU and on the processor beside it.
    for device in gpu cpu; do
        if [ $device = cpu ]; then use_cpu=true; else use_cpu=false; fi
        to=$out/smollm2-$device
        echo "== smollm2 $device" >>"$out/tests.log"
        (cd "$here/smollm2" && "$here/ferrotune" train quickstart.yaml model_name_or_path=base "output_dir=$to" use_cpu=$use_cpu \
            max_steps=20 logging_steps=1 eval_strategy=no eval_on_start=false 'sample_prompts=[]' plot_loss=false \
            overwrite_output_dir=true) >>"$out/tests.log" 2>&1 || failed=1
        [ -f "$to/trainer_log.jsonl" ] &&
            sed "s/.*/{\"who\":\"smollm2\",\"device\":\"$device\",\"row\":&}/" "$to/trainer_log.jsonl" >>"$out/results.jsonl"
    done
fi
if python3 -c 'import torch, transformers, peft' 2>>"$out/tests.log"; then
    python3 "$here/peer.py" "$out/results.jsonl" >"$out/peers.jsonl" || failed=1
    cat "$out/peers.jsonl" >>"$out/results.jsonl"
else
    echo '{"who":"peers","left_out":"no torch, transformers and peft for this python3"}' >>"$out/results.jsonl"
fi
exit $failed
