"""Lays Headfirst beside PyTorch: the same work on the same machine in one run, as a Markdown table.

    cargo build --release
    python benches/vs_torch.py                                      # every row, 5 rounds
    python benches/vs_torch.py --rows 'lstm/*' --rounds 3 --json
    python benches/vs_torch.py --write docs/results/cpu-vs-torch.md

`torch_rows.py` holds the table of rows, what PyTorch runs for each, and the goals. A round goes through all rows; for each row
it runs `headfirst bench NAME --json` and `torch_rows.py NAME`, each in a fresh process and alone, and every other round in the
opposite order. Machines are noisy: a time is the median over the rounds of each process's own median, with the lowest and the
highest beside it, and a ratio is the median of the ratios within a round, whose two sides saw about the same machine.

Peak memory is the largest resident set of a process that does one step of the row. This file must not import torch: a child's
`ru_maxrss` starts from what its parent held when it was started, so the parent has to stay small.
"""

import argparse
import datetime
import fnmatch
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TORCH_ROWS = HERE / "torch_rows.py"


class Failed(Exception):
    """A process that did not do what was asked of it; the text says why."""


def run(command: list[str], threads: int) -> tuple[str, float]:
    """Runs `command` alone. Returns its standard output and the peak of its resident memory in MiB."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        except OSError as error:
            raise Failed(f"{command[0]}: {error.strerror}") from error
        output = process.stdout.read()
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        complaint = errors.read().strip()
    if process.returncode != 0:
        raise Failed(complaint.splitlines()[-1] if complaint else f"exit code {process.returncode}")
    return output, usage.ru_maxrss / 1024


def parsed(output: str) -> dict:
    try:
        return json.loads(output)
    except json.JSONDecodeError as error:
        raise Failed(f"its output is not JSON: {error}") from error


class Headfirst:
    def __init__(self, arguments: argparse.Namespace):
        self.binary, self.threads = str(arguments.headfirst), arguments.threads
        self.options = ["--device", arguments.device, "--threads", str(arguments.threads)]
        self.device = None

    def milliseconds(self, name: str) -> float:
        result = parsed(run([self.binary, "bench", name, "--json", *self.options], self.threads)[0])
        row = next((row for row in result.get("rows", []) if row.get("name") == name), None)
        if row is None or "median_ms" not in row:
            raise Failed("the binary gave no median_ms for this row")
        self.device = result.get("device")
        return float(row["median_ms"])

    def memory(self, name: str) -> dict:
        return {"peak_mib": run([self.binary, "bench", name, "--once", *self.options], self.threads)[1]}


class Torch:
    def __init__(self, arguments: argparse.Namespace):
        self.threads, self.device = arguments.threads, None
        options = ["--device", arguments.device, "--threads", str(arguments.threads), "--seconds", str(arguments.seconds)]
        self.command = lambda name, *more: [sys.executable, str(TORCH_ROWS), name, *options, *more]

    def milliseconds(self, name: str) -> float:
        result = parsed(run(self.command(name), self.threads)[0])
        self.device = result["device"]
        return result["median_ms"]

    def memory(self, name: str) -> dict:
        output, peak = run(self.command(name, "--once"), self.threads)
        return {"peak_mib": peak, "imported_mib": parsed(output)["imported_mib"]}


def chosen_rows(rows: list[dict], patterns: list[str]) -> list[dict]:
    """The rows that a pattern names, in the table's order; a frozen row brings its joint row along."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row["name"], pattern) for row in rows):
            raise Failed(f"--rows {pattern}: no such row; there are " + ", ".join(row["name"] for row in rows))
    chosen = [row for row in rows if not patterns or any(fnmatch.fnmatchcase(row["name"], pattern) for pattern in patterns)]
    joints = {row["joint"] for row in chosen}
    return [row for row in rows if row in chosen or row["name"] in joints]


def measured(rows: list[dict], sides: dict, rounds: int) -> dict:
    """Side name -> row name -> the time of every round in ms, or the reason (a string) why there is none."""
    results: dict = {side: {row["name"]: [] for row in rows} for side in sides}
    for number in range(rounds):
        for row in rows:
            name = row["name"]
            for side in list(sides) if number % 2 == 0 else reversed(list(sides)):
                if isinstance(results[side][name], str):
                    continue
                try:
                    results[side][name].append(sides[side].milliseconds(name))
                    note = f"{results[side][name][-1]:.1f} ms"
                except Failed as failure:
                    results[side][name] = note = str(failure)
                print(f"round {number + 1} of {rounds}: {name}: {side}: {note}", file=sys.stderr)
    return results


def spread(times: list[float] | str) -> dict:
    if isinstance(times, str):
        return {"not_measured": times}
    return {"median_ms": statistics.median(times), "lowest_ms": min(times), "highest_ms": max(times)}


def ratio(times: list[float] | str, others: list[float] | str) -> float | None:
    """The median over the rounds of time / other time."""
    if isinstance(times, str) or isinstance(others, str):
        return None
    return statistics.median(time / other for time, other in zip(times, others))


def peak_memory(side, name: str) -> dict:
    try:
        return side.memory(name)
    except Failed as failure:
        return {"not_measured": str(failure)}


