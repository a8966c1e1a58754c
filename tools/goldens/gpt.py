#!/usr/bin/env python3
"""Writes tests/goldens/gpt.json: ten AdamW steps of a small class-conditional GPT in PyTorch, from which gpt_golden_test.cc
checks models/gpt. Needs PyTorch >= 2 and NumPy; a second. Nothing random: weights and tokens are Philox's numbers
(tools/philox.py), which the test computes again.

    python3 tools/goldens/gpt.py [--out tests/goldens]
"""
import argparse
import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from philox import uniforms  # noqa: E402

CONFIG = dict(vocabulary=19, length=12, classes=3, dim=16, layers=2, heads=4, batch=5, seed=5, steps=10, rate=3e-3,
              weight_decay=0.01, clip=0.5, token_stream=500)


class Block(torch.nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(dim), torch.nn.LayerNorm(dim)
        self.attention = torch.nn.ModuleDict({k: torch.nn.Linear(dim, dim) for k in ("query", "key", "value", "out")})
        self.ff_in, self.ff_out = torch.nn.Linear(dim, 4 * dim), torch.nn.Linear(4 * dim, dim)

    def forward(self, x):
        n, t, d = x.shape
        y = self.norm1(x)
        q, k, v = (self.attention[name](y).view(n, t, self.heads, d // self.heads).transpose(1, 2)
                   for name in ("query", "key", "value"))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention["out"](y.transpose(1, 2).reshape(n, t, d))
        return x + self.ff_out(F.gelu(self.ff_in(self.norm2(x))))


class Gpt(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.tokens = torch.nn.Embedding(c["vocabulary"] + c["classes"], c["dim"])
        self.positions = torch.nn.Embedding(c["length"], c["dim"])
        self.blocks = torch.nn.ModuleList(Block(c["dim"], c["heads"]) for _ in range(c["layers"]))
        self.norm = torch.nn.LayerNorm(c["dim"])
        self.head = torch.nn.Linear(c["dim"], c["vocabulary"], bias=False)

    def forward(self, tokens, classes):
        inputs = torch.cat([(self.c["vocabulary"] + classes)[:, None], tokens[:, :-1]], 1)
        x = self.tokens(inputs) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def our_name(name):
    """Our name of a PyTorch parameter: blocks.0.ff_in.weight is block0.in.weight."""
    return name.replace("blocks.", "block").replace("ff_in", "in").replace("ff_out", "out")


def set_weights(model, c):
    """Parameter number p of our sorted names: (2 u - 1) 0.4 with the numbers of Philox step 0, stream p, in our layout
    (in, out); plus 1 where it is a norm's weight."""
    parameters = {our_name(name): p for name, p in model.named_parameters()}
    for stream, name in enumerate(sorted(parameters)):
        p = parameters[name]
        values = (2.0 * uniforms(c["seed"], 0, stream, p.numel()) - 1.0) * 0.4
        if "norm" in name and name.endswith("weight"):
            values = values + 1.0
        linear = p.dim() == 2 and not name.startswith(("tokens", "positions"))
        shaped = values.reshape(p.shape[::-1]).T if linear else values.reshape(p.shape)
        p.data = torch.tensor(np.ascontiguousarray(shaped.astype(np.float32))).to(p.dtype)


def batch(c, step):
    """Numbers of Philox step 1 + step: stream token_stream for the tokens, the next for the classes."""
    tokens = uniforms(c["seed"], 1 + step, c["token_stream"], c["batch"] * c["length"])
    classes = uniforms(c["seed"], 1 + step, c["token_stream"] + 1, c["batch"])
    return (torch.tensor((tokens * c["vocabulary"]).astype(np.int64).reshape(c["batch"], c["length"])),
            torch.tensor((classes * c["classes"]).astype(np.int64)))


def run(c, dtype):
    torch.set_default_dtype(dtype)
    model = Gpt(c)
    set_weights(model, c)
    optimizer = torch.optim.AdamW(model.parameters(), lr=c["rate"], weight_decay=c["weight_decay"])
    losses, norms = [], []
    for step in range(c["steps"]):
        tokens, classes = batch(c, step)
        loss = F.cross_entropy(model(tokens, classes).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), c["clip"]).item())
        optimizer.step()
        losses.append(loss.item())
    return dict(loss=losses, grad_norm=norms)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="tests/goldens")
    path = os.path.join(parser.parse_args().out, "gpt.json")
    result = dict(torch=torch.__version__, config=CONFIG, float64=run(CONFIG, torch.float64),
                  float32=run(CONFIG, torch.float32))
    with open(path + ".tmp", "w") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    os.replace(path + ".tmp", path)


if __name__ == "__main__":
    main()
