"""Lays Headfirst beside PyTorch: the same work on the same machine in one run, as a Markdown table.

    cargo build --release
    python benches/vs_torch.py                                      # every row, 5 rounds
    python benches/vs_torch.py --rows 'lstm/*' --rounds 3 --json
    python benches/vs_torch.py --write docs/results/cpu-vs-torch.md
    python benches/vs_torch.py --device cuda --precision bf16
    python benches/vs_torch.py --device cuda --epoch            # and an epoch as long as WSJ's of each stage of a cascade

`torch_rows.py` holds the table of rows, what PyTorch runs for each, and the goals. A round goes through all rows; for each row
it runs `headfirst bench NAME --json` and `torch_rows.py NAME`, each in a fresh process and alone, and every other round in the
opposite order. Machines are noisy: a time is the median over the rounds of each process's own median, with the lowest and the
highest beside it, and a ratio is the median of the ratios within a round, whose two sides saw about the same machine.

Peak memory is the largest resident set of a process that does one step of the row; on a GPU it is that of tensors on the device, as each
side counts its own, and beside it what each holds of the device for them: PyTorch's allocator all that it has reserved, Headfirst its arena
and what lasts. This file must not import torch: a child's
`ru_maxrss` starts from what its parent held when it was started, so the parent has to stay small.
"""

import argparse
import datetime
import fnmatch
import json
import os
import re
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
        self.binary, self.threads, self.on_gpu = str(arguments.headfirst), arguments.threads, arguments.device != "cpu"
        self.options = ["--device", arguments.device, "--threads", str(arguments.threads)]
        if self.on_gpu:
            self.options += ["--precision", arguments.precision]
        self.utterances, self.device = arguments.utterances, None

    def row(self, name: str, *more: str) -> tuple[dict, float]:
        """The row of this name, and the peak of the process's memory. An epoch has as many utterances as asked for: its name says 37400."""
        long = name.startswith("wsj-epoch/")
        asked = re.sub(r"/N\d+/", "/N37400/", name)
        size = ["--set", f"N={self.utterances}"] if long else []
        output, peak = run([self.binary, "bench", asked, "--json", *size, *self.options, *more], self.threads)
        result = parsed(output)
        row = next((row for row in result.get("rows", []) if row.get("name") == name), None)
        if row is None or "median_ms" not in row:
            raise Failed("the binary gave no median_ms for this row")
        self.device = result.get("gpu") or result.get("device")
        return row, peak

    def milliseconds(self, name: str) -> float:
        return float(self.row(name, *(["--once"] if name.startswith("wsj-epoch/") else []))[0]["median_ms"])

    def memory(self, name: str) -> dict:
        row, peak = self.row(name, "--once")
        if self.on_gpu:
            return {"peak_mib": row["peak_bytes"] / 2**20, "held_mib": row["held_bytes"] / 2**20}
        return {"peak_mib": peak}


class Torch:
    def __init__(self, arguments: argparse.Namespace):
        self.threads, self.device, self.on_gpu = arguments.threads, None, arguments.device != "cpu"
        options = ["--device", arguments.device, "--threads", str(arguments.threads), "--seconds", str(arguments.seconds)]
        options += ["--precision", arguments.precision, "--utterances", str(arguments.utterances)]
        self.command = lambda name, *more: [sys.executable, str(TORCH_ROWS), name, *options, *more]

    def milliseconds(self, name: str) -> float:
        result = parsed(run(self.command(name), self.threads)[0])
        self.device = result["device"]
        return result["median_ms"]

    def memory(self, name: str) -> dict:
        output, peak = run(self.command(name, "--once"), self.threads)
        result = parsed(output)
        if self.on_gpu:
            return {"peak_mib": result["peak_device_mib"], "held_mib": result["held_device_mib"]}
        return {"peak_mib": peak, "imported_mib": result["imported_mib"]}