def compared(row: dict, times: dict, sides: dict, with_memory: bool) -> dict:
    """One row of the result. `of_joint` is a frozen row's time as a share of the same side's joint row."""
    name, joint = row["name"], row["joint"]
    result = {"name": name, "goal": row["goal"], "joint": joint, "joint_goal": row["joint_goal"]}
    result["ratio"] = ratio(times["headfirst"][name], times["torch"][name])
    for side in sides:
        result[side] = spread(times[side][name])
        result[side]["of_joint"] = ratio(times[side][name], times[side][joint]) if joint else None
        if with_memory:
            result[side]["memory"] = peak_memory(sides[side], name)
    return result


def processor() -> str:
    """The processor's name and how many of its cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def milliseconds_cell(side: dict) -> str:
    if "not_measured" in side:
        return "not measured"
    return f"{side['median_ms']:.1f} ({side['lowest_ms']:.1f} to {side['highest_ms']:.1f})"


def number_cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def goal_cell(row: dict) -> str:
    """What the row should reach, and whether it did."""
    goals = [(row["goal"], row["ratio"], "of PyTorch"), (row["joint_goal"], row["headfirst"]["of_joint"], "of own joint")]
    cells = []
    for goal, value, of in goals:
        if goal is not None:
            verdict = "not measured" if value is None else "met" if value <= goal else "missed"
            cells.append(f"{goal:.2f} {of}: {verdict}")
    return "; ".join(cells) or "-"


def times_table(rows: list[dict]) -> list[str]:
    lines = [
        "| name | PyTorch ms | Headfirst ms | Headfirst / PyTorch | goal (at most) | Headfirst / own joint | PyTorch / own joint |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        torch, headfirst = row["torch"], row["headfirst"]
        cells = [row["name"], milliseconds_cell(torch), milliseconds_cell(headfirst), number_cell(row["ratio"])]
        cells += [goal_cell(row), number_cell(headfirst["of_joint"]), number_cell(torch["of_joint"])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def memory_table(rows: list[dict]) -> list[str]:
    lines = [
        "Peak resident memory of a process that does one step (PyTorch: in brackets what it holds after its import).",
        "",
        "| name | PyTorch MiB | Headfirst MiB | Headfirst / PyTorch |",
        "|---|---|---|---|",
    ]
    for row in rows:
        torch, headfirst = row["torch"]["memory"], row["headfirst"]["memory"]
        peaks = [side.get("peak_mib") for side in (torch, headfirst)]
        theirs = "not measured" if peaks[0] is None else f"{peaks[0]:.0f} ({torch['imported_mib']:.0f})"
        ours = "not measured" if peaks[1] is None else f"{peaks[1]:.0f}"
        lines.append(f"| {row['name']} | {theirs} | {ours} | {number_cell(None if None in peaks else peaks[1] / peaks[0])} |")
    return lines


def reasons(rows: list[dict]) -> list[str]:
    """Why a number is missing, one line a reason."""
    lines = []
    for row in rows:
        for side in ("torch", "headfirst"):
            for what, result in (("time", row[side]), ("memory", row[side].get("memory", {}))):
                if "not_measured" in result:
                    lines.append(f"- {row['name']}, {side}, {what} not measured: {result['not_measured']}")
    return lines


def markdown(result: dict) -> str:
    lines = [
        f"Measured on {result['date']}: {result['processor']}, {result['threads']} threads, "
        f"load average {result['load']:.2f} at the start. "
        f"PyTorch {result['torch']} ({result['torch_device']}), Headfirst on {result['headfirst_device']}. "
        f"{result['rounds']} rounds, alternating: median over the rounds (lowest to highest), ratios within a round.",
        "",
        *times_table(result["rows"]),
    ]
    if result["memory"]:
        lines += ["", *memory_table(result["rows"])]
    if missing := reasons(result["rows"]):
        lines += ["", *missing]
    return "\n".join(lines) + "\n"


def comparison(arguments: argparse.Namespace) -> dict:
    table = parsed(run([sys.executable, str(TORCH_ROWS), "--list"], arguments.threads)[0])
    rows = chosen_rows(table["rows"], arguments.rows)
    load = os.getloadavg()[0]
    if load > 0.3:
        # OpenMP's threads wait for each other at every step of an LSTM: PyTorch's times grow tenfold beside a busy neighbour.
        print(f"warning: the load average is {load:.1f}; do not quote times measured beside other work", file=sys.stderr)
    sides = {"headfirst": Headfirst(arguments), "torch": Torch(arguments)}
    times = measured(rows, sides, arguments.rounds)
    # The resident set says nothing about the memory of a GPU.
    with_memory = arguments.device == "cpu"
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "load": load,
        "memory": with_memory,
        "torch": table["torch"],
        "rows": [compared(row, times, sides, with_memory) for row in rows],
        **{f"{side}_device": sides[side].device for side in sides},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare Headfirst with PyTorch, row by row, in one run.")
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="rows to measure, * as a wildcard (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each row is measured on each side (default: 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long PyTorch repeats a step in a round (default: 3)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--headfirst", type=Path, default=HERE.parent / "target/release/headfirst", metavar="PATH")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table to FILE too")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    if not arguments.headfirst.is_file():
        parser.error(f"{arguments.headfirst} is no file: build it with `cargo build --release`, or name it with --headfirst PATH")
    try:
        result = comparison(arguments)
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1) if arguments.json else markdown(result), end="")
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(f"# Headfirst beside PyTorch\n\n{markdown(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
