"""PyTorch on AN4 with the papers' model: the time of an epoch with real lengths, or the whole joint training.

    cargo run --release -p data-tools -- an4 SOURCE DATA    # makes DATA/train, DATA/dev and DATA/test
    python benches/torch_an4.py DATA --epochs 3             # seconds per epoch over the training set, and peak memory
    python benches/torch_an4.py DATA --train                # early stopping on the dev loss, then greedy CER of dev and test
    python benches/torch_an4.py DATA --train --save an4.safetensors    # the best weights as a checkpoint of Headfirst

The model is ESPnet's 4 x 320 BLSTMP-CTC with subsampling [2, 2, 1, 1], global mean and variance of the features, Adadelta and
clipping at 5, batches as ESPnet makes them (batchfy_by_seq: 30 utterances, fewer where they are long). PyTorch runs in its
fastest exact form on a CPU: packed sequences are some eight times slower than padded ones, so each sequence is reversed by
index within its own length and the backward direction is an LSTM like the forward one. An epoch's seconds are those of the
training set alone; loading and evaluation are not in them.
Dimensions: T time, N batch, C inputs or units, L labels, S symbols.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import math
import random
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import ctc_loss, log_softmax

SUBSAMPLE = [2, 2, 1, 1]
UNITS = 320
MOST_UTTERANCES, LONGEST_INPUT, LONGEST_OUTPUT = 30, 800, 150
CLIP = 5.0
BLANK = 0


# Data


@dataclasses.dataclass
class Utterance:
    name: str
    # [T, C], normalised.
    frames: torch.Tensor
    # [L]
    labels: list[int]

    @property
    def frames_after_subsampling(self) -> int:
        length = len(self.frames)
        for step in SUBSAMPLE:
            length = math.ceil(length / step)
        return length

    @property
    def fits(self) -> bool:
        """Whether CTC has a path: a frame for each label and one between equal neighbours."""
        repeats = sum(left == right for left, right in itertools.pairwise(self.labels))
        return len(self.labels) + repeats <= self.frames_after_subsampling


def lines_by_id(path: Path) -> dict[str, str]:
    fields = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    return {name: (rest[0].strip() if rest else "") for name, *rest in fields}


def float_matrix(specifier: str, scp: Path) -> np.ndarray:
    """The Kaldi float matrix (FM, little endian) at `ark:offset`; a relative ark is tried from here, then beside the scp."""
    ark, offset = specifier.rsplit(":", 1)
    path = Path(ark) if Path(ark).exists() else scp.parent / ark
    with path.open("rb") as file:
        file.seek(int(offset))
        header = file.read(15)
        if header[:5] != b"\0BFM " or header[5] != 4 or header[10] != 4:
            sys.exit(f"error: {path} at byte {offset} holds no uncompressed float matrix (FM)")
        rows, columns = (int.from_bytes(header[start : start + 4], "little") for start in (6, 11))
        return np.fromfile(file, dtype="<f4", count=rows * columns).reshape(rows, columns)


def features_and_texts(folder: Path) -> dict[str, tuple[np.ndarray, str]]:
    scp = folder / "feats.scp"
    texts = lines_by_id(folder / "text")
    places = lines_by_id(scp)
    if places.keys() != texts.keys():
        sys.exit(f"error: {folder}: feats.scp and text differ in their ids, e.g. {min(places.keys() ^ texts.keys())}")
    return {name: (float_matrix(where, scp), texts[name]) for name, where in places.items()}


def characters(text: str) -> list[str]:
    return ["<space>" if character == " " else character for character in " ".join(text.split())]


def corpus(folder: Path) -> tuple[dict[str, list[Utterance]], list[str]]:
    """The three sets, normalised by the mean and variance of the training set, and the symbols: the blank, then as sorted."""
    raw = {name: features_and_texts(folder / name) for name in ("train", "dev", "test")}
    symbols = ["<blank>", *sorted({c for _, text in raw["train"].values() for c in characters(text)})]
    ids = {symbol: number for number, symbol in enumerate(symbols)}
    frames = np.concatenate([matrix for matrix, _ in raw["train"].values()]).astype(np.float64)
    mean, deviation = frames.mean(axis=0), np.maximum(frames.std(axis=0), 1e-10)

    def utterance(name: str, matrix: np.ndarray, text: str) -> Utterance:
        if unknown := set(characters(text)) - ids.keys():
            sys.exit(f"error: {name}: the training set has no {min(unknown)!r}")
        normalised = ((matrix - mean) / deviation).astype(np.float32)
        return Utterance(name, torch.from_numpy(normalised), [ids[c] for c in characters(text)])

    sets = {part: [utterance(name, *both) for name, both in sorted(texts.items())] for part, texts in raw.items()}
    return sets, symbols


def batches(utterances: list[Utterance]) -> list[list[Utterance]]:
    """ESPnet's batchfy_by_seq: longest first; a batch shrinks with the length of its first utterance."""
    ordered = sorted(utterances, key=lambda utterance: len(utterance.frames), reverse=True)
    result = []
    while ordered:
        first = ordered[0]
        factor = max(len(first.frames) // LONGEST_INPUT, len(first.labels) // LONGEST_OUTPUT)
        size = max(1, MOST_UTTERANCES // (1 + factor))
        result.append(ordered[:size])
        ordered = ordered[size:]
    return result


# Model


class PermuteFrames(torch.autograd.Function):
    """Takes the rows of [T * N, C] in another order. The order is its own inverse, so backward is the same gather again;
    autograd's own backward of `index_select` adds into a zeroed buffer."""

    @staticmethod
    def forward(context, frames, order):
        context.save_for_backward(order)
        return frames.flatten(0, 1).index_select(0, order).view(frames.shape)

    @staticmethod
    def backward(context, gradient):
        (order,) = context.saved_tensors
        return gradient.flatten(0, 1).index_select(0, order).view(gradient.shape), None


def reversing_order(lengths: torch.Tensor, frames: int) -> torch.Tensor:
    """The order of the rows of [T * N, C] that reverses each sequence within its own length and leaves its padding."""
    times = torch.arange(frames)[:, None]
    sources = torch.where(times < lengths, lengths - 1 - times, times)
    return (sources * len(lengths) + torch.arange(len(lengths))).flatten()


class Layer(nn.Module):
    """BLSTM, every s-th frame, linear, tanh. The two directions are LSTMs of their own."""

    def __init__(self, inputs: int, step: int):
        super().__init__()
        self.step = step
        self.ahead = nn.LSTM(inputs, UNITS)
        self.back = nn.LSTM(inputs, UNITS)
        self.proj = nn.Linear(2 * UNITS, UNITS)

    def forward(self, frames, lengths):
        order = reversing_order(lengths, len(frames))
        ahead = self.ahead(frames)[0]
        back = PermuteFrames.apply(self.back(PermuteFrames.apply(frames, order))[0], order)
        # Both directions run over the padding, at the end of the sequence: no frame inside it sees what came of that.
        both = torch.cat([ahead[:: self.step], back[:: self.step]], dim=-1)
        return torch.tanh(self.proj(both)), (lengths + self.step - 1) // self.step


class BlstmCtc(nn.Module):
    def __init__(self, inputs: int, symbols: int):
        super().__init__()
        widths = [inputs] + [UNITS] * (len(SUBSAMPLE) - 1)
        self.layers = nn.ModuleList(Layer(width, step) for width, step in zip(widths, SUBSAMPLE))
        self.ctc = nn.Linear(UNITS, symbols)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, parameter.shape[1] ** -0.5)
            else:
                nn.init.zeros_(parameter)

    def forward(self, frames, lengths):
        """[T, N, C] and [N] -> log-probabilities [T', N, S] and [N]."""
        for layer in self.layers:
            frames, lengths = layer(frames, lengths)
        return log_softmax(self.ctc(frames), dim=-1), lengths


def checkpoint(model: BlstmCtc) -> dict[str, torch.Tensor]:
    """The weights under the names of a bidirectional LSTM, as Headfirst and PyTorch write them."""
    tensors = {}
    for name, value in model.state_dict().items():
        match name.split("."):
            case ["layers", layer, "proj", kind]:
                name = f"encoder.proj.{layer}.{kind}"
            case ["layers", layer, direction, kind]:
                name = f"encoder.blstm.{layer}.{kind}" + ("_reverse" if direction == "back" else "")
        tensors[name] = value.contiguous()
    return tensors


# Training


def run_batch(model, batch):
    """Log-probabilities [T', N, S], their lengths [N], and -ln p(labels) of each utterance [N]."""
    frames = nn.utils.rnn.pad_sequence([utterance.frames for utterance in batch])
    lengths = torch.tensor([len(utterance.frames) for utterance in batch])
    log_probabilities, lengths = model(frames, lengths)
    targets = torch.tensor([label for utterance in batch for label in utterance.labels])
    label_counts = torch.tensor([len(utterance.labels) for utterance in batch])
    return log_probabilities, lengths, ctc_loss(log_probabilities, targets, lengths, label_counts, BLANK, reduction="none")


def train_epoch(model, optimizer, epoch_batches) -> float:
    """One pass over the shuffled batches; returns the mean loss of an utterance."""
    total = 0.0
    for batch in random.sample(epoch_batches, len(epoch_batches)):
        optimizer.zero_grad(set_to_none=True)
        losses = run_batch(model, batch)[2]
        (losses.sum() / len(batch)).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        if torch.isfinite(norm):
            optimizer.step()
        total += losses.sum().item()
    return total / sum(len(batch) for batch in epoch_batches)


def edits(hypothesis: list[int], reference: list[int]) -> int:
    """Levenshtein distance."""
    row = list(range(len(reference) + 1))
    for i, symbol in enumerate(hypothesis, 1):
        corner, row[0] = row[0], i
        for j, wanted in enumerate(reference, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (symbol != wanted))
    return row[-1]


@torch.no_grad()
def evaluate(model, utterances) -> tuple[float, float]:
    """Mean loss of an utterance (of those that fit their frames), and the greedy CER in per cent, spaces counted."""
    loss, fitting, errors, symbols = 0.0, 0, 0, 0
    for batch in batches(utterances):
        log_probabilities, lengths, losses = run_batch(model, batch)
        best = log_probabilities.argmax(dim=-1).T
        for utterance, path, length, value in zip(batch, best.tolist(), lengths.tolist(), losses.tolist()):
            hypothesis = [symbol for symbol, _ in itertools.groupby(path[:length]) if symbol != BLANK]
            errors += edits(hypothesis, utterance.labels)
            symbols += len(utterance.labels)
            if utterance.fits:
                loss, fitting = loss + value, fitting + 1
    return loss / max(fitting, 1), 100.0 * errors / max(symbols, 1)


def feasible(utterances: list[Utterance]) -> list[Utterance]:
    for utterance in utterances:
        if not utterance.fits:
            print(f"left out: {utterance.name}: {len(utterance.labels)} labels do not fit its frames", file=sys.stderr)
    return [utterance for utterance in utterances if utterance.fits]


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_epochs(model, optimizer, epoch_batches, epochs: int) -> dict:
    seconds = []
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        loss = train_epoch(model, optimizer, epoch_batches)
        seconds.append(time.perf_counter() - start)
        print(f"epoch {epoch}: {seconds[-1]:.2f} s, training loss {loss:.2f}", file=sys.stderr)
    return {"epoch_seconds": seconds, "median_epoch_seconds": statistics.median(seconds)}


def train(model, optimizer, epoch_batches, sets, patience: int, most_epochs: int) -> dict:
    """Trains until the dev loss has not fallen for `patience` epochs; leaves the best epoch's weights in `model`."""
    best, best_epoch, best_weights, seconds = math.inf, 0, None, []
    for epoch in range(1, most_epochs + 1):
        start = time.perf_counter()
        loss = train_epoch(model, optimizer, epoch_batches)
        seconds.append(time.perf_counter() - start)
        dev_loss, dev_cer = evaluate(model, sets["dev"])
        line = f"epoch {epoch}: {seconds[-1]:.2f} s, loss {loss:.2f}, dev loss {dev_loss:.2f}, dev CER {dev_cer:.2f}"
        print(line, file=sys.stderr)
        if dev_loss < best:
            best, best_epoch, best_weights = dev_loss, epoch, copy.deepcopy(model.state_dict())
        if epoch - best_epoch >= patience:
            break
    if best_weights is None:
        sys.exit("error: no epoch had a finite dev loss")
    model.load_state_dict(best_weights)
    result = {"best_epoch": best_epoch, "epoch_seconds": seconds, "median_epoch_seconds": statistics.median(seconds)}
    for part in ("dev", "test"):
        result[f"{part}_loss"], result[f"{part}_cer"] = evaluate(model, sets[part])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Time or train the papers' model on AN4 in PyTorch.")
    parser.add_argument("data", type=Path, metavar="DATA", help="the folder that `data-tools an4` made")
    parser.add_argument("--epochs", type=int, help="epochs to time (default: 3), or the most to train (default: 100)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train", action="store_true", help="train with early stopping and report the CER")
    parser.add_argument("--patience", type=int, default=5, help="epochs without a better dev loss (default: 5)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="with --train: write the best weights as safetensors")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.save and not arguments.train:
        parser.error("--save needs --train")

    torch.manual_seed(arguments.seed)
    random.seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    try:
        sets, symbols = corpus(arguments.data)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}: DATA is the folder that `data-tools an4` made")
    inputs = sets["train"][0].frames.shape[1]
    model = BlstmCtc(inputs, len(symbols))
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0, rho=0.95, eps=1e-8)
    epoch_batches = batches(feasible(sets["train"]))

    result = {"torch": torch.__version__, "threads": arguments.threads, "inputs": inputs, "symbols": len(symbols)}
    result |= {"utterances": sum(map(len, epoch_batches)), "batches": len(epoch_batches), "loaded_mib": peak_mib()}
    if arguments.train:
        result |= train(model, optimizer, epoch_batches, sets, arguments.patience, arguments.epochs or 100)
    else:
        result |= time_epochs(model, optimizer, epoch_batches, arguments.epochs or 3)
    result["peak_mib"] = peak_mib()
    if arguments.save:
        from safetensors.torch import save_file

        save_file(checkpoint(model), arguments.save)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    main()
