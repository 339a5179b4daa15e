"""A straightforward joint beam search in PyTorch, with the weights of a run of Headfirst: its seconds for a data set.

    headfirst train recipes/an4-ctc-attention.toml --out RUN
    python benches/torch_decode.py RUN DATA/test                          # seconds, real-time factor, CER
    headfirst evaluate RUN --data DATA/test --beam 10 --ctc-weight 0.3    # the same by Headfirst
    python benches/torch_decode.py RUN DATA/test --check LISTS            # against the best of --n-best-json

The model is a `ctc-attention` without VGG; the search is that of `src/decode/joint.rs` with its defaults. As usual in
PyTorch one utterance is decoded after the other, and the hypotheses of an utterance are one batch: decoder step and CTC
prefix score are tensors over all of them, and the prefix score goes frame by frame. Features are read and normalised
before the clock starts.
Dimensions: T frames, H hypotheses, K candidates of each, V symbols.
"""

import argparse
import json
import math
import sys
import time
import tomllib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import conv1d, log_softmax
from torch_an4 import edits, features_and_texts

BLANK = 0
# What precedes the softmax of the attention.
SHARPENING = 2.0
# The search is over when the best hypotheses of so many lengths are behind the best of all by this.
LENGTHS, HOPELESS = 3, -10.0
NEVER = -math.inf


class Model:
    """The tensors of a `ctc-attention` and what is computed with them."""

    def __init__(self, weights: dict[str, torch.Tensor], sizes: dict):
        self.weights, self.subsample = weights, sizes["subsample"]
        self.reach = (weights["att.loc_conv.weight"].shape[-1] - 1) // 2
        self.end = len(weights["dec.output.bias"]) - 1
        self.layers = [self.blstm(layer) for layer in range(len(self.subsample))]
        embedding, frame = weights["dec.embed.weight"].shape[1], weights["att.mlp_enc.weight"].shape[1]
        self.cell = nn.LSTMCell(embedding + frame, weights["dec.decoder.0.weight_hh"].shape[1])
        self.cell.load_state_dict({name: weights[f"dec.decoder.0.{name}"] for name in self.cell.state_dict()})

    def blstm(self, layer: int) -> nn.LSTM:
        prefix = f"encoder.blstm.{layer}."
        tensors = {name[len(prefix) :]: value for name, value in self.weights.items() if name.startswith(prefix)}
        inputs, units = tensors["weight_ih_l0"].shape[1], tensors["weight_hh_l0"].shape[1]
        lstm = nn.LSTM(inputs, units, bidirectional=True)
        lstm.load_state_dict(tensors)
        return lstm

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        for layer, (lstm, step) in enumerate(zip(self.layers, self.subsample)):
            frames = torch.tanh(self.linear(f"encoder.proj.{layer}", lstm(frames)[0][::step]))
        return frames

    def step(self, frames, encoded, tokens, state):
        """ln p of the next symbol, [H, V], and the state then: z and c [H, units], attention [H, T]."""
        z, c, attention = state
        located = conv1d(attention[:, None], self.weights["att.loc_conv.weight"][:, 0], padding=self.reach)
        compared = encoded + self.linear("att.mlp_dec", z)[:, None]
        compared = compared + self.linear("att.mlp_att", located.transpose(1, 2))
        energies = self.linear("att.gvec", torch.tanh(compared))[..., 0]
        attention = torch.softmax(SHARPENING * energies, dim=-1)
        read = torch.cat([self.weights["dec.embed.weight"][tokens], attention @ frames], dim=-1)
        z, c = self.cell(read, (z, c))
        return log_softmax(self.linear("dec.output", z), dim=-1), (z, c, attention)


def prefix_scores(log_p, label, blank, last, length, candidates, end):
    """Watanabe et al. 2017, algorithm 2: ln p of each prefix, which has `length` labels, with each candidate,
    [H, K], and the states then, [T, H, K].

    `log_p` [T, V]; `label`, `blank` [T, H]; `last` [H]: the last label of each prefix."""
    frames = len(log_p)
    either = torch.logaddexp(label, blank)
    repeats = candidates == last[:, None]
    phi = torch.where(repeats, blank[:, :, None], either[:, :, None])
    y = log_p[:, candidates]
    labels = torch.full_like(y, NEVER)
    blanks = torch.full_like(y, NEVER)
    if length == 0:
        labels[0] = y[0]
    total = labels[0].clone()
    for t in range(max(length, 1), frames):
        labels[t] = torch.logaddexp(labels[t - 1], phi[t - 1]) + y[t]
        blanks[t] = torch.logaddexp(labels[t - 1], blanks[t - 1]) + log_p[t, BLANK]
        total = torch.logaddexp(total, phi[t - 1] + y[t])
    return torch.where(candidates == end, either[-1][:, None], total), labels, blanks


def is_hopeless(complete, length: int) -> bool:
    if not complete or length + 1 < LENGTHS:
        return False
    best = max(score for score, _ in complete)
    for wanted in range(length + 1 - LENGTHS, length + 1):
        same = [score for score, labels in complete if len(labels) == wanted]
        if not same or max(same) - best >= HOPELESS:
            return False
    return True


