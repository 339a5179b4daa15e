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
# What does not run says "not run", and why. Exit code 1 if something failed, 0 if all that ran passed, 2 for wrong usage.
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

# check NAME COMMAND...: runs it, and notes how it ended.
check() {
    local name=$1 begin=$SECONDS log="$folder/log"
    shift
    if [ -n "$missing" ]; then
        row "$name" "not run"
    elif "$@" >"$log" 2>&1; then
        row "$name" "passed in $((SECONDS - begin)) s"
    else
        failed=1
        row "$name" "**failed** (exit code $?)"
        tail -n 40 "$log" >&2
    fi
}

# on NAME BINARY FILTER...: tests of a binary, on the device.
on() {
    local name=$1 binary=$2
    shift 2
    if [ -z "$missing" ] && [ ! -x "$binary" ]; then
        row "$name" "not run: no test binary"
        return
    fi
    check "$name" env HEADFIRST_TEST_DEVICE="$device" HEADFIRST_TEST_BINARY="$headfirst" "$binary" "$@"
}

cd "$root" || exit 2
on "every operation against its f64 definition, and its gradients (tests/ops.rs)" "$tests" ops:: \
    --skip the_order_of_a_kernels_threads --skip the_number_of_threads
on "every kernel's own tests" "$unit_tests" backend::cuda:: --skip emulator --skip tile --test-threads 4
on "training and a cascade have the CPU's losses" "$tests" emulated::a_cascade_on_the_gpu_has_the_losses_of_the_cpu
on "the same training has the same bits" "$tests" emulated::the_same_training_on_the_gpu_has_the_same_bits
on "a stopped training goes on to the same bits" "$tests" emulated::a_training_on_the_gpu_that_was_stopped
on "a run may change its device, and its arithmetic is what was asked for" "$tests" emulated::a_run_may_change emulated::rounded_products
on "what was planned is what training takes" "$tests" emulated::what_is_planned
for precision in f32 tf32 bf16; do
    check "every row of the benchmark, small, $precision" \
        "$headfirst" bench --small --seconds 0 --json --device "$device" --precision "$precision"
done

# Every kernel, at small sizes: the benchmark's rows and the operations' table.
for tool in memcheck racecheck initcheck synccheck; do
    name="compute-sanitizer, $tool"
    if [ -n "$quick" ]; then
        row "$name" "not run: --quick"
    elif [ -z "$missing" ] && [ ! -x "$sanitizer" ]; then
        row "$name" "not run: compute-sanitizer is not installed"
    else
        for precision in f32 tf32 bf16; do
            check "$name: every row of the benchmark, small, $precision" "$sanitizer" --tool "$tool" --error-exitcode 9 \
                "$headfirst" bench --small --once --json --device "$device" --precision "$precision"
        done
        if [ -x "$tests" ] || [ -n "$missing" ]; then
            check "$name: every operation (tests/ops.rs)" env HEADFIRST_TEST_DEVICE="$device" "$sanitizer" --tool "$tool" \
                --error-exitcode 9 "$tests" ops::every_operation ops::every_gradient --test-threads 1
        fi
    fi
done

echo
if [ -n "$missing" ]; then
    echo "Not run: $missing."
else
    echo "$(date -u +%F), $gpu, $("$headfirst" --version), $(uname -m)."
fi
printf '\n| check | result |\n|---|---|\n'
printf '%s\n' "${rows[@]}"
exit "$failed"
