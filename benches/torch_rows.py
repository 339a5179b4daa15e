"""The rows of `headfirst bench` in PyTorch, written as its user would write them for speed; `vs_torch.py` runs this file.

    python benches/torch_rows.py --list                     # the table of rows as JSON, with their goals
    python benches/torch_rows.py NAME [--device cuda]       # steps NAME for some seconds: one JSON object
    python benches/torch_rows.py NAME --once                # one step, for the peak memory of a process that trains

A new row is one entry of ROWS: its name, a function from the device to a step (a function without arguments), and its goals.
All sequences of a batch have the same length here, so nothing is packed; only the epochs have real lengths. A training step is forward,
backward, clipping and optimiser; other rows are forward and backward, down to the input, unless their name says otherwise.

--precision says what products are computed in: f32; tf32, as PyTorch's switches have it; bf16 under autocast, with weights, losses and
optimiser in f32. On a GPU a time is that of many steps between two waits, divided by their number, and the operands of a single
operation rotate through more copies than a cache holds, as in `headfirst bench`.
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
from itertools import cycle

import torch
from torch import nn
from torch.nn.functional import cross_entropy, ctc_loss, embedding, layer_norm, linear, log_softmax, scaled_dot_product_attention
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

WARM_UP_STEPS = 2
MOST_STEPS = 200
# On a GPU: seconds of work between two waits, and bytes of operands that rotate (as src/bench/work.rs).
BETWEEN_WAITS = 5e-3
ROTATED = 256 << 20
MOST_COPIES = 64
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
    # Where the row is measured unless it is named.
    devices: tuple[str, ...] = ("cpu", "cuda")
    # A single operation: its operands rotate on a GPU.
    rotates: bool = False
    # An epoch: one step, which takes long.
    long: bool = False


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


class VggBlstmCtc(BlstmCtc):
    """The same above ESPnet v1's front end VGG2L, which keeps a fourth of the frames."""

    def __init__(self, layers: int, units: int, inputs: int, symbols: int):
        super().__init__(layers, units, 128 * -(-inputs // 4), symbols)
        blocks = []
        for channels, filters in [(1, 64), (64, 128)]:
            blocks += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(inplace=True)]
            blocks += [nn.Conv2d(filters, filters, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, ceil_mode=True)]
        self.vgg = nn.Sequential(*blocks)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return super().forward(frames_of_maps(self.vgg(frames.transpose(0, 1)[:, None])))

    def groups_from_the_top(self) -> list[list[nn.Module]]:
        return [*super().groups_from_the_top(), [self.vgg]]


def frames_of_maps(maps: torch.Tensor) -> torch.Tensor:
    """[N, channels, T, bins] -> [T, N, channels * bins]."""
    return maps.permute(2, 0, 1, 3).flatten(2)


def initialise_as_espnet(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, parameter[0].numel() ** -0.5)
        else:
            nn.init.zeros_(parameter)


def freeze_top(model: nn.Module, frozen: int) -> list[nn.Parameter]:
    """Freezes the top groups; gives what is left to train."""
    for group in model.groups_from_the_top()[:frozen]:
        for module in group:
            module.requires_grad_(False)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def ctc_batch(batch: int, frames: int, labels: int, symbols: int, device: torch.device):
    """Transcripts [N, L] without blanks, and both lengths. Nothing is shorter than the batch."""
    targets = torch.randint(1, symbols, (batch, labels)).to(device)
    return targets, torch.full((batch,), frames), torch.full((batch,), labels)


def blstm_ctc(layers: int, units: int, batch: int, frames: int, frozen: int, device: torch.device, vgg=False) -> Step:
    """A training step with Adadelta, the top `frozen` groups frozen."""
    inputs, symbols, labels = 83 if vgg else 43, 50, 40
    model = (VggBlstmCtc if vgg else BlstmCtc)(layers, units, inputs, symbols)
    initialise_as_espnet(model)
    model.to(device)
    trainable = freeze_top(model, frozen)
    optimizer = torch.optim.Adadelta(trainable, lr=1.0, rho=0.95, eps=1e-8)
    features = torch.randn(frames, batch, inputs).to(device)
    targets, frame_counts, label_counts = ctc_batch(batch, -(-frames // 4) if vgg else frames, labels, symbols, device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        log_probabilities = log_softmax(model(features), dim=-1)
        loss = ctc_loss(log_probabilities, targets, frame_counts, label_counts, reduction="sum") / batch
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 5.0)
        optimizer.step()

    return step


class CtcAttention(nn.Module):
    """The BLSTMs of BlstmCtc under CTC and an LSTM decoder with location-aware attention, as ESPnet v1's AttLoc and Decoder have it."""

    def __init__(self, layers: int, units: int, inputs: int, symbols: int, attention: int, decoder_units: int):
        super().__init__()
        channels, reach = 10, 100
        self.encoder = BlstmCtc(layers, units, inputs, symbols)
        self.mlp_enc, self.mlp_dec = nn.Linear(units, attention), nn.Linear(decoder_units, attention, bias=False)
        self.loc_conv = nn.Conv2d(1, channels, (1, 2 * reach + 1), padding=(0, reach), bias=False)
        self.mlp_att, self.gvec = nn.Linear(channels, attention, bias=False), nn.Linear(attention, 1)
        self.embed, self.cell = nn.Embedding(symbols, decoder_units), nn.LSTMCell(decoder_units + units, decoder_units)
        self.output = nn.Linear(decoder_units, symbols)

    def forward(self, frames: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames [T, N, C], tokens [L, N] -> CTC's logits [T, N, symbols], the decoder's [L, N, symbols]."""
        for blstm, projection in zip(self.encoder.blstm, self.encoder.proj):
            frames = torch.tanh(projection(blstm(frames)[0]))
        ctc_logits, frames = self.encoder.ctc(frames), frames.transpose(0, 1).contiguous()
        batch, steps, _ = frames.shape
        encoded = self.mlp_enc(frames)
        weights = frames.new_full((batch, steps), 1 / steps)
        state = cell = frames.new_zeros(batch, self.cell.hidden_size)
        states = []
        for symbol in self.embed(tokens):
            located = self.mlp_att(self.loc_conv(weights.view(batch, 1, 1, steps)).squeeze(2).transpose(1, 2))
            energies = self.gvec(torch.tanh(located + encoded + self.mlp_dec(state)[:, None])).squeeze(2)
            weights = torch.softmax(2.0 * energies, dim=1)
            context = (frames * weights[:, :, None]).sum(dim=1)
            state, cell = self.cell(torch.cat((symbol, context), dim=1), (state, cell))
            states.append(state)
        return ctc_logits, self.output(torch.stack(states))

    def groups_from_the_top(self) -> list[list[nn.Module]]:
        decoder = [self.mlp_enc, self.mlp_dec, self.loc_conv, self.mlp_att, self.gvec, self.embed, self.cell]
        softmax, *layers = self.encoder.groups_from_the_top()
        return [[*softmax, self.output], decoder, *layers]


def ctc_attention(layers: int, units: int, batch: int, frames: int, frozen: int, device: torch.device) -> Step:
    """A training step with Adadelta, both losses by half, the top `frozen` groups frozen."""
    inputs, symbols, labels = 43, 50, 40
    model = CtcAttention(layers, units, inputs, symbols, 320, 300)
    initialise_as_espnet(model)
    model.to(device)
    trainable = freeze_top(model, frozen)
    optimizer = torch.optim.Adadelta(trainable, lr=1.0, rho=0.95, eps=1e-8)
    features = torch.randn(frames, batch, inputs).to(device)
    targets, frame_counts, label_counts = ctc_batch(batch, frames, labels, symbols - 1, device)
    end = torch.full((1, batch), symbols - 1).to(device)
    read, predicted = torch.cat((end, targets.T)), torch.cat((targets.T, end))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        ctc_logits, logits = model(features, read)
        ctc = ctc_loss(log_softmax(ctc_logits, dim=-1), targets, frame_counts, label_counts, reduction="sum") / batch
        decoder = cross_entropy(logits.flatten(0, 1), predicted.flatten()) * labels
        (0.5 * ctc + 0.5 * decoder).backward()
        nn.utils.clip_grad_norm_(trainable, 5.0)
        optimizer.step()

    return step


def convolution(bins: int, channels: int, filters: int, stride: int, batch: int, frames: int, device: torch.device) -> Step:
    """conv2d and relu, forward and backward, gradients of weight and bias, and of the input unless it has one channel."""
    layer = nn.Conv2d(channels, filters, 3, stride, padding=2 - stride).to(device)
    x = torch.randn(batch, channels, frames, bins).to(device).requires_grad_(channels > 1)
    gradient = torch.ones_like(layer(x))

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        torch.relu(layer(x)).backward(gradient)

    return step


class AwdLstm(nn.Module):
    """Embedding, LSTMs, and a softmax whose weight is the embedding's. Tokens [T, N] -> logits [T N, words]."""

    def __init__(self, words: int, width: int, units: int, layers: int):
        super().__init__()
        widths = [width] + [units] * (layers - 1) + [width]
        self.encoder = nn.Embedding(words, width)
        self.rnns = nn.ModuleList(nn.LSTM(a, b) for a, b in zip(widths, widths[1:]))
        self.decoder = nn.Linear(width, words)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: torch.Tensor, states: list) -> tuple[torch.Tensor, list]:
        hidden, after = self.encoder(tokens), []
        for rnn, state in zip(self.rnns, states):
            hidden, state = rnn(hidden, state)
            after.append(tuple(part.detach() for part in state))
        return self.decoder(hidden.flatten(0, 1)), after


def awd_lstm(batch: int, steps: int, frozen: int, device: torch.device) -> Step:
    """A training step with SGD and without dropout, states carried; frozen: embedding and softmax."""
    words, layers = 33278, 3
    model = AwdLstm(words, 400, 1150, layers).to(device)
    nn.init.uniform_(model.encoder.weight, -0.1, 0.1)
    nn.init.zeros_(model.decoder.bias)
    if frozen:
        model.encoder.requires_grad_(False)
        model.decoder.requires_grad_(False)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = {"fused": True} if device.type == "cuda" else {}
    optimizer = torch.optim.SGD(trainable, lr=30.0, weight_decay=1.2e-6, **fused)
    tokens, targets = (torch.randint(0, words, (steps, batch)).to(device) for _ in range(2))
    states: list = [None] * layers

    def step() -> None:
        nonlocal states
        optimizer.zero_grad(set_to_none=True)
        logits, states = model(tokens, states)
        cross_entropy(logits, targets.flatten()).backward()
        nn.utils.clip_grad_norm_(trainable, 0.25)
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


def ctc(batch: int, frames: int, device: torch.device, labels: int = 60) -> Step:
    """Log-softmax and CTC, forward and backward to the logits."""
    symbols = 50
    logits = torch.randn(frames, batch, symbols).to(device).requires_grad_()
    targets, frame_counts, label_counts = ctc_batch(batch, frames, labels, symbols, device)

    def step() -> None:
        logits.grad = None
        loss = ctc_loss(log_softmax(logits, dim=-1), targets, frame_counts, label_counts, reduction="sum") / batch
        loss.backward()

    return step


def lstm_forward(units: int, bidirectional: bool, batch: int, frames: int, device: torch.device) -> Step:
    """That layer's forward pass, which keeps what a backward pass needs."""
    layer = nn.LSTM(units, units, bidirectional=bidirectional).to(device)
    inputs = torch.randn(frames, batch, units).to(device).requires_grad_()
    return lambda: layer(inputs) and None


def softmax_cross_entropy(rows: int, symbols: int, device: torch.device) -> Step:
    """Losses and the gradient to the logits, which are bf16 where products are."""
    half = torch.is_autocast_enabled(device.type)
    logits = torch.randn(rows, symbols).to(device, torch.bfloat16 if half else torch.float32).requires_grad_()
    labels = torch.randint(0, symbols, (rows,)).to(device)

    def step() -> None:
        logits.grad = None
        cross_entropy(logits, labels).backward()

    return step


def linear_cross_entropy(rows: int, inputs: int, symbols: int, device: torch.device) -> Step:
    x = torch.randn(rows, inputs).to(device).requires_grad_()
    layer = nn.Linear(inputs, symbols).to(device)
    labels = torch.randint(0, symbols, (rows,)).to(device)

    def step() -> None:
        x.grad = None
        layer.zero_grad(set_to_none=True)
        cross_entropy(layer(x), labels).backward()

    return step


def encoder_layers(layers: int, units: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(units, 4, 2048, 0.1, norm_first=True)
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(units), enable_nested_tensor=False)


def adam(parameters: list[nn.Parameter], device: torch.device) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=1e-3, **({"fused": True} if device.type == "cuda" else {}))


def transformer_encoder(layers: int, units: int, batch: int, frames: int, frozen: int, device: torch.device) -> Step:
    """A training step of encoder layers and a norm on frames that are there, with Adam, the top `frozen` layers frozen."""
    model = encoder_layers(layers, units).to(device)
    if frozen:
        for module in [*model.layers[-frozen:], model.norm]:
            module.requires_grad_(False)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adam(trainable, device)
    inputs = torch.randn(frames, batch, units).to(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(inputs).float().square().mean().backward()
        nn.utils.clip_grad_norm_(trainable, 5.0)
        optimizer.step()

    return step


class Transformer(nn.Module):
    """ESPnet v1's recogniser of PyTorch's layers, whose attention is scaled_dot_product_attention, without dropout as on Switchboard."""

    def __init__(self, encoders: int, decoders: int, units: int, inputs: int, symbols: int):
        super().__init__()
        convolutions = nn.Conv2d(1, units, 3, 2), nn.Conv2d(units, units, 3, 2)
        self.conv = nn.Sequential(*(module for convolution in convolutions for module in (convolution, nn.ReLU(inplace=True))))
        self.front = nn.Linear(units * (((inputs - 1) // 2 - 1) // 2), units)
        self.encoder = encoder_layers(encoders, units)
        self.embed = nn.Embedding(symbols, units)
        layer = nn.TransformerDecoderLayer(units, 4, 2048, 0.1, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, decoders, norm=nn.LayerNorm(units))
        self.output, self.ctc = nn.Linear(units, symbols), nn.Linear(units, symbols)
        self.dropout = nn.Dropout(0.1)
        for module in self.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        angles = torch.arange(5000.0)[:, None] * 10000.0 ** (-torch.arange(0, units, 2) / units)
        self.register_buffer("positions", torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, None])

    def positioned(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x * x.shape[2] ** 0.5 + self.positions[: len(x)])

    def forward(self, frames: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames [T, N, C], tokens [L, N] -> CTC's logits [T', N, symbols], the decoder's [L, N, symbols]."""
        maps = self.conv(frames.transpose(0, 1)[:, None])
        hidden = self.encoder(self.positioned(self.front(frames_of_maps(maps))))
        future = nn.Transformer.generate_square_subsequent_mask(len(tokens), device=tokens.device)
        decoded = self.decoder(self.positioned(self.embed(tokens)), hidden, tgt_mask=future, tgt_is_causal=True)
        return self.ctc(self.dropout(hidden)), self.output(decoded)

    def groups_from_the_top(self) -> list[list[nn.Module]]:
        encoders, decoders = ([[layer] for layer in reversed(stack.layers)] for stack in (self.encoder, self.decoder))
        encoders[0].append(self.encoder.norm)
        decoders[0].append(self.decoder.norm)
        decoders[-1].append(self.embed)
        return [[self.output, self.ctc], *decoders, *encoders, [self.conv, self.front]]


def transformer(encoders: int, decoders: int, units: int, batch: int, frames: int, frozen: int, device: torch.device) -> Step:
    """A training step with Adam and label smoothing, CTC's loss by 0.3, the top `frozen` groups frozen."""
    inputs, symbols, labels = 83, 50, 40
    model = Transformer(encoders, decoders, units, inputs, symbols).to(device)
    trainable = freeze_top(model, frozen)
    optimizer = adam(trainable, device)
    features = torch.randn(frames, batch, inputs).to(device)
    targets, frame_counts, label_counts = ctc_batch(batch, ((frames - 1) // 2 - 1) // 2, labels, symbols - 1, device)
    end = torch.full((1, batch), symbols - 1).to(device)
    read, predicted = torch.cat((end, targets.T)), torch.cat((targets.T, end))
    # The Kullback-Leibler divergence but for a constant. ESPnet spreads 0.1 over the other symbols, PyTorch over all.
    smoothed = partial(cross_entropy, label_smoothing=0.1 * symbols / (symbols - 1), reduction="sum")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        ctc_logits, logits = model(features, read)
        ctc = ctc_loss(log_softmax(ctc_logits, dim=-1), targets, frame_counts, label_counts, reduction="sum") / batch
        decoder = smoothed(logits.flatten(0, 1), predicted.flatten()) / batch
        (0.3 * ctc + 0.7 * decoder).backward()
        nn.utils.clip_grad_norm_(trainable, 5.0)
        optimizer.step()

    return step


def attention(batch: int, heads: int, frames: int, columns: int, device: torch.device, causal=False, only: str | None = None) -> Step:
    """Attention of sequences to themselves, forward and backward or only one of them. Half precision is cast to and from, as in a model."""
    q, k, v = (torch.randn(batch, heads, frames, columns).to(device).requires_grad_() for _ in range(3))
    gradient = torch.randn(batch, heads, frames, columns).to(device)

    def forward() -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=causal).float()

    output = forward()

    def step() -> None:
        if only == "forward":
            forward()
        elif only == "backward":
            torch.autograd.grad(output, (q, k, v), gradient, retain_graph=True)
        else:
            torch.autograd.grad(forward(), (q, k, v), gradient)

    return step


def without_gradient(step: Step) -> Step:
    def run() -> None:
        with torch.no_grad():
            step()

    return run


def matmul(m: int, n: int, k: int, device: torch.device) -> Step:
    a, b = torch.randn(m, k).to(device), torch.randn(n, k).to(device)
    return without_gradient(lambda: linear(a, b))


def matmul_weight_gradient(m: int, n: int, k: int, device: torch.device) -> Step:
    a, b = torch.randn(k, m).to(device), torch.randn(k, n).to(device)
    return without_gradient(lambda: a.T @ b)


def elementwise(name: str, rows: int, columns: int, device: torch.device) -> Step:
    x, y = torch.randn(rows, columns).to(device), torch.randn(rows, columns).to(device)
    scale = torch.randn(columns).to(device)
    steps = {
        "add": lambda: torch.add(x, y),
        "column-sums": lambda: x.sum(0),
        "layer-norm": lambda: layer_norm(x, (columns,), scale, scale),
        "log-softmax": lambda: log_softmax(x, dim=-1),
    }
    return without_gradient(steps[name])


def gather(rows: int, columns: int, words: int, device: torch.device) -> Step:
    weight, tokens = torch.randn(words, columns).to(device), torch.randint(0, words, (rows,)).to(device)
    return without_gradient(lambda: embedding(tokens, weight))


def optimizer(name: str, count: int, device: torch.device) -> Step:
    """Norm, clipping and update of one parameter, by PyTorch's fused kernels where it has them."""
    parameter = nn.Parameter(torch.randn(count).to(device))
    parameter.grad = torch.randn(count).to(device)
    fused = {"fused": True} if device.type == "cuda" else {}
    makes = {
        "sgd": lambda: torch.optim.SGD([parameter], lr=0.1, **fused),
        "adam": lambda: torch.optim.Adam([parameter], lr=0.1, **fused),
        "adadelta": lambda: torch.optim.Adadelta([parameter], lr=0.1, foreach=True),
    }
    made = makes[name]()

    def step() -> None:
        nn.utils.clip_grad_norm_([parameter], 5.0)
        made.step()

    return step


# Of the utterances' lengths in frames, as src/bench/steps.rs has them.
QUANTILES = [(0.0, 80), (0.05, 300), (0.1, 390), (0.25, 570), (0.5, 780), (0.75, 955), (0.9, 1150), (0.99, 1560), (1.0, 2430)]


def wsj_lengths(count: int) -> list[int]:
    """Frames of each utterance, longest first."""

    def length(place: float) -> int:
        above = max(1, next(k for k, (share, _) in enumerate(QUANTILES) if share >= place))
        (low, shortest), (high, longest) = QUANTILES[above - 1 : above + 1]
        return int(shortest + (longest - shortest) * (place - low) / (high - low))

    return [length((k + 0.5) / count) for k in reversed(range(count))]


def wsj_batches(lengths: list[int]) -> list[list[int]]:
    """ESPnet's rule: 30 utterances, fewer where the longest has 800 frames or 150 labels and more."""
    batches, rest = [], lengths
    while rest:
        factor = max(rest[0] // 800, rest[0] // 8 // 150)
        size = max(1, 30 // (1 + factor))
        batches, rest = batches + [rest[:size]], rest[size:]
    return batches


class WsjModel(BlstmCtc):
    """The same model on packed sequences, every second frame kept behind each of the two lowest BLSTMs."""

    def utterances(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for layer, (blstm, projection) in enumerate(zip(self.blstm, self.proj)):
            hidden, _ = pad_packed_sequence(blstm(pack_padded_sequence(frames, lengths))[0])
            if layer < 2:
                hidden, lengths = hidden[::2], (lengths + 1) // 2
            frames = torch.tanh(projection(hidden))
        return self.ctc(frames), lengths


def wsj_epoch(utterances: int, frozen: int, device: torch.device) -> Step:
    """Training steps through generated utterances as long as WSJ's."""
    inputs, symbols = 43, 50
    model = WsjModel(4, 320, inputs, symbols)
    initialise_as_espnet(model)
    model.to(device)
    trainable = freeze_top(model, frozen)
    optimizer = torch.optim.Adadelta(trainable, lr=1.0, rho=0.95, eps=1e-8)
    batches = wsj_batches(wsj_lengths(utterances))
    features = torch.randn(max(batch[0] * len(batch) for batch in batches) * inputs)
    if device.type == "cuda":
        features = features.pin_memory()
    order = torch.randperm(len(batches)).tolist()

    def step() -> None:
        for batch in (batches[number] for number in order):
            frames = features[: batch[0] * len(batch) * inputs].view(batch[0], len(batch), inputs).to(device, non_blocking=True)
            label_counts = torch.tensor([length // 8 for length in batch])
            targets = torch.randint(1, symbols, (len(batch), batch[0] // 8)).to(device)
            optimizer.zero_grad(set_to_none=True)
            logits, lengths = model.utterances(frames, torch.tensor(batch))
            loss = ctc_loss(log_softmax(logits.float(), dim=-1), targets, lengths, label_counts, reduction="sum", zero_infinity=True)
            (loss / len(batch)).backward()
            nn.utils.clip_grad_norm_(trainable, 5.0)
            optimizer.step()

    return step


JOINT = "blstm-ctc/4x320/B16-T200/joint"
ENCODER = "transformer-encoder/12x256/B8-T200"
PAPERS = "blstm-ctc/4x320/B30-T800/joint"
ROWS = [
    Row(JOINT, partial(blstm_ctc, 4, 320, 16, 200, 0), goal=0.75),
    Row("blstm-ctc/4x320/B16-T200/frozen-1", partial(blstm_ctc, 4, 320, 16, 200, 1), joint=JOINT),
    Row("blstm-ctc/4x320/B16-T200/frozen-2", partial(blstm_ctc, 4, 320, 16, 200, 2), joint=JOINT),
    Row("blstm-ctc/4x320/B16-T200/frozen-3", partial(blstm_ctc, 4, 320, 16, 200, 3), joint=JOINT, joint_goal=0.87),
    Row("blstm-ctc/4x320/B16-T200/frozen-4", partial(blstm_ctc, 4, 320, 16, 200, 4), joint=JOINT, joint_goal=0.80),
    Row("blstm-ctc/4x128/B16-T200/joint", partial(blstm_ctc, 4, 128, 16, 200, 0)),
    Row("lstm/320/bidirectional/B16-T200", partial(lstm, 320, True, 16, 200), goal=0.75),
    Row("lstm/1150/B20-T35", partial(lstm, 1150, False, 20, 35), goal=0.75),
    Row("ctc/B32-T400", partial(ctc, 32, 400), goal=0.5),
    Row("awd-lstm/B20-T35/joint", partial(awd_lstm, 20, 35, 0), goal=0.8),
    Row("awd-lstm/B20-T35/frozen-1", partial(awd_lstm, 20, 35, 1), goal=0.8, joint="awd-lstm/B20-T35/joint"),
    Row(ENCODER, partial(transformer_encoder, 12, 256, 8, 200, 0), goal=0.8),
    *(
        Row(f"{ENCODER}/frozen-{frozen}", partial(transformer_encoder, 12, 256, 8, 200, frozen), joint=ENCODER)
        for frozen in (3, 6, 9)
    ),
    Row("attention/B8-H4-T400-d64", partial(attention, 8, 4, 400, 64)),
]

ATTENTION = "ctc-attention/4x320/B16-T200/joint"
ROWS += [
    Row(ATTENTION, partial(ctc_attention, 4, 320, 16, 200, 0), goal=0.8),
    Row("ctc-attention/4x320/B16-T200/frozen-1", partial(ctc_attention, 4, 320, 16, 200, 1), goal=0.8, joint=ATTENTION),
    Row("ctc-attention/4x320/B16-T200/frozen-2", partial(ctc_attention, 4, 320, 16, 200, 2), goal=0.8, joint=ATTENTION),
]

# Rows for a GPU. On the CPU they run where they are named.
GPU = {"goal": 1.0, "devices": ("cuda",)}
ROWS += [Row(PAPERS, partial(blstm_ctc, 4, 320, 30, 800, 0), **GPU)]
ROWS += [
    Row(f"blstm-ctc/4x320/B30-T800/frozen-{frozen}", partial(blstm_ctc, 4, 320, 30, 800, frozen), joint=PAPERS, **GPU)
    for frozen in (1, 2, 3, 4)
]
ROWS += [
    Row("awd-lstm/B80-T70/joint", partial(awd_lstm, 80, 70, 0), **GPU),
    Row("awd-lstm/B80-T70/frozen-1", partial(awd_lstm, 80, 70, 1), joint="awd-lstm/B80-T70/joint", **GPU),
]
RECOGNISERS = {
    "vgg-blstm-ctc/6x320/B16-T400": partial(blstm_ctc, 6, 320, 16, 400, vgg=True),
    "transformer/12+6x256/B8-T800": partial(transformer, 12, 6, 256, 8, 800),
}
for name, build in RECOGNISERS.items():
    ROWS += [Row(f"{name}/joint", partial(build, 0), **GPU)]
    ROWS += [Row(f"{name}/frozen-{frozen}", partial(build, frozen), joint=f"{name}/joint", **GPU) for frozen in (1, 7)]
for units, both, batch, frames in [(320, True, 30, 400), (640, True, 30, 400), (1024, True, 30, 400), (1150, False, 80, 70)]:
    name = f"lstm/{units}{'/bidirectional' if both else ''}/B{batch}-T{frames}"
    ROWS += [
        Row(name, partial(lstm, units, both, batch, frames), **GPU),
        Row(f"{name}/forward", partial(lstm_forward, units, both, batch, frames), **GPU),
    ]
ROWS += [
    Row(f"ctc/B30-T{frames}-L100", partial(ctc, 30, frames, labels=100), rotates=True, **GPU) for frames in (400, 800, 1000)
]
ROWS += [
    Row("cross-entropy/5600x33278", partial(softmax_cross_entropy, 5600, 33278), rotates=True, **GPU),
    Row("linear-cross-entropy/5600x400x33278", partial(linear_cross_entropy, 5600, 400, 33278), **GPU),
    Row("log-softmax/12000x50", partial(elementwise, "log-softmax", 12000, 50), rotates=True, **GPU),
    Row("layer-norm/12000x256/forward", partial(elementwise, "layer-norm", 12000, 256), rotates=True, **GPU),
    Row("column-sums/12000x1280", partial(elementwise, "column-sums", 12000, 1280), rotates=True, **GPU),
    Row("add/12000x1280", partial(elementwise, "add", 12000, 1280), rotates=True, **GPU),
    Row("embedding/5600x400-V33278/forward", partial(gather, 5600, 400, 33278), rotates=True, **GPU),
]
for batch, heads, frames, columns in [(16, 8, 512, 64), (4, 8, 2048, 64), (4, 4, 2048, 128), (1, 8, 8192, 64)]:
    for causal in (False, True) if columns == 64 else (False,):
        name = f"attention/B{batch}-H{heads}-T{frames}-d{columns}{'-causal' if causal else ''}"
        ROWS += [
            Row(f"{name}/{only}", partial(attention, batch, heads, frames, columns, causal=causal, only=only), rotates=True, **GPU)
            for only in ("forward", "backward")
        ]
ROWS += [
    Row(f"matmul/{m}x{n}x{k}", partial(matmul, m, n, k), rotates=True, **GPU)
    for m, n, k in [(12000, 1280, 320), (12000, 320, 640), (5600, 4600, 1150), (5600, 33278, 400), (4096, 4096, 4096)]
]
ROWS += [
    Row(f"matmul-weight-gradient/{m}x{n}x{k}", partial(matmul_weight_gradient, m, n, k), rotates=True, **GPU)
    for m, n, k in [(1280, 320, 12000), (4600, 1150, 5600), (33278, 400, 5600)]
]
ROWS += [
    Row(
        f"convolution/{channels}-{filters}{'/every-2' if stride == 2 else ''}/B16-T{frames}-F{bins}",
        partial(convolution, bins, channels, filters, stride, 16, frames),
        **GPU,
    )
    for bins, frames, channels, filters, stride in [
        (83, 400, 1, 64, 1),
        (83, 400, 64, 64, 1),
        (42, 200, 64, 128, 1),
        (42, 200, 128, 128, 1),
        (83, 400, 1, 256, 2),
        (41, 199, 256, 256, 2),
    ]
]
ROWS += [Row(f"{name}/P24000000", partial(optimizer, name, 24_000_000), rotates=True, **GPU) for name in ("sgd", "adam", "adadelta")]

EPOCH = "wsj-epoch/4x320/N{}/"


def epoch_rows(utterances: int) -> list[Row]:
    joint = EPOCH.format(utterances) + "joint"
    stage = lambda frozen: f"frozen-{frozen}" if frozen else "joint"
    return [
        Row(
            EPOCH.format(utterances) + stage(frozen),
            partial(wsj_epoch, utterances, frozen),
            goal=1.0,
            joint=joint if frozen else None,
            devices=(),
            long=True,
        )
        for frozen in range(5)
    ]


def rotated(row: Row, device: torch.device) -> Step:
    """The step; on a GPU, for a single operation, as many of them in turn as a cache does not hold."""
    if not row.rotates or device.type != "cuda":
        return row.build(device)
    before = torch.cuda.memory_allocated(device)
    steps = [row.build(device)]
    each = max(1, torch.cuda.memory_allocated(device) - before)
    steps += [row.build(device) for _ in range(min(MOST_COPIES, -(-ROTATED // each)) - 1)]
    turns = cycle(steps)
    return lambda: next(turns)()


def step_times(step: Step, device: torch.device, seconds: float) -> list[float]:
    """Milliseconds of a step, at least three times, for about `seconds`."""

    def timed(runs: int) -> float:
        start = time.perf_counter()
        for _ in range(runs):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start) / runs

    for _ in range(WARM_UP_STEPS):
        last = timed(1)
    runs = max(1, min(512, round(1e3 * BETWEEN_WAITS / last))) if device.type == "cuda" else 1
    times: list[float] = []
    while len(times) < 3 or (sum(times) * runs < 1e3 * seconds and len(times) < MOST_STEPS):
        times.append(timed(runs))
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
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32", help="what products are computed in")
    parser.add_argument("--utterances", type=int, default=37_400, metavar="N", help="of the epochs wsj-epoch (default: 37400)")
    arguments = parser.parse_args()
    all_rows = ROWS + epoch_rows(arguments.utterances)
    if arguments.list:
        rows = [{key: value for key, value in vars(row).items() if key != "build"} for row in all_rows]
        print(json.dumps({"torch": torch.__version__, "rows": rows}))
        return
    row = next((row for row in all_rows if row.name == arguments.name), None)
    if row is None:
        parser.error(f"no row {arguments.name!r}; --list shows them")

    torch.manual_seed(1)
    torch.set_num_threads(arguments.threads)
    # "f32" means f32 on a GPU too: cuDNN would otherwise round the operands of an LSTM to tf32 unasked.
    torch.backends.cudnn.allow_tf32 = arguments.precision == "tf32"
    torch.set_float32_matmul_precision("high" if arguments.precision == "tf32" else "highest")
    device = torch.device(arguments.device)
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {"name": row.name, "device": device_name(device), "imported_mib": imported / 1024}
    with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
        step = row.build(device) if arguments.once else rotated(row, device)
        if arguments.once or row.long:
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            result |= {"median_ms": 1e3 * (time.perf_counter() - start), "steps": 1}
        else:
            times = step_times(step, device, arguments.seconds)
            result |= {"median_ms": statistics.median(times), "steps": len(times)}
    if device.type == "cuda":
        result["peak_device_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
        result["held_device_mib"] = torch.cuda.max_memory_reserved(device) / 2**20
    print(json.dumps(result))


if __name__ == "__main__":
    main()
