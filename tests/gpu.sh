#!/usr/bin/env bash
# What only a GPU can show: that the CUDA backend is right on one. Prints a Markdown table for docs/results/.
#
#   tests/gpu.sh [--headfirst PATH] [--tests PATH] [--unit-tests PATH] [--device cuda:N] [--quick]
#
# It needs a driver and a GPU, no compiler and no Rust: binaries built elsewhere do, and the folder they need is the checkout. Build them with
#
#   cargo build --release && cargo test --release --features emulator --no-run
#
# and take the paths that cargo prints ("unittests src/lib.rs", "tests/tests.rs"). Without the options they are looked for under target/release.
# compute-sanitizer is part of CUDA's toolkit; HEADFIRST_SANITIZER names another one. --quick leaves it out.
# What computes products runs twice: with NVIDIA's cuBLASLt if it is found, and with HEADFIRST_CUBLASLT=none, so by the engine's kernels.
# What does not run says "not run", and why. A check of tests fails, too, if none passed or one says that it skipped something.
# Exit code 1 if something failed, 0 if all that ran passed, 2 for wrong usage.
set -uo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"

headfirst='' tests='' unit_tests='' device=cuda quick=
while [ $# -gt 0 ]; do
    case "$1" in
    --headfirst | --tests | --unit-tests | --device)
        [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; }
        case "$1" in
        --headfirst) headfirst=$2 ;;
        --tests) tests=$2 ;;
        --unit-tests) unit_tests=$2 ;;
        --device) device=$2 ;;
        esac
        shift 2
        ;;
    --quick) quick=1 && shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
    *) echo "unknown option $1; see --help" >&2 && exit 2 ;;
    esac
done

# The newest test binary whose list of tests has one that begins so.
binary_with() {
    local path
    for path in $(ls -t "$root"/target/release/deps/"$1"-* 2>/dev/null | grep -v '\.'); do
        if [ -x "$path" ] && "$path" --list 2>/dev/null | grep -q "^$2"; then
            echo "$path"
            return
        fi
    done
}
[ -n "$headfirst" ] || headfirst="$root/target/release/headfirst"
[ -n "$tests" ] || tests="$(binary_with tests ops::)"
[ -n "$unit_tests" ] || unit_tests="$(binary_with headfirst backend::cuda::ctc)"
[ -x "$headfirst" ] && headfirst="$(cd "$(dirname "$headfirst")" && pwd)/$(basename "$headfirst")"
sanitizer="${HEADFIRST_SANITIZER:-$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)}"

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
failed=0
rows=()
row() { rows+=("| $1 | $2 |") && echo "$1: $2" >&2; }

# Why nothing at all can run; says nothing if it can.
why() {
    [ -x "$headfirst" ] || { echo "there is no $headfirst" && return; }
    # Opens the device; its own error says what is missing.
    "$headfirst" bench add --once --small --device "$device" --json >"$folder/open.json" 2>"$folder/open.log" ||
        head -n 1 "$folder/open.log" | sed 's/^error: //; s/\.*$//'
}
missing="$(why)"
gpu="$(sed -n 's/^ *"gpu": *"\(.*\)",*$/\1/p' "$folder/open.json" 2>/dev/null)"

log="$folder/log"
# check [-t] NAME COMMAND...: runs it, and notes how it ended. -t: these are tests.
check() {
    local tests='' begin=$SECONDS status=0 wrong=''
    [ "$1" = -t ] && tests=1 && shift
    local name=$1
    shift
    if [ -n "$missing" ]; then
        row "$name" "not run"
        return
    fi
    "$@" >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        wrong="exit code $status"
    elif [ -n "$tests" ] && ! grep -Eq '^test result: ok\. [1-9][0-9]* passed' "$log"; then
        wrong="no test passed"
    elif [ -n "$tests" ] && grep -Eq '(^| )skipped(:| on )' "$log"; then
        wrong="a test was skipped"
    fi
    if [ -z "$wrong" ]; then
        row "$name" "passed in $((SECONDS - begin)) s"
    else
        failed=1
        row "$name" "**failed** ($wrong)"
        tail -n 40 "$log" >&2
    fi
}

# on NAME BINARY FILTER...: tests of a binary, on the device. What passing tests print is shown, so that the log has what was skipped.
on() {
    local name=$1 binary=$2
    shift 2
    if [ -z "$missing" ] && [ ! -x "$binary" ]; then
        row "$name" "not run: no test binary"
        return
    fi
    check -t "$name" env HEADFIRST_TEST_DEVICE="$device" HEADFIRST_TEST_BINARY="$headfirst" "$binary" "$@" --show-output
}

