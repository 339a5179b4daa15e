#!/usr/bin/env bash
# The emulator's own tests, or those named (`kernels/emulator/test.sh --test tests ops`), three times: as they are, with AddressSanitizer, and with
# the C library's context switch that serves processors other than x86-64. The last two are built in a folder of their own.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- --lib cuda::emulator
target="${CARGO_TARGET_DIR:-target}"

heading() { printf '\n== %s ==\n' "$*"; }

heading "As it is"
cargo test --release --features emulator "$@"

heading "AddressSanitizer"
HEADFIRST_EMULATOR_SANITIZE=address CARGO_TARGET_DIR="$target/checked" cargo test --release --features emulator "$@"

heading "The C library's context switch"
CXXFLAGS=-DHEADFIRST_UCONTEXT CARGO_TARGET_DIR="$target/checked" cargo test --release --features emulator "$@"