def chosen_rows(rows: list[dict], patterns: list[str], device: str, epoch: bool) -> list[dict]:
    """The rows that a pattern names, else those of the device, in the table's order; a frozen row brings its joint row along."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row["name"], pattern) for row in rows):
            raise Failed(f"--rows {pattern}: no such row; there are " + ", ".join(row["name"] for row in rows))

    def wanted(row: dict) -> bool:
        named = any(fnmatch.fnmatchcase(row["name"], pattern) for pattern in patterns)
        return named or (epoch and row["long"]) or (not patterns and device.split(":")[0] in row["devices"])

    chosen = [row for row in rows if wanted(row)]
    joints = {row["joint"] for row in chosen}
    return [row for row in rows if row in chosen or row["name"] in joints]


def measured(rows: list[dict], sides: dict, rounds: int) -> dict:
    """Side name -> row name -> the time of every round in ms, or the reason (a string) why there is none."""
    results: dict = {side: {row["name"]: [] for row in rows} for side in sides}
    for number in range(rounds):
        for row in rows:
            name = row["name"]
            if row["long"] and number > 0:
                continue
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


def cascade_line(rows: list[dict]) -> list[str]:
    """An epoch of every stage of a cascade, one after the other, if all were measured."""
    epochs = [row for row in rows if row["name"].startswith("wsj-epoch/")]
    times = [[row[side].get("median_ms") for row in epochs] for side in ("torch", "headfirst")]
    if len(epochs) < 5 or None in times[0] + times[1]:
        return []
    torch, headfirst = (sum(side) / 1e3 for side in times)
    return ["", f"An epoch of each of the {len(epochs)} stages of a cascade: PyTorch {torch:.1f} s, Headfirst {headfirst:.1f} s, ratio {headfirst / torch:.2f}."]


def memory_table(rows: list[dict], on_gpu: bool) -> list[str]:
    head = ["name", "PyTorch MiB", "Headfirst MiB", "Headfirst / PyTorch"]
    if on_gpu:
        head += ["PyTorch holds MiB", "Headfirst holds MiB", "Headfirst / PyTorch"]
    lines = [
        "Peak of the tensors on the device in one step, and what each side holds of the device for them."
        if on_gpu
        else "Peak resident memory of a process that does one step (PyTorch: in brackets what it holds after its import).",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for row in rows:
        if "memory" not in row["torch"]:
            continue
        torch, headfirst = row["torch"]["memory"], row["headfirst"]["memory"]
        imported = f" ({torch['imported_mib']:.0f})" if "imported_mib" in torch else ""
        cells = [row["name"], *memory_cells(torch.get("peak_mib"), headfirst.get("peak_mib"), imported)]
        if on_gpu:
            cells += memory_cells(torch.get("held_mib"), headfirst.get("held_mib"))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def memory_cells(torch: float | None, headfirst: float | None, remark: str = "") -> list[str]:
    """Both sides, and their ratio."""
    theirs, ours = ("not measured" if side is None else f"{side:.0f}" for side in (torch, headfirst))
    ratio = None if torch is None or headfirst is None else headfirst / torch
    return [theirs + (remark if torch is not None else ""), ours, number_cell(ratio)]


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
        f"Measured on {result['date']}: {result['processor']}, {result['threads']} threads, products in {result['precision']}, "
        f"load average {result['load']:.2f} at the start. "
        f"PyTorch {result['torch']} ({result['torch_device']}), Headfirst on {result['headfirst_device']}. "
        f"{result['rounds']} rounds, alternating: median over the rounds (lowest to highest), ratios within a round.",
        "",
        *times_table(result["rows"]),
        *cascade_line(result["rows"]),
    ]
    if any("memory" in row["torch"] for row in result["rows"]):
        lines += ["", *memory_table(result["rows"], result["device"] != "cpu")]
    if missing := reasons(result["rows"]):
        lines += ["", *missing]
    return "\n".join(lines) + "\n"


def comparison(arguments: argparse.Namespace) -> dict:
    listed = [sys.executable, str(TORCH_ROWS), "--list", "--utterances", str(arguments.utterances)]
    table = parsed(run(listed, arguments.threads)[0])
    rows = chosen_rows(table["rows"], arguments.rows, arguments.device, arguments.epoch)
    load = os.getloadavg()[0]
    if load > 0.3:
        # OpenMP's threads wait for each other at every step of an LSTM: PyTorch's times grow tenfold beside a busy neighbour.
        print(f"warning: the load average is {load:.1f}; do not quote times measured beside other work", file=sys.stderr)
    sides = {"headfirst": Headfirst(arguments), "torch": Torch(arguments)}
    times = measured(rows, sides, arguments.rounds)
    return {
        "device": arguments.device,
        "precision": arguments.precision,
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "load": load,
        "torch": table["torch"],
        "rows": [compared(row, times, sides, not arguments.no_memory and not row["long"]) for row in rows],
        **{f"{side}_device": sides[side].device for side in sides},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare Headfirst with PyTorch, row by row, in one run.")
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="rows to measure, * as a wildcard (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each row is measured on each side (default: 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long PyTorch repeats a step in a round (default: 3)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32", help="of products, on a GPU (default: f32)")
    parser.add_argument("--epoch", action="store_true", help="also an epoch of generated utterances as long as WSJ's, for every stage of a cascade")
    parser.add_argument("--utterances", type=int, default=37_400, metavar="N", help="of that epoch (default: 37400)")
    parser.add_argument("--no-memory", action="store_true", help="measure no peak memory")
    parser.add_argument("--headfirst", type=Path, default=HERE.parent / "target/release/headfirst", metavar="PATH")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table to FILE too")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.threads, arguments.utterances) < 1:
        parser.error("--rounds, --threads and --utterances must be at least 1")
    if arguments.device == "cpu" and arguments.precision != "f32":
        parser.error("Headfirst computes in f32 alone on the CPU")
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
