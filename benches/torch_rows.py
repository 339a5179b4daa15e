"""The rows of `headfirst bench` in PyTorch, written as its user would write them for speed; `vs_torch.py` runs this file.

    python benches/torch_rows.py --list                     # the table of rows as JSON, with their goals
    python benches/torch_rows.py NAME [--device cuda]       # steps NAME for some seconds: one JSON object
    python benches/torch_rows.py NAME --once                # one step, for the peak memory of a process that trains

A new row is one entry of ROWS: its name, a function from the device to a step (a function without arguments), and its goals.
All sequences of a batch have the same length here, so nothing is packed. A training step is forward, backward, clipping and
optimiser; other rows are forward and backward, down to the input. Everything is f32.
Dimensions: T time, N batch, C inputs, H units, L labels.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.functional import ctc_loss, log_softmax

WARM_UP_STEPS = 2
MOST_STEPS = 200
Step = Callable[[], None]


@dataclass(frozen=True)
class Row:
    name: str
    build: Callable[[torch.device], Step]
    # At most this many times PyTorch's time on the same row.
    goal: float | None = None
    # The row without frozen groups, and the goal as a share of Headfirst's own time on that row.
    joint: str | None = None
    joint_goal: float | None = None


class BlstmCtc(nn.Module):
    """BLSTMs with a tanh projection after each, then the symbols. Frames [T, N, C] -> logits [T, N, symbols]."""

    def __init__(self, layers: int, units: int, inputs: int, symbols: int):
        super().__init__()
        widths = [inputs] + [units] * (layers - 1)
        self.blstm = nn.ModuleList(nn.LSTM(width, units, bidirectional=True) for width in widths)
        self.proj = nn.ModuleList(nn.Linear(2 * units, units) for _ in widths)
        self.ctc = nn.Linear(units, symbols)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        for blstm, projection in zip(self.blstm, self.proj):
            frames = torch.tanh(projection(blstm(frames)[0]))
        return self.ctc(frames)

    def groups_from_the_top(self) -> list[list[nn.Module]]:
        return [[self.ctc], *([blstm, projection] for blstm, projection in reversed(list(zip(self.blstm, self.proj))))]


def initialise_as_espnet(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, parameter.shape[1] ** -0.5)
        else:
            nn.init.zeros_(parameter)


def ctc_batch(batch: int, frames: int, labels: int, symbols: int, device: torch.device):
    """Transcripts [N, L] without blanks, and both lengths. Nothing is shorter than the batch."""
    targets = torch.randint(1, symbols, (batch, labels)).to(device)
    return targets, torch.full((batch,), frames), torch.full((batch,), labels)


def blstm_ctc(layers: int, units: int, batch: int, frames: int, frozen: int, device: torch.device) -> Step:
    """A training step with Adadelta, the top `frozen` groups frozen."""
    inputs, symbols, labels = 43, 50, 40
    model = BlstmCtc(layers, units, inputs, symbols)
    initialise_as_espnet(model)
    model.to(device)
    for group in model.groups_from_the_top()[:frozen]:
        for module in group:
            module.requires_grad_(False)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adadelta(trainable, lr=1.0, rho=0.95, eps=1e-8)
    features = torch.randn(frames, batch, inputs).to(device)
    targets, frame_counts, label_counts = ctc_batch(batch, frames, labels, symbols, device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        log_probabilities = log_softmax(model(features), dim=-1)
        loss = ctc_loss(log_probabilities, targets, frame_counts, label_counts, reduction="sum") / batch
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 5.0)
        optimizer.step()

    return step


def lstm(units: int, bidirectional: bool, batch: int, frames: int, device: torch.device) -> Step:
    """One layer with as many inputs as units, forward and backward, gradients of all weights and of the input."""
    layer = nn.LSTM(units, units, bidirectional=bidirectional).to(device)
    inputs = torch.randn(frames, batch, units).to(device).requires_grad_()
    gradient = torch.randn(frames, batch, (1 + bidirectional) * units).to(device)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        inputs.grad = None
        layer(inputs)[0].backward(gradient)

    return step


def ctc(batch: int, frames: int, device: torch.device) -> Step:
    """Log-softmax and CTC, forward and backward to the logits."""
    symbols, labels = 50, 60
    logits = torch.randn(frames, batch, symbols).to(device).requires_grad_()
    targets, frame_counts, label_counts = ctc_batch(batch, frames, labels, symbols, device)

    def step() -> None:
        logits.grad = None
        loss = ctc_loss(log_softmax(logits, dim=-1), targets, frame_counts, label_counts, reduction="sum") / batch
        loss.backward()

    return step


JOINT = "blstm-ctc/4x320/B16-T200/joint"
ROWS = [
    Row(JOINT, partial(blstm_ctc, 4, 320, 16, 200, 0), goal=0.75),
    Row("blstm-ctc/4x320/B16-T200/frozen-1", partial(blstm_ctc, 4, 320, 16, 200, 1), joint=JOINT),
    Row("blstm-ctc/4x320/B16-T200/frozen-3", partial(blstm_ctc, 4, 320, 16, 200, 3), joint=JOINT, joint_goal=0.87),
    Row("blstm-ctc/4x320/B16-T200/frozen-4", partial(blstm_ctc, 4, 320, 16, 200, 4), joint=JOINT, joint_goal=0.80),
    Row("blstm-ctc/4x128/B16-T200/joint", partial(blstm_ctc, 4, 128, 16, 200, 0)),
    Row("lstm/320/bidirectional/B16-T200", partial(lstm, 320, True, 16, 200), goal=0.75),
    Row("lstm/1150/B20-T35", partial(lstm, 1150, False, 20, 35), goal=0.75),
    Row("ctc/B32-T400", partial(ctc, 32, 400), goal=0.5),
]


def step_times(step: Step, device: torch.device, seconds: float) -> list[float]:
    """Milliseconds of each step, at least three of them, for about `seconds`."""

    def timed() -> float:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    for _ in range(WARM_UP_STEPS):
        timed()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 1e3 * seconds and len(times) < MOST_STEPS):
        times.append(timed())
    return times


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one benchmark row in PyTorch.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the row")
    parser.add_argument("--list", action="store_true", help="print all rows and their goals")
    parser.add_argument("--once", action="store_true", help="one step, not timed")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to repeat the step")
    arguments = parser.parse_args()
    if arguments.list:
        rows = [{key: value for key, value in vars(row).items() if key != "build"} for row in ROWS]
        print(json.dumps({"torch": torch.__version__, "rows": rows}))
        return
    row = next((row for row in ROWS if row.name == arguments.name), None)
    if row is None:
        parser.error(f"no row {arguments.name!r}; --list shows them")

    torch.manual_seed(1)
    torch.set_num_threads(arguments.threads)
    # "f32" means f32 on a GPU too: cuDNN would otherwise round the operands of an LSTM to tf32 unasked.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    device = torch.device(arguments.device)
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {"name": row.name, "device": device_name(device), "imported_mib": imported / 1024}
    step = row.build(device)
    if arguments.once:
        step()
    else:
        times = step_times(step, device, arguments.seconds)
        result |= {"median_ms": statistics.median(times), "steps": len(times)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
