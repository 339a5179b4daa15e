#!/usr/bin/env python3
"""What the compiler made of the kernels: a table, and an error for what must not be.

    kernels/check.py [FILE.cu]...     the named kernel files, or all, for every architecture that the binary has machine code for; the table is
                                      sm_90a's; exit code 1 if a kernel breaks a rule on any of them
    kernels/check.py --arch 80        for one architecture only, and its table: 80, 86, 89, 90a, 100 or 120
    kernels/check.py --prove          that the rules catch: small kernels that each break one

It needs python3, g++, and the nvcc of HEADFIRST_NVCC, CUDA_HOME or kernels/toolchain.sh. All kernels for all architectures are some ten minutes
of one processor's work, which it spreads over those there are. The rules:
- no kernel spills registers;
- no kernel of lstm*.cu, ctc*.cu and softmax*.cu has a stack frame: an array there was meant to stay in registers;
- a multiprocessor holds the blocks that KERNEL(threads, blocks) promises;
- a kernel has tensor-core instructions where it is meant to, and there only. A line of its file says where, names may have a *:
      // tensor cores: lstm_forward_bf16, matmul_*

Occupancy is the share of a multiprocessor's warps that its registers and shared memory leave room for, in blocks of the `threads` of
KERNEL. Dynamic shared memory is the launch's, unknown here, and not counted: there a kernel may have less.
"""
import argparse
import concurrent.futures
import dataclasses
import fnmatch
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
WITHOUT_STACK = ("lstm", "ctc", "softmax")
TENSOR_CORES = re.compile(r"\b(?:HGMMA|HMMA|IGMMA|IMMA|QGMMA|DMMA)\b")

# A multiprocessor (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
REGISTERS = 64 * 1024
REGISTERS_UNIT = 256  # what a warp takes is a multiple of this
SHARED_PER_BLOCK = 1024  # taken by the system


@dataclasses.dataclass
class Multiprocessor:
    """What differs between architectures: the most warps, blocks, and bytes of shared memory."""

    warps: int
    blocks: int
    shared: int


# The architectures of build/nvcc.rs.
MULTIPROCESSORS = {
    "80": Multiprocessor(64, 32, 164 * 1024),
    "86": Multiprocessor(48, 16, 100 * 1024),
    "89": Multiprocessor(48, 24, 100 * 1024),
    "90a": Multiprocessor(64, 32, 228 * 1024),
    "100": Multiprocessor(64, 32, 228 * 1024),
    "120": Multiprocessor(48, 24, 100 * 1024),
}
SHOWN = "90a"  # the one whose table is printed and committed (docs/results/kernels.md)


class Failure(Exception):
    """Something that keeps the check from running, and what to do."""


