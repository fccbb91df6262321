#!/usr/bin/env bash
# Tests and measures Allotrope on this machine's NVIDIA GPU. It needs the driver, bash and coreutils.
set -uo pipefail

usage() {
    cat <<'END'
Usage: run.sh [OPTION]...
  --quick           fewer checkpoints, prompts and rounds; under four minutes
  --parts NAMES     only these, separated by commas: machine, conformance, levels, ptx, checkpoints, small, large
  --levels NUMBERS  optimization levels, separated by commas (0,1,2,3)
  --scratch DIR     where checkpoints and compiled kernels are written for a while (a temporary folder)
  --within SECONDS  parts that have not begun by then are not run, and no part runs longer (570; quick: 230)
  --emulator        run on the CUDA emulator in place of a GPU: slow, and its times mean nothing
What is found goes to the folder $OUT (./results): results.jsonl, log.txt and table.txt. The exit status is 0 if all passed.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-./results}
quick=0 emulator=0 within= scratch= levels=0,1,2,3
parts=machine,conformance,levels,ptx,checkpoints,small,large
while (($#)); do
    case $1 in
        --quick) quick=1 ;;
        --emulator) emulator=1 ;;
        --parts) parts=${2?--parts needs names}; shift ;;
        --levels) levels=${2?--levels needs numbers}; shift ;;
        --scratch) scratch=${2?--scratch needs a folder}; shift ;;
        --within) within=${2?--within needs seconds}; shift ;;
        --help | -h) usage; exit 0 ;;
        *) echo "unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done
for part in ${parts//,/ }; do
    case $part in
        machine | conformance | levels | ptx | checkpoints | small | large) ;;
        *) echo "there is no part $part" >&2; usage >&2; exit 2 ;;
    esac
done
((quick)) && : "${within:=230}" || : "${within:=570}"

mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
results=$out/results.jsonl log=$out/log.txt
: >"$results" >"$log"
if [[ -z $scratch ]]; then
    scratch=$(mktemp -d) || exit 1
    trap 'rm -rf "$scratch"' EXIT
fi
mkdir -p "$scratch" || exit 1
cd "$here" || exit 1

if ((emulator)); then
    export LD_LIBRARY_PATH=$here/emulator
elif [[ -d /usr/local/nvidia/lib64 ]]; then
    # Where containers have the driver, if the dynamic linker does not know it.
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/nvidia/lib64
fi
xtask=$here/bin/xtask failed=0

wanted() { [[ ,$parts, == *,$1,* ]]; }

# part NAME LIMIT COMMAND...: runs a command for at most LIMIT seconds, and notes how it ended.
part() {
    local name=$1 limit=$2 status=-1 left=$((within - SECONDS)) start=$EPOCHREALTIME seconds
    shift 2
    ((limit > left)) && limit=$left
    printf '\n==== %s: %s\n' "$name" "$*" >>"$log"
    if ((limit > 0)); then
        timeout -k 5 "$limit" "$@" >>"$log" 2>&1 </dev/null
        status=$?
    fi
    seconds=$(((${EPOCHREALTIME/[.,]/} - ${start/[.,]/}) / 1000))
    printf -v seconds '%d.%03d' $((seconds / 1000)) $((seconds % 1000))
    printf '{"kind":"part","name":"%s","status":%d,"seconds":%s}\n' "$name" "$status" "$seconds" >>"$results"
    if ((status)); then
        failed=1
        printf '%-45s FAILED (%d) %9s s\n' "$name" "$status" "$seconds"
        tail -n 5 "$log" | cut -c 1-300
    else
        printf '%-45s passed %12s s\n' "$name" "$seconds"
    fi
    return "$status"
}

describe() {
    date -u
    uname -srm
    grep -m 1 'model name' /proc/cpuinfo
    nproc
    grep MemTotal /proc/meminfo
    if type nvidia-smi >/dev/null 2>&1; then
        nvidia-smi
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,pcie.link.gen.current,pcie.link.width.current --format=csv
    else
        echo 'there is no nvidia-smi'
    fi
}