def search(model: Model, features: torch.Tensor, beam: int, ctc_weight: float) -> tuple[float, list[int]]:
    """The best hypothesis and its score."""
    hidden = model.encode(features)
    frames = len(hidden)
    encoded = model.linear("att.mlp_enc", hidden)
    log_p = log_softmax(model.linear("ctc.ctc_lo", hidden).double(), dim=-1)
    units = model.cell.hidden_size
    state = (hidden.new_zeros(1, units), hidden.new_zeros(1, units), hidden.new_full((1, frames), 1 / frames))
    read, histories = torch.tensor([model.end]), [[]]
    scores, ctc_before = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    blank = log_p[:, BLANK].cumsum(0)[:, None]
    label = torch.full_like(blank, NEVER)
    complete = []
    for length in range(frames + 1):
        heard, state = model.step(hidden, encoded, read, state)
        heard = heard.double()
        heard[:, BLANK] = NEVER
        if length == frames:
            candidates = torch.full((len(histories), 1), model.end)
        else:
            candidates = heard.topk(min(3 * beam // 2 or 1, heard.shape[1] - 1)).indices
        psi, labels, blanks = prefix_scores(log_p, label, blank, read, length, candidates, model.end)
        extended = (1 - ctc_weight) * heard.gather(1, candidates) + ctc_weight * (psi - ctc_before[:, None])
        extended = (scores[:, None] + extended).nan_to_num(nan=NEVER).flatten()
        best, places = extended.topk(min(beam, len(extended)))
        going_on = []
        for score, place in zip(best.tolist(), places.tolist()):
            parent, symbol = histories[place // candidates.shape[1]], candidates.flatten()[place].item()
            if score == NEVER:
                continue
            if symbol == model.end:
                complete.append((score, parent))
            else:
                going_on.append(place)
        if not going_on or is_hopeless(complete, length):
            break
        going_on = torch.tensor(going_on)
        parents = going_on // candidates.shape[1]
        read = candidates.flatten()[going_on]
        histories = [histories[parent] + [symbol] for parent, symbol in zip(parents.tolist(), read.tolist())]
        scores, ctc_before = extended[going_on], psi.flatten()[going_on]
        label, blank = labels.flatten(1)[:, going_on], blanks.flatten(1)[:, going_on]
        state = tuple(part[parents] for part in state)
    return max(complete, default=(NEVER, []), key=lambda found: found[0])


def best_stage(run: Path) -> Path:
    """RUN means its best stage, RUN/STAGE that one."""
    if (run / "best.safetensors").exists():
        return run
    return run / json.loads((run / "result.json").read_text())["best"]


def load(run: Path) -> tuple[Model, list[str], dict[str, torch.Tensor] | None, float]:
    """The model, its symbols, the statistics that normalise its features, and the seconds of a frame."""
    stage = best_stage(run)
    folder = next(path for path in (run, *run.parents) if (path / "recipe.toml").exists())
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    sizes = recipe["model"]
    if sizes["kind"] != "ctc-attention" or sizes["frontend"] != "none":
        sys.exit(f"error: {folder}: its model is no ctc-attention without a front end")
    symbols = (folder / "tokens.txt").read_text().splitlines()
    cmvn = folder / "cmvn.safetensors"
    options = folder / "features.toml"
    shift = tomllib.loads(options.read_text())["frame_shift"] if options.exists() else 10.0
    model = Model(load_file(stage / "best.safetensors"), sizes)
    return model, symbols, load_file(cmvn) if cmvn.exists() else None, shift / 1000


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Decode with a run of Headfirst and a beam search in PyTorch.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run of a ctc-attention, or RUN/STAGE")
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder with feats.scp and text")
    parser.add_argument("--beam", type=int, default=10)
    parser.add_argument("--ctc-weight", type=float, default=0.3, help="between 0 and 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first", type=int, metavar="N", help="decode only the first N utterances")
    parser.add_argument("--check", type=Path, metavar="LISTS", help="n-best lists of the same search by Headfirst")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if not 0 < arguments.ctc_weight < 1:
        parser.error("--ctc-weight is not between 0 and 1")
    torch.set_num_threads(arguments.threads)

    model, symbols, cmvn, shift = load(arguments.run)
    utterances = sorted(features_and_texts(arguments.data).items())[: arguments.first]
    inputs = []
    for _, (matrix, _) in utterances:
        frames = torch.from_numpy(matrix).double()
        if cmvn:
            frames = (frames - cmvn["mean"]) / cmvn["variance"].sqrt()
        inputs.append(frames.float())

    start = time.perf_counter()
    found = [search(model, frames, arguments.beam, arguments.ctc_weight) for frames in inputs]
    seconds = time.perf_counter() - start

    audio = sum(map(len, inputs)) * shift
    texts = ["".join(symbols[symbol] for symbol in labels).replace("<space>", " ") for _, labels in found]
    references = [" ".join(text.split()) for _, (_, text) in utterances]
    errors = sum(edits(list(text), list(reference)) for text, reference in zip(texts, references))
    result = {"torch": torch.__version__, "threads": arguments.threads, "utterances": len(utterances)}
    result |= {"beam": arguments.beam, "ctc_weight": arguments.ctc_weight, "audio_seconds": audio}
    result |= {"decoding_seconds": seconds, "real_time_factor": seconds / audio}
    result |= {"cer": 100.0 * errors / max(1, sum(map(len, references)))}
    if arguments.check:
        theirs = {one["utterance"]: one["hypotheses"][0] for one in json.loads(arguments.check.read_text())}
        names = [name for name, _ in utterances]
        same = [theirs[name]["tokens"] == labels for name, (_, labels) in zip(names, found)]
        off = [abs(theirs[name]["score"] - score) for name, (score, _), equal in zip(names, found, same) if equal]
        result |= {"same_as_headfirst": sum(same), "largest_score_difference": max(off, default=math.nan)}
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    main()
