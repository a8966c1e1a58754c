#!/usr/bin/env python3
"""Writes tests/goldens/transformer_vq.json: ten training steps of a small Transformer-VQ in PyTorch, from which
transformer_vq_golden_test.cc checks models/transformer_vq. Needs PyTorch >= 2 and NumPy; seconds. Nothing random: weights
and tokens are Philox's numbers (tools/philox.py), which the test computes again.

Attention is written by its definition: scores of every query with every earlier token of the sequence, those older than
the window by the codes of today's codebook. No cache, no counts, no shift of positions.

    python3 tools/goldens/transformer_vq.py [--out tests/goldens]
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

CONFIG = dict(vocabulary=13, width=12, layers=2, key_width=6, block=4, memory=6, codes=8, batch=3, update=8, sequence=24,
              commitment=0.1, decay=0.9, eps=1e-5, position_lambda=1e3, seed=3, steps=10, rate=3e-3, beta2=0.98,
              adam_eps=1e-9, weight_decay=0.01, clip=0.5, token_stream=500, estimators=["ste", "rotation"])


def rms(x, gain=None):
    y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)
    return y if gain is None else y * gain


def estimate(k, q, name):
    if name == "ste":
        return k + (q - k).detach()
    kn, qn = k.detach().norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
    u, v = k.detach() / kn, q / qn
    w = (u + v) / (u + v).norm(dim=-1, keepdim=True)
    dot = lambda a, b: (a * b).sum(-1, keepdim=True)
    turned = qn / kn * (k - 2 * w * dot(w, k) + 2 * v * dot(u, k))
    return turned + (q - turned).detach()


class Model:
    def __init__(self, c, dtype, estimator):
        self.c, self.dtype, self.estimator = c, dtype, estimator
        d, dk, dv, n = c["width"], c["key_width"], 2 * c["width"], c["vocabulary"]
        shapes = {"embedding.weight": (n, d), "gain": (d,), "head.weight": (d, n), "head.bias": (n,)}
        for i in range(c["layers"]):
            shapes.update({f"layer{i}.{name}": shape for name, shape in {
                "gain": (d,), "query.weight": (d, dk), "key.weight": (d, dk), "value.weight": (d, dv),
                "position.weight": (d, dk), "out.weight": (dv, d), "gate.weight": (d, dv), "u": (1, dk), "w": (1, dk)
            }.items()})
        self.p, self.margin = {}, np.inf
        for stream, name in enumerate(sorted(shapes)):
            values = (2.0 * uniforms(c["seed"], 0, stream, int(np.prod(shapes[name]))) - 1.0) * 0.5
            if name.endswith("gain"):
                values = values + 1.0
            self.p[name] = torch.tensor(values.astype(np.float32).reshape(shapes[name])).to(dtype).requires_grad_()
        self.books = []
        for i in range(c["layers"]):
            values = (2.0 * uniforms(c["seed"], 0, 100 + i, c["codes"] * dk) - 1.0).astype(np.float32)
            codes = torch.tensor(values.reshape(c["codes"], dk)).to(dtype)
            self.books.append(dict(codes=codes, count=torch.ones(c["codes"], dtype=dtype), sum=codes.clone()))
        self.past = None

    def positions(self, distance):
        d = self.c["width"]
        rate = self.c["position_lambda"] ** (-2.0 * torch.arange(d // 2, dtype=torch.float64) / d)
        angle = distance.to(torch.float64)[..., None] * rate
        return torch.cat([angle.sin(), angle.cos()], -1).to(torch.float32).to(self.dtype)

    def layer(self, i, x, past):
        c, p, book = self.c, {k[len(f"layer{i}."):]: v for k, v in self.p.items() if k.startswith(f"layer{i}.")}, self.books[i]
        scale, (b, t, _) = c["key_width"] ** -0.25, x.shape
        y = rms(x, p["gain"])
        q, k = (scale * rms(y @ p[name + ".weight"]) for name in ("query", "key"))
        v, g = F.silu(y @ p["value.weight"]), F.silu(y @ p["gate.weight"])
        distance = torch.cdist(k.detach().reshape(-1, k.shape[-1]), book["codes"]) ** 2
        best = distance.sort(-1).values
        self.margin = min(self.margin, float((best[:, 1] - best[:, 0]).min()))
        z = distance.argmin(-1).reshape(b, t)
        codes = book["codes"][z]
        k_hat = estimate(k, codes, self.estimator)
        commitment = ((k - codes) ** 2).sum(-1).mean()
        start = 0 if past is None else past["z"].shape[1]
        whole = dict(k=k_hat, v=v, z=z) if past is None else {
            name: torch.cat([past[name], new], 1) for name, new in dict(k=k_hat, v=v, z=z).items()}
        outputs = []
        for t0 in range(start, start + t, c["block"]):
            t1 = t0 + c["block"]
            window = max(0, t0 - c["memory"])
            keys = torch.cat([book["codes"][whole["z"][:, :window]], whole["k"][:, window:t1]], 1)
            qb = q[:, t0 - start:t1 - start]
            gap = torch.arange(t0, t1)[:, None] - torch.arange(t1)[None]
            r = scale * self.positions(gap.clamp(min=0)) @ p["position.weight"]
            near = ((gap >= 0) & (gap <= c["memory"])).to(self.dtype)
            scores = (qb + scale * p["u"]) @ keys.transpose(1, 2)
            scores = scores + near * ((qb + scale * p["w"])[:, :, None] * r).sum(-1)
            scores = scores.masked_fill(gap < 0, float("-inf"))
            outputs.append(scores.softmax(-1) @ whole["v"][:, :t1])
        x = x + (torch.cat(outputs, 1) * g) @ p["out.weight"]
        with torch.no_grad():
            hot = F.one_hot(z.reshape(-1), c["codes"]).to(self.dtype)
            count = c["decay"] * book["count"] + (1 - c["decay"]) * hot.sum(0)
            total = c["decay"] * book["sum"] + (1 - c["decay"]) * hot.T @ k.reshape(-1, k.shape[-1])
            n = (count + c["eps"]) / (count.sum() + c["codes"] * c["eps"]) * count.sum()
            following = dict(codes=total / n[:, None], count=count, sum=total)
        return x, commitment, {name: value.detach() for name, value in whole.items()}, following

    def losses(self, tokens, fresh):
        past = [None] * self.c["layers"] if fresh else self.past
        x, commitment, following = self.p["embedding.weight"][tokens[:, :-1]], 0, []
        self.past = []
        for i in range(self.c["layers"]):
            x, term, memory, book = self.layer(i, x, past[i])
            commitment = commitment + term
            self.past.append(memory)
            following.append(book)
        logits = rms(x, self.p["gain"]) @ self.p["head.weight"] + self.p["head.bias"]
        likelihood = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
        return likelihood, commitment, following


def run(c, dtype, estimator):
    model = Model(c, dtype, estimator)
    names = sorted(model.p)
    optimizer = torch.optim.AdamW([model.p[n] for n in names], lr=c["rate"], betas=(0.9, c["beta2"]), eps=c["adam_eps"],
                                  weight_decay=c["weight_decay"])
    rows = {"loss": [], "likelihood": [], "commitment": [], "grad_norm": []}
    for step in range(c["steps"]):
        u = uniforms(c["seed"], 1 + step, c["token_stream"], c["batch"] * (c["update"] + 1))
        tokens = torch.tensor(np.floor(u * c["vocabulary"]).astype(np.int64).reshape(c["batch"], -1))
        likelihood, commitment, following = model.losses(tokens, step * c["update"] % c["sequence"] == 0)
        loss = likelihood + c["commitment"] * commitment
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([model.p[n] for n in names], c["clip"])
        optimizer.step()
        model.books = following
        for name, value in dict(loss=loss, likelihood=likelihood, commitment=commitment, grad_norm=norm).items():
            rows[name].append(float(value.detach()))
    rows["codebook_sum"] = [float(b["codes"].abs().sum()) for b in model.books]
    return rows, model.margin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="tests/goldens")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = {}
    for estimator in CONFIG["estimators"]:
        runs[estimator], margins = {}, []
        for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
            runs[estimator][name], margin = run(CONFIG, dtype, estimator)
            margins.append(margin)
        print(f"{estimator}: least lead of a nearest code over the next {min(margins):.2e}")
        if min(margins) < 1e-4:
            sys.exit("a code is nearly tied: rounding decides the run; take another seed")
    path = os.path.join(args.out, "transformer_vq.json")
    with open(path, "w") as f:
        json.dump({"config": CONFIG, "runs": runs}, f, indent=1)
        f.write("\n")
    print(path)


if __name__ == "__main__":
    main()