# Runs a test program and fails also where it has run no test, which is no result.
counted='
set -o pipefail
"$@" 2>&1 | {
    passed=0
    while IFS= read -r line; do
        printf "%s\n" "$line"
        [[ $line =~ ^"test result: "[a-zA-Z]+". "([0-9]+)" passed" ]] && passed=${BASH_REMATCH[1]}
    done
    ((passed > 0)) || { echo "no test passed"; exit 3; }
}'

# A test program of the archive on the driver's device.
on_device() {
    local name=$1 limit=$2 program=$3
    shift 3
    part "$name" "$limit" env ALLOTROPE_TEST_ROOT="$here" ALLOTROPE_TEST_DEVICE=cuda \
        bash -c "$counted" bash "$here/bin/$program" "$@"
}

# measure FOLDER: starts at each level, cold and warm, and steps. The driver's own cache of kernels is left out, so that only
# ours counts. Levels take turns, the second time backwards: where both rows of a level differ, so did the machine.
measure() {
    local model=$1 name=${1##*/} level limits=(--rounds 5 --steps 64) order backwards=
    ((quick)) && limits=(--rounds 3 --steps 16)
    order=${levels//,/ }
    for level in $order; do
        rm -rf "$scratch/kernels-$level"
        measure_once cold "$level" --cold
        measure_once warm "$level" "${limits[@]}"
        backwards="$level $backwards"
    done
    ((quick)) || for level in $backwards; do measure_once 'warm again' "$level" "${limits[@]}"; done
    for level in $order; do rm -rf "$scratch/kernels-$level"; done
}

# One process of a measurement, in the variables of `measure`.
measure_once() {
    local start=$1 level=$2
    shift 2
    part "$name at O$level, $start" 120 env CUDA_CACHE_DISABLE=1 "$xtask" gpu-archive measure --model "$model" \
        --level "$level" --results "$results" --kernel-cache "$scratch/kernels-$level" "$@"
}

wanted machine && describe >>"$log" 2>&1
wanted machine && part 'a question to tiny-chat' 60 env XDG_CACHE_HOME="$scratch" "$here/bin/allotrope" generate --device cuda -O2 \
    --model "$here/tests/models/tiny-chat" 'What is 7 + 8?'
wanted conformance && on_device conformance 300 test-conformance
wanted ptx && on_device 'the same PTX as on the emulator' 60 test-ptx --ignored --nocapture
wanted ptx && on_device 'kernels as on the emulator' 120 test-kernels --nocapture --exact device::kernels_give_the_same_on_the_device
wanted ptx && on_device 'generated code as on the emulator' 120 test-programs --nocapture --exact \
    device::generated_code_gives_the_same_on_the_device
if wanted checkpoints; then
    # Long enough that roundings fall the other way on another device: where none does, little is compared.
    lengths=1,17,48,200 new=16
    ((quick)) && lengths=1,17,120 new=8
    models=("$here"/tests/fixtures/*/config.json "$here"/tests/models/*/config.json)
    ((quick)) && models=("$here"/tests/fixtures/gqa-*/config.json "$here"/tests/models/*/config.json)
    for model in "${models[@]}"; do
        model=${model%/config.json}
        part "${model##*/} at every level" 60 "$xtask" gpu-archive compare --model "$model" --levels "$levels" \
            --prompts "$lengths" --new-tokens "$new" --results "$results" --kernel-cache "$scratch/kernels"
    done
fi
if wanted small; then
    measure "$here/tests/models/tiny-chat"
    ((quick)) || measure "$here/tests/models/tiny-chat-fp8"
fi
if wanted large; then
    for preset in llama-3.2-1b-fp8 llama-3.2-1b; do
        ((quick)) && [[ $preset == llama-3.2-1b ]] && continue
        if part "writing $preset" 90 "$xtask" fixtures --preset "$preset" --out "$scratch/$preset"; then
            measure "$scratch/$preset"
        fi
        rm -rf "${scratch:?}/$preset"
    done
fi
# Last, since it is the longest, and the others say more about where a mistake is.
wanted levels && on_device 'levels and graph modes' 200 test-levels

"$xtask" gpu-archive report --results "$results" | tee "$out/table.txt"
exit "$failed"
