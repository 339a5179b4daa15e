#!/usr/bin/env bash
# Installs nvcc 13.0 for those who have none, from the Python packages of its parts: about 105 MB to fetch, 280 MB on disk. It needs neither a
# GPU nor root. The last line it prints is the CUDA_HOME it made; what it finds whole already, it leaves alone.
#
#     kernels/toolchain.sh                            into ${XDG_CACHE_HOME:-~/.cache}/headfirst/cuda-13.0
#     HEADFIRST_CUDA_CACHE=/some/folder kernels/toolchain.sh
#
# The cache lies outside target/, so that every clone shares one and `cargo clean` keeps it. build/nvcc.rs looks in the same place.
set -euo pipefail

# nvcc with its compiler and headers. nvdisasm is what kernels/check.py reads machine code with; it exists from 13.2 on and reads older code.
packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-nvdisasm==13.4.92
)

fail() { printf 'kernels/toolchain.sh: %s\n' "$*" >&2; exit 1; }

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ -n "${HEADFIRST_CUDA_CACHE:-}" ]; then
    cache="$HEADFIRST_CUDA_CACHE"
elif [ -n "${XDG_CACHE_HOME:-}${HOME:-}" ]; then
    cache="${XDG_CACHE_HOME:-$HOME/.cache}/headfirst/cuda-13.0"
else
    fail "neither HOME nor XDG_CACHE_HOME is set; name a folder with HEADFIRST_CUDA_CACHE"
fi

# nvcc runs the host's compiler as its preprocessor. This is no reason to install nothing, but the build would fail without.
command -v "${NVCC_CCBIN:-g++}" >/dev/null ||
    printf 'kernels/toolchain.sh: note: there is no g++ here, and nvcc needs one (Debian, Ubuntu: apt-get install g++)\n' >&2

# The list of packages is written last: it says that all of them are there.
wanted="$(printf '%s\n' "${packages[@]}")"
if [ "$(cat "$cache/packages.txt" 2>/dev/null)" != "$wanted" ]; then
    [ "$(uname -s)" = Linux ] || fail "nvcc exists for Linux only, this is $(uname -s)"
    case "$(uname -m)" in x86_64 | aarch64) ;; *) fail "there is no nvcc for $(uname -m), only for x86_64 and aarch64" ;; esac
    command -v python3 >/dev/null || fail "python3 is missing; install it (Debian, Ubuntu: apt-get install python3 python3-pip)"
    python3 -m pip --version >/dev/null 2>&1 ||
        fail "python3 has no pip; install it (Debian, Ubuntu: apt-get install python3-pip; elsewhere: python3 -m ensurepip)"
    [ ! -e "$cache" ] || [ -e "$cache/packages.txt" ] || rmdir "$cache" 2>/dev/null ||
        fail "$cache holds something else and is left as it is; name another folder with HEADFIRST_CUDA_CACHE"
    mkdir -p "$(dirname "$cache")" || fail "cannot make the folder $(dirname "$cache"); name another with HEADFIRST_CUDA_CACHE"

    # Beside its place, then renamed: whoever looks meanwhile, or starts a second one, sees all of it or nothing.
    fresh="$(mktemp -d "$cache.XXXXXX")"
    trap 'rm -rf "$fresh"' EXIT
    printf 'installing nvcc 13.0 into %s\n' "$cache" >&2
    PIP_USER=0 PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$fresh/python" \
        "${packages[@]}" >&2 || fail "pip could not install these packages: ${packages[*]}"
    home="$fresh/python/nvidia/cu13"
    [ -x "$home/bin/nvcc" ] || fail "the packages hold no bin/nvcc any more where it was (nvidia/cu13)"
    printf '%s\n' "$wanted" >"$home/packages.txt"
    chmod 755 "$home"
    if [ "$(cat "$cache/packages.txt" 2>/dev/null)" != "$wanted" ]; then
        rm -rf "$cache"
        mv -T "$home" "$cache" || fail "cannot rename $home to $cache"
    fi
    # Cargo watches this folder: the next build looks for nvcc again.
    touch "$here/toolchain.sh" 2>/dev/null || true
fi

"$cache/bin/nvcc" --version >/dev/null || fail "$cache/bin/nvcc does not run on this machine"
cd "$cache" && pwd
