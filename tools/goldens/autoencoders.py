#!/usr/bin/env python3
"""Writes tests/goldens/autoencoders_ten_steps.json: ten training steps in PyTorch of the autoencoder without a quantizer
and with finite scalar quantization, in the form of vqvae_ten_steps.json; ten_steps_test.cc checks models/vqvae against
both. Needs what make_goldens.py needs, whose weights and images these are; seconds.

FSQ is written out from the paper's equations (2309.15505), with no code of a library.

    python3 tools/goldens/autoencoders.py [--out tests/goldens]
"""
import argparse
import math
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import torch_vqvae  # noqa: E402
from make_goldens import IMAGE_STREAM, NOISE, RATE, STEPS, apart, dump, make_images, set_weights  # noqa: E402

NET = dict(batch=6, height=16, width=12, channels=3, hidden=24, residual=8, decoder_gain=1.0, bias_gain=0.1)
NETS = [
    dict(NET, name="ae", quantizer="none", code_dim=12, encoder_gain=2.25, seed=6),
    dict(NET, name="fsq-ae", quantizer="fsq", grid=[8, 5, 5, 5], code_dim=4, encoder_gain=3.0, seed=2),
    dict(NET, name="fsq-ae of odd and even levels", quantizer="fsq", grid=[3, 4, 7], code_dim=3, encoder_gain=4.0,
         seed=2),
]


class Rounding:
    """FSQ of (N,D,h,w): for L levels a tanh of half-width (L-1)(1 + 1e-3)/2, moved by 1/2 where L is even and such that
    0 stays in the middle of it, rounded with the gradient of what was rounded, over floor(L/2). Rounds in the values of
    the run; keeps how near they came to a border, and the levels."""

    def __init__(self, levels):
        self.levels, self.nearest_border, self.codes = levels, math.inf, []

    def __call__(self, z):
        levels = torch.tensor(self.levels, dtype=torch.float64)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0).double()
        shift, width = torch.atanh(offset / half), torch.floor(levels / 2)
        half, offset, shift, width = (v.to(z.dtype).view(1, -1, 1, 1) for v in (half, offset, shift, width))
        f = torch.tanh(z + shift) * half - offset
        rounded = f.detach().round()
        self.nearest_border = min(self.nearest_border, float((0.5 - (f.detach() - rounded).abs()).min()))
        self.codes.append(rounded + width)
        return (f + (rounded - f.detach())) / width


class Autoencoder(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        sizes = [net[k] for k in ("channels", "hidden", "residual", "code_dim")]
        self.encoder, self.decoder = torch_vqvae.Encoder(*sizes), torch_vqvae.Decoder(*sizes)
        self.rounding = Rounding(net["grid"]) if net["quantizer"] == "fsq" else None

    def forward(self, images):
        z = self.encoder(images)
        return self.decoder(z if self.rounding is None else self.rounding(z))


def train(net, dtype, noise=0.0):
    model = Autoencoder(net)
    set_weights(model, net)
    model.to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + noise * torch.randn(p.shape, generator=generator, dtype=dtype))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    history = {"total": [], "reconstruction": []}
    for step in range(STEPS):
        images = make_images(net, step).to(dtype)
        loss = F.mse_loss(model(images), images)
        for values in history.values():
            values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    change = {}
    for name, p in model.named_parameters():
        d = p.detach().double() - before[name].double()
        change[name] = {"norm": d.norm().item(), "sum": d.sum().item()}
    return history, change, model.rounding


def used(codes, levels):
    """Codes of one step."""
    basis = torch.tensor(np.cumprod([1] + levels[:-1])).view(1, -1, 1, 1)
    return len((codes.long() * basis).sum(1).unique())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="tests/goldens")
    args = parser.parse_args()
    torch.set_num_threads(1)
    nets = []
    for net in NETS:
        f32, _, rounding32 = train(net, torch.float32)
        f64, change, rounding = train(net, torch.float64)
        noisy, _, rounding_noisy = train(net, torch.float32, NOISE)
        run = dict(estimator="ste", float32=f32, float64=f64, change_float64=change, effect_of_precision=apart(f32, f64),
                   effect_of_noise=apart(f32, noisy))
        if rounding is not None:
            other = sum(int((a != b).sum()) for run_of in (rounding32, rounding_noisy)
                        for a, b in zip(run_of.codes, rounding.codes))
            run.update(nearest_border=float(f"{min(rounding.nearest_border, rounding32.nearest_border):.2g}"),
                       used_codes=[used(c, net["grid"]) for c in rounding.codes], elements_that_differ=other)
            if other or run["nearest_border"] < 2e-4:
                sys.exit(f"{net['name']}: an element nearly on a border ({run['nearest_border']}): take another seed")
        print(net["name"], {k: v for k, v in run.items() if not isinstance(v, dict)},
              f"total {f64['total'][0]:.4f} to {f64['total'][-1]:.4f}", flush=True)
        nets.append(dict(net, runs=[run]))
    file = dict(about="Ten training steps in PyTorch: losses before each step's update, change of the parameters after the "
                      "last. nearest_border: least distance of a bounded element to where it would round to another "
                      "level; elements_that_differ: in float32, with and without noise, from float64. effect_of_* as in vqvae_ten_steps.json.",
                torch=torch.__version__, steps=STEPS, rate=RATE, image_stream=IMAGE_STREAM, nets=nets)
    path = os.path.join(args.out, "autoencoders_ten_steps.json")
    with open(path, "w") as f:
        f.write(dump(file) + "\n")
    print(path)


if __name__ == "__main__":
    main()
