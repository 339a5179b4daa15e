#!/usr/bin/env bash
# Builds the binaries for others: with all kernels, for any Linux whose glibc is 2.28 or newer (Debian 10, Ubuntu 18.10, Red Hat 8 and all since).
# On a bare machine with Rust, python3 with pip, and g++:
#
#     ./release.sh            target/release-linux/headfirst-VERSION-ARCHITECTURE-linux.tar.gz, with its checksum
#
# A binary made with `cargo build` asks for the glibc of the machine it was made on. This one is linked by zig against an older one. It is not
# linked statically: musl's static programs cannot load libcuda.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

glibc=2.28
packages=(ziglang==0.15.2 cargo-zigbuild==0.24.0)

fail() { printf 'release.sh: %s\n' "$*" >&2; exit 1; }

command -v cargo >/dev/null || fail "cargo is not here; install Rust from https://rustup.rs"
command -v readelf >/dev/null || fail "readelf is not here, which comes with g++ (Debian, Ubuntu: apt-get install binutils)"
[ "$(uname -s)" = Linux ] || fail "it runs on Linux, this is $(uname -s)"
machine="$(uname -m)"
target="$machine-unknown-linux-gnu"

CUDA_HOME="${CUDA_HOME:-$(kernels/toolchain.sh)}"
export CUDA_HOME HEADFIRST_REQUIRE_CUDA=1
unset HEADFIRST_CUDA_ARCHS

# The linker, beside the CUDA toolchain: the list of packages is written last.
tools="${XDG_CACHE_HOME:-$HOME/.cache}/headfirst/release-tools"
if [ "$(cat "$tools/packages.txt" 2>/dev/null)" != "${packages[*]}" ]; then
    python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is missing (Debian, Ubuntu: apt-get install python3-pip)"
    rm -rf "$tools"
    PIP_USER=0 PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --target "$tools" "${packages[@]}" >&2 || fail "pip could not install these packages: ${packages[*]}"
    echo "${packages[*]}" >"$tools/packages.txt"
fi
export CARGO_ZIGBUILD_ZIG_PATH="$tools/ziglang/zig"
"$tools/bin/cargo-zigbuild" zigbuild --release --workspace --target "$target.$glibc"

# What was built asks for no newer glibc than was meant, and for no library that a bare Linux lacks: glibc's own, and gcc's for unwinding.
built="${CARGO_TARGET_DIR:-target}/$target/release"
for program in headfirst data-tools; do
    python3 - "$built/$program" "$glibc" <<'PYTHON' || fail "$program would not start everywhere"
import re, subprocess, sys
program, limit = sys.argv[1:]
data = open(program, "rb").read()
versions = {tuple(map(int, found.split(b"."))) for found in re.findall(rb"\0GLIBC_([0-9.]+)(?=\0)", data)}
newest = max(versions)
dynamic = subprocess.run(["readelf", "--dynamic", "--wide", program], capture_output=True, text=True, check=True).stdout
libraries = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
there = re.compile(r"lib(c|m|dl|pthread|rt|util|gcc_s)\.so\.\d+|ld-linux[-\w]*\.so\.\d+")
missing = sorted(library for library in libraries if not there.fullmatch(library))
print(f"{program}: glibc {'.'.join(map(str, newest))} or newer; {', '.join(sorted(libraries))}")
if not libraries or missing:
    print(f"{program} needs what a bare Linux may lack: {', '.join(missing) or 'readelf shows no library at all'}", file=sys.stderr)
sys.exit(newest > tuple(map(int, limit.split("."))) or not libraries or bool(missing))
PYTHON
    "$built/$program" --version
done

# Machine code for every architecture, and what later GPUs compile for themselves.
"$built/headfirst" doctor --json --device cpu | python3 -c '
import json, sys
wanted = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120", "compute_100"]
found = json.load(sys.stdin)["cuda"]["architectures"]
missing = [name for name in wanted if name not in found]
print("kernels for " + ", ".join(found))
sys.exit("release.sh: no kernels for " + ", ".join(missing) if missing else 0)
' || fail "this nvcc does not know all architectures; without CUDA_HOME release.sh takes the one of kernels/toolchain.sh"

version="$("$built/headfirst" --version | sed 's/^[^ ]* //')"
name="headfirst-$version-$machine-linux"
folder="${CARGO_TARGET_DIR:-target}/release-linux"
rm -rf "${folder:?}/$name"
mkdir -p "$folder/$name"
cp "$built/headfirst" "$built/data-tools" README.md LICENSE-APACHE LICENSE-MIT "$folder/$name/"
cp -r recipes "$folder/$name/"
tar -C "$folder" -czf "$folder/$name.tar.gz" "$name"
(cd "$folder" && sha256sum "$name.tar.gz" | tee "$name.tar.gz.sha256")
echo "$folder/$name.tar.gz: $(wc -c <"$folder/$name.tar.gz") bytes, headfirst itself $(wc -c <"$built/headfirst")"