# Calls a function with the name of who computes products, with and without NVIDIA's library.
with_and_without_the_library() {
    local found what
    found="$([ -n "$missing" ] || "$headfirst" doctor --json 2>/dev/null)"
    if grep -q '"cublaslt": *"cuBLASLt was not ' <<<"$found"; then
        for what in "${products[@]}"; do row "$what, cuBLASLt" "not run: cuBLASLt was not found"; done
    else
        "$1" cuBLASLt
    fi
    export HEADFIRST_CUBLASLT=none
    "$1" "the engine's products" --skip cublaslt
    unset HEADFIRST_CUBLASLT
}

cd "$root" || exit 2
operations="every operation against its f64 definition, and its gradients (tests/ops.rs)"
own="every kernel's own tests"
products=("$operations" "$own")
for precision in f32 tf32 bf16; do products+=("every row of the benchmark, small, $precision"); done
# by WHOM [OPTION...]: with options for the unit tests.
by() {
    local whom=$1 precision
    shift
    on "$operations, $whom" "$tests" ops:: --skip the_order_of_a_kernels_threads --skip the_number_of_threads
    on "$own, $whom" "$unit_tests" backend::cuda:: --skip emulat --test-threads 4 "$@"
    for precision in f32 tf32 bf16; do
        check "every row of the benchmark, small, $precision, $whom" \
            "$headfirst" bench --small --seconds 0 --json --device "$device" --precision "$precision"
    done
}
with_and_without_the_library by
on "trainings, cascades, resumed and planned ones, against the CPU's (tests/emulated*.rs)" "$tests" emulated \
    --skip too_little_memory_is_said
on "the language model against PyTorch's (tests/torch_text.rs)" "$tests" torch_text::

# Every kernel, at small sizes: the benchmark's rows, the operations' table, and the kernels' own tests. The binaries print which they launch.
launched="$folder/launched"
sanitized() {
    check "$@"
    [ -n "$missing" ] || grep -o 'launches kernel [a-z0-9_]*' "$log" | sed 's/.* //' >>"$launched"
}
for tool in memcheck racecheck initcheck synccheck; do
    name="compute-sanitizer, $tool"
    if [ -n "$quick" ]; then
        row "$name" "not run: --quick"
        continue
    elif [ -z "$missing" ] && [ ! -x "$sanitizer" ]; then
        row "$name" "not run: compute-sanitizer is not installed"
        continue
    fi
    run=(env HEADFIRST_SHOW_KERNELS=1 HEADFIRST_TEST_DEVICE="$device" "$sanitizer" --tool "$tool" --error-exitcode 9)
    for precision in f32 tf32 bf16; do
        sanitized "$name: every row of the benchmark, small, $precision" \
            "${run[@]}" "$headfirst" bench --small --once --json --device "$device" --precision "$precision"
    done
    if [ -z "$missing" ] && [ ! -x "$tests" ]; then
        row "$name: every operation (tests/ops.rs)" "not run: no test binary"
    else
        sanitized -t "$name: every operation (tests/ops.rs)" \
            "${run[@]}" "$tests" ops::every_operation ops::every_gradient --test-threads 1 --nocapture
    fi
    if [ -z "$missing" ] && [ ! -x "$unit_tests" ]; then
        row "$name: every kernel's own tests" "not run: no test binary"
    else
        sanitized -t "$name: every kernel's own tests" \
            "${run[@]}" "$unit_tests" backend::cuda:: --skip emulat --skip cublaslt --test-threads 1 --nocapture
    fi
done
name="kernels of docs/results/kernels.md that no run under compute-sanitizer launched"
if [ -s "$launched" ]; then
    never="$(sed -n 's/^| [a-z_]*\.cu | \([a-z0-9_]*\) |.*/\1/p' docs/results/kernels.md | grep -vxFf "$launched" | paste -sd ' ')"
    row "$name" "${never:-none}"
else
    row "$name" "not run"
fi

echo
if [ -n "$missing" ]; then
    echo "Not run: $missing."
else
    echo "$(date -u +%F), $gpu, $("$headfirst" --version), $(uname -m)."
fi
printf '\n| check | result |\n|---|---|\n'
printf '%s\n' "${rows[@]}"
exit "$failed"