@dataclasses.dataclass
class Kernel:
    """What the compiler reports of one kernel."""

    file: str
    name: str
    threads: int  # as KERNEL promises
    blocks: int
    registers: int = 0
    shared: int = 0  # bytes, static
    stack: int = 0  # bytes
    spills: int = 0  # bytes, stores and loads
    tensor: int = 0  # instructions

    def resident_blocks(self, chip):
        """The blocks that a multiprocessor holds at once."""
        warps = -(-self.threads // 32)
        registers = -(-self.registers * 32 // REGISTERS_UNIT) * REGISTERS_UNIT * warps
        limits = [chip.blocks, chip.warps // warps, chip.shared // (self.shared + SHARED_PER_BLOCK)]
        return min(limits + ([REGISTERS // registers] if registers else []))

    def occupancy(self, chip):
        return self.resident_blocks(chip) * -(-self.threads // 32) / chip.warps


def cuda_home():
    """The folder of nvcc: its bin/ has nvcc and, if it is whole, nvdisasm."""
    if os.environ.get("HEADFIRST_NVCC"):
        return pathlib.Path(os.environ["HEADFIRST_NVCC"]).parent.parent
    if os.environ.get("CUDA_HOME"):
        return pathlib.Path(os.environ["CUDA_HOME"])
    script = subprocess.run([HERE / "toolchain.sh"], stdout=subprocess.PIPE, text=True, check=False)
    if script.returncode:
        raise Failure("there is no nvcc: kernels/toolchain.sh could not install it, set CUDA_HOME to one")
    return pathlib.Path(script.stdout.splitlines()[-1])


def tool(home, name):
    path = home / "bin" / name
    if not path.is_file():
        path = shutil.which(name)
    if not path:
        raise Failure(f"{home}/bin has no {name}; unset CUDA_HOME and HEADFIRST_NVCC to take what kernels/toolchain.sh installs")
    return str(path)


def run(*command):
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise Failure(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def bounds(ptx):
    """Kernel -> (threads, blocks), as KERNEL wrote them into the PTX. A kernel without them may have 1024 threads."""
    found = {}
    for entry in re.finditer(r"\.entry\s+(\w+)\s*(?:\([^)]*\))?([^{]*)\{", ptx):
        threads = re.search(r"\.maxntid\s+([\d, ]+)", entry[2])
        blocks = re.search(r"\.minnctapersm\s+(\d+)", entry[2])
        product = 1
        for size in threads[1].split(",") if threads else ["1024"]:
            product *= int(size)
        found[entry[1]] = (product, int(blocks[1]) if blocks else 1)
    return found


def resources(report, kernels):
    """Reads ptxas -v: the lines after "Function properties for NAME" are that function's, also of one that a kernel calls."""
    callees = {}
    current = None
    for line in report.splitlines():
        if started := re.search(r"Function properties for '?([^\s']+)", line):
            name = started[1]
            current = kernels.get(name) or callees.setdefault(name, Kernel("", name, 1024, 1))
        elif entry := re.search(r"Compiling entry function '([^']+)'", line):
            current = kernels.get(entry[1])
        if current is None:
            continue
        if frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            current.stack = int(frame[1])
            current.spills = int(frame[2]) + int(frame[3])
        if used := re.search(r"Used (\d+) registers", line):
            current.registers = int(used[1])
            shared = re.search(r"(\d+) bytes smem", line)
            current.shared = int(shared[1]) if shared else 0
    return list(callees.values())


def embedded():
    """The architectures that the build makes machine code for; each must be known here."""
    text = (HERE.parent / "build/nvcc.rs").read_text()
    named = re.search(r"^const ARCHITECTURES: [^=]*= \[([^\]]*)\]", text, re.MULTILINE)
    archs = re.findall(r'"(\w+)"', named[1]) if named else []
    if set(archs) != set(MULTIPROCESSORS):
        raise Failure(f"build/nvcc.rs compiles for {', '.join(archs) or 'nothing'}, MULTIPROCESSORS here has {', '.join(MULTIPROCESSORS)}")
    return archs


def inspect(home, source, folder, arch):
    """Compiles one file for one architecture. Gives its kernels and the rules that it breaks."""
    base = folder / f"{source.stem}.{arch}"
    target = f"-gencode=arch=compute_{arch},code="
    common = [tool(home, "nvcc"), "-std=c++17", "-O3", "-I", HERE]
    # In two steps, as nvcc itself goes: the PTX, then the machine code from it.
    run(*common, target + f"compute_{arch}", "--ptx", "-o", f"{base}.ptx", source)
    report = run(*common, target + f"sm_{arch}", "--cubin", "-Xptxas=-v", "-o", f"{base}.cubin", f"{base}.ptx")
    promised = bounds(pathlib.Path(f"{base}.ptx").read_text())
    kernels = {name: Kernel(source.name, name, *bound) for name, bound in promised.items()}
    callees = resources(report, kernels)
    current = None
    for line in run(tool(home, "nvdisasm"), "-c", f"{base}.cubin").splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            current = kernels.get(section[1])
        elif current and TENSOR_CORES.search(line):
            current.tensor += 1

    faults = [] if kernels else ["there is no kernel in it"]
    for kernel in list(kernels.values()) + callees:
        if kernel.spills:
            faults.append(f"{kernel.name} spills {kernel.spills} bytes of registers")
        elif kernel.stack and source.stem.startswith(WITHOUT_STACK):
            faults.append(f"{kernel.name} has a stack frame of {kernel.stack} bytes")
    for kernel in kernels.values():
        if not kernel.registers:
            faults.append(f"{kernel.name} is not in the compiler's report")
        resident = kernel.resident_blocks(MULTIPROCESSORS[arch])
        if resident < kernel.blocks:
            faults.append(f"{kernel.name}: a multiprocessor holds {resident} blocks, {kernel.blocks} are promised")
    marked = " ".join(re.findall(r"^// tensor cores: (.*)$", source.read_text(), re.MULTILINE)).replace(",", " ").split()
    for pattern in marked:
        if not fnmatch.filter(kernels, pattern):
            faults.append(f'"tensor cores: {pattern}" names no kernel')
    for kernel in kernels.values():
        meant = any(fnmatch.fnmatch(kernel.name, pattern) for pattern in marked)
        if meant and not kernel.tensor:
            faults.append(f"{kernel.name} is meant for tensor cores and uses none")
        if kernel.tensor and not meant:
            faults.append(f'{kernel.name} uses tensor cores, and no line "// tensor cores: {kernel.name}" says that it is meant to')
    return sorted(kernels.values(), key=lambda kernel: kernel.name), [f"{source.name}: {fault}" for fault in faults]


def inspect_all(home, sources, archs):
    """Gives the kernels of each architecture, and the faults, each with the architectures that it shows on."""
    jobs = [(source, arch) for source in sources for arch in archs]
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(jobs, pool.map(lambda job: inspect(home, job[0], pathlib.Path(folder), job[1]), jobs)))
    kernels = {arch: [kernel for source in sources for kernel in results[source, arch][0]] for arch in archs}
    shown_on = {}
    for (_, arch), (_, faults) in results.items():
        for fault in faults:
            shown_on.setdefault(fault, []).append(f"sm_{arch}")
    return kernels, [f"{fault} ({', '.join(names)})" for fault, names in shown_on.items()]


def show(kernels, chip):
    head = ["file", "kernel", "threads", "blocks", "registers", "shared", "stack", "spills", "tensor cores", "occupancy"]
    rows = [head] + [
        [
            kernel.file,
            kernel.name,
            kernel.threads,
            kernel.blocks,
            kernel.registers,
            kernel.shared,
            kernel.stack,
            kernel.spills,
            kernel.tensor or "-",
            f"{100 * kernel.occupancy(chip):.0f} %",
        ]
        for kernel in kernels
    ]
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


# Name -> (source, what its faults say, or None where there must be none). All are compiled for PROVEN_ON.
PROVEN_ON = ["90a", "100"]
PROOFS = {
    "spill.cu": (
        """KERNEL(1024, 2) spill(const float *x, float *y) {
            float values[96];
            #pragma unroll
            for (int i = 0; i < 96; ++i) values[i] = x[i * 1024 + threadIdx.x];
            barrier();
            #pragma unroll
            for (int i = 0; i < 96; ++i) y[i * 1024 + threadIdx.x] = values[i] * values[(i * 7 + 5) % 96];
        }""",
        "spill spills",
    ),
    "elsewhere.cu": (
        """KERNEL(1024, 2) elsewhere(const float *x, float *y) {
            constexpr int COUNT = __CUDA_ARCH__ < 1000 ? 4 : 96;
            float values[COUNT];
            #pragma unroll
            for (int i = 0; i < COUNT; ++i) values[i] = x[i * 1024 + threadIdx.x];
            barrier();
            #pragma unroll
            for (int i = 0; i < COUNT; ++i) y[i * 1024 + threadIdx.x] = values[i] * values[(i * 7 + 5) % COUNT];
        }""",
        "bytes of registers (sm_100)",
    ),
    "lstm_array.cu": (
        """KERNEL(256, 1) indexed(const int *x, float *y) {
            float values[64], sum = 0.0f;
            #pragma unroll
            for (int i = 0; i < 64; ++i) values[i] = y[i];
            for (int i = 0; i < x[0]; ++i) values[x[i]] += 1.0f;
            #pragma unroll
            for (int i = 0; i < 64; ++i) sum = sum * 1.5f + values[i];
            y[threadIdx.x] = sum;
        }""",
        "indexed has a stack frame",
    ),
    "array.cu": (
        """KERNEL(256, 1) indexed(const int *x, float *y) {
            float values[64], sum = 0.0f;
            #pragma unroll
            for (int i = 0; i < 64; ++i) values[i] = y[i];
            for (int i = 0; i < x[0]; ++i) values[x[i]] += 1.0f;
            #pragma unroll
            for (int i = 0; i < 64; ++i) sum = sum * 1.5f + values[i];
            y[threadIdx.x] = sum;
        }""",
        None,
    ),
    "scalar.cu": (
        """// tensor cores: scalar
        KERNEL(256, 1) scalar(float *y) { y[threadIdx.x] *= 2.0f; }""",
        "scalar is meant for tensor cores and uses none",
    ),
    "misnamed.cu": (
        """// tensor cores: matmul_*
        KERNEL(256, 1) product(float *y) { y[threadIdx.x] *= 2.0f; }""",
        '"tensor cores: matmul_*" names no kernel',
    ),
    "tile.cu": (
        """// tensor cores: ti*
        KERNEL(32, 1) tile(const unsigned *a, float *c) {
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%4, %4}, {%0, %1, %2, %3};"
                         : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[threadIdx.x]));
        }""",
        None,
    ),
    "unmarked.cu": (
        """KERNEL(32, 1) tile(const unsigned *a, float *c) {
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%4, %4}, {%0, %1, %2, %3};"
                         : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[threadIdx.x]));
        }""",
        "tile uses tensor cores, and no line",
    ),
    "empty.cu": ("", "there is no kernel in it"),
}


def prove(home):
    """Runs the rules on kernels that break them, and on some that do not."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (text, _) in PROOFS.items():
            lines = [line.strip() for line in text.splitlines()]
            pathlib.Path(folder, name).write_text('#include "common.cuh"\n' + "\n".join(lines) + "\n")
        _, faults = inspect_all(home, [pathlib.Path(folder, name) for name in PROOFS], PROVEN_ON)
    failed = False
    for name, (_, expected) in PROOFS.items():
        said = [fault for fault in faults if fault.startswith(f"{name}: ")]
        caught = bool(said) and all(expected in fault for fault in said) if expected else not said
        if expected and "(sm_" not in expected: # then on all, whether in one fault or in one each
            caught &= all(any(f"sm_{arch}" in fault for fault in said) for arch in PROVEN_ON)
        failed |= not caught
        print(f"{'as expected' if caught else 'NOT CAUGHT'}: {'; '.join(said) or name + ': no fault'}")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE.cu", type=pathlib.Path)
    parser.add_argument("--arch", choices=MULTIPROCESSORS, help="this architecture only; without it, all that the binary has code for")
    parser.add_argument("--prove", action="store_true", help="show on small kernels that each rule catches")
    arguments = parser.parse_args()
    try:
        home = cuda_home()
        if arguments.prove:
            sys.exit(prove(home))
        sources = arguments.files or sorted(HERE.glob("*.cu"))
        if not sources:
            raise Failure("there are no kernels")
        archs = [arguments.arch] if arguments.arch else embedded()
        kernels, faults = inspect_all(home, sources, archs)
    except Failure as failure:
        sys.exit(f"kernels/check.py: {failure}")
    shown = arguments.arch or SHOWN
    show(kernels[shown], MULTIPROCESSORS[shown])
    for fault in faults:
        print(f"fault: {fault}", file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
