"""What the compiler makes of the kernels, as a Markdown table: registers, shared memory, spills and occupancy for sm_90a.

    python benches/kernel_report.py > docs/results/kernels.md
    python benches/kernel_report.py --against docs/results/kernels.md      # exit code 1 where the table has changed

It runs kernels/check.py, which needs nvcc; a GPU it does not need.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

CHECK = Path(__file__).resolve().parent.parent / "kernels/check.py"
HEAD = """# What the compiler makes of the kernels, for sm_90a
Written by

    python benches/kernel_report.py > docs/results/kernels.md

and `python benches/kernel_report.py --against docs/results/kernels.md` says what has changed since. Shared memory is the static part, which no
kernel has; occupancy leaves out the dynamic part, so a kernel may have less: [counts.md](counts.md) has the dynamic bytes that training steps launch each with.
Stack and spills in bytes, tensor cores in instructions.

"""


def report() -> tuple[str, list[str]]:
    """The table, and what kernels/check.py finds wrong."""
    done = subprocess.run([sys.executable, CHECK, "--arch", "90a"], capture_output=True, text=True, check=False)
    # Columns are parted by two spaces at least.
    rows = [re.split(r" {2,}", line.strip()) for line in done.stdout.splitlines()]
    if len(rows) < 2 or rows[0][:2] != ["file", "kernel"]:
        sys.exit(done.stderr.strip() or "kernels/check.py printed no table")
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return HEAD + "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n", done.stderr.splitlines()


def main() -> int:
    parser = argparse.ArgumentParser(description="Registers, shared memory, spills and occupancy of every kernel.")
    parser.add_argument("--against", type=Path, metavar="FILE", help="say where the table differs from this one")
    arguments = parser.parse_args()
    text, faults = report()
    for fault in faults:
        print(fault, file=sys.stderr)
    if arguments.against is None:
        print(text, end="")
        return 0
    found, known = ({line for line in page.splitlines() if line.startswith("| ")} for page in (text, arguments.against.read_text()))
    for line in sorted(found - known):
        print(f"now:    {line}")
    for line in sorted(known - found):
        print(f"before: {line}")
    if found != known:
        print(f"If that is meant: python benches/kernel_report.py > {arguments.against}")
    return int(found != known)


if __name__ == "__main__":
    sys.exit(main())
