#!/usr/bin/env bash
# The tests of the CUDA backend under AddressSanitizer, which guards the memory of the kernels and of the test binary, and with every access checked
# for its alignment, which a GPU insists on; then the emulator's own with the C library's context switch, which serves processors other than x86-64. Or those named, in both ways: `kernels/emulator/test.sh cuda::lstm`.
# The kernels are compiled anew, with the build's own options, and take the place of those in the binary (src/backend/cuda/emulator.rs).
# It needs g++ and python3. HEADFIRST_CUDA_ARCHS and the like are the caller's, so that a binary that is there already is not built again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# The test binary, and the folder of its build script.
cargo test --release --workspace --features headfirst/emulator --lib --no-run --message-format=json >"$work/messages"
found="$(python3 - "$work/messages" <<'PYTHON'
import json, sys

binary = folder = None
for line in open(sys.argv[1]):
    message = json.loads(line)
    if "headfirst@" not in message.get("package_id", "") and "/headfirst#" not in message.get("package_id", ""):
        continue
    binary = message.get("executable") or binary
    folder = message.get("out_dir") or folder
print(binary, folder)
PYTHON
)"
read -r binary folder <<<"$found"
read -ra compile <"$folder/emulator/command" || true # it has no newline

# The emulator compiled with these options, as a library at $work/NAME.so.
library() {
    local name="$1"
    shift
    mkdir "$work/$name"
    # shellcheck disable=SC2016
    printf '%s\n' kernels/*.cu kernels/emulator/*.cu kernels/emulator/*.cpp | xargs -P "$(nproc)" -I{} bash -c \
        'source="$1" folder="$2"; shift 2; "$@" -x c++ -c -o "$folder/${source##*/}.o" "$source"' - {} "$work/$name" "${compile[@]}" "$@"
    "${compile[@]}" "$@" -shared -pthread -Wl,-Bsymbolic -o "$work/$name.so" "$work/$name"/*.o
}

heading() { printf '\n== %s ==\n' "$*"; }

heading "AddressSanitizer"
library sanitized -O1 -fsanitize=address,alignment -fno-sanitize-recover=alignment -fno-omit-frame-pointer
# AddressSanitizer's own library comes first, so that it has all memory of the program. The test harness leaks a little.
sanitized() {
    ASAN_OPTIONS=detect_leaks=0 HEADFIRST_EMULATOR_LIBRARY="$work/sanitized.so" \
        LD_PRELOAD="$("${compile[0]}" -print-file-name=libasan.so)" "$@"
}
HEADFIRST_EMULATOR_SANITIZE=address sanitized "$binary" "${@:-backend::cuda}"
# It is awake: not told of it, these tests do what they must not.
must_catch() {
    sanitized "$binary" "$1" >"$work/caught" 2>&1 || true
    grep -q "$2" "$work/caught" || { echo "the sanitizers missed what $1 does" >&2; exit 1; }
}
must_catch a_write_beside_the_shared_memory "ERROR: AddressSanitizer"
must_catch a_read_beside_an_allocation "ERROR: AddressSanitizer: use-after-poison"
must_catch a_read_that_is_not_aligned "runtime error: load of misaligned address"

heading "The C library's context switch"
library switched -O1 -DHEADFIRST_UCONTEXT
HEADFIRST_EMULATOR_LIBRARY="$work/switched.so" "$binary" "${@:-cuda::emulator}"
