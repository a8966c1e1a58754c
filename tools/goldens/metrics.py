#!/usr/bin/env python3
"""Writes tests/goldens/metrics.json and tests/goldens/classifier.json, from which metrics_golden_test.cc checks tools/metrics,
models/image_metrics and models/classifier: SSIM of scikit-image, the Frechet distance by scipy.linalg.sqrtm and by the
eigenvalues of the product (torch-fidelity's formula), the inception score as torch-fidelity computes it, and ten AdamW
steps of the classifier in PyTorch. Needs PyTorch >= 2, NumPy, SciPy and scikit-image; seconds. Nothing random: all
inputs are Philox's numbers (tools/philox.py), which the test computes again.

    python3 tools/goldens/metrics.py [--out tests/goldens]
"""
import argparse
import json
import os
import sys

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from philox import uniforms  # noqa: E402

SEED = 77
IMAGES = [[2, 14, 17, 1], [2, 12, 11, 3]]
FEATURES = [dict(name="full rank", rows=[60, 50], width=8, scale=1.0),
            dict(name="fewer rows than columns", rows=[6, 5], width=10, scale=1.0),
            dict(name="constant", rows=[7, 9], width=4, scale=0.0)]
SCORE = dict(rows=43, classes=5, splits=10)
CLASSIFIER = dict(height=10, width=9, channels=2, classes=4, hidden=8, stages=3, batch=5, seed=8, steps=10, rate=2e-3,
                  weight_decay=0.01, image_stream=500)


def ssim(stream, shape):
    """x = u, y = 0.7 x + 0.3 v, with u and v the numbers of Philox step 0, streams `stream` and `stream` + 1."""
    u, v = (uniforms(SEED, 0, stream + i, int(np.prod(shape))).reshape(shape) for i in range(2))
    y = 0.7 * u + 0.3 * v
    return [structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0,
                                  channel_axis=-1) for a, b in zip(u, y)]


def frechet(stream, case):
    """Row i, column j of set s: scale (u_ij (1 + j) + u_i0) + s / 2, u the numbers of Philox step 1, stream `stream` + s."""
    sets = []
    for s, rows in enumerate(case["rows"]):
        u = uniforms(SEED, 1, stream + s, rows * case["width"]).reshape(rows, case["width"])
        x = case["scale"] * (u * (1 + np.arange(case["width"])) + u[:, :1]) + 0.5 * s
        sets.append(x)
    a, b = sets
    sa, sb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    base = float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(sa) + np.trace(sb))
    eigenvalues = np.linalg.eigvals(sa @ sb).astype(complex)
    result = dict(case, eigenvalues=base - 2 * float(np.sqrt(eigenvalues).sum().real))
    if case["name"] == "full rank":
        result["sqrtm"] = base - 2 * float(np.trace(scipy.linalg.sqrtm(sa @ sb)).real)
    return result


def score(stream, c):
    """Logits 6 u - 3, u the numbers of Philox step 2; rows in the order of NumPy's RandomState(2020)."""
    logits = torch.tensor(6 * uniforms(SEED, 2, stream, c["rows"] * c["classes"]).reshape(c["rows"], c["classes"]) - 3)
    order = np.random.RandomState(2020).permutation(c["rows"])
    p, log_p = logits[order].softmax(1), logits[order].log_softmax(1)
    scores = []
    for i in range(c["splits"]):
        part = slice(i * c["rows"] // c["splits"], (i + 1) * c["rows"] // c["splits"])
        q = p[part].mean(0, keepdim=True)
        scores.append((p[part] * (log_p[part] - q.log())).sum(1).mean().exp().item())
    return dict(c, order=order.tolist(), mean=float(np.mean(scores)), deviation=float(np.std(scores)))


class Stage(torch.nn.Module):
    def __init__(self, channels, out, first):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, out, 3, 1 if first else 2, 1)
        self.conv2 = None if first else torch.nn.Conv2d(out, out, 3, 1, 1)
        self.norm = None if first else torch.nn.GroupNorm(out // 8, out)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        return x if self.conv2 is None else F.relu(self.norm(self.conv2(x)))


class Classifier(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        widths = [c["hidden"] << s for s in range(c["stages"])]
        for s, out in enumerate(widths):
            setattr(self, f"stage{s + 1}", Stage(widths[s - 1] if s else c["channels"], out, s == 0))
        places = -(-c["height"] // 4) * -(-c["width"] // 4)
        self.embed = torch.nn.Linear(places * widths[-1], widths[-1])
        self.head = torch.nn.Linear(widths[-1], c["classes"])
        self.stages = c["stages"]

    def forward(self, x):
        x = 2 * x - 1
        for s in range(self.stages):
            x = getattr(self, f"stage{s + 1}")(x)
        return self.head(F.relu(self.embed(x.permute(0, 2, 3, 1).flatten(1))))


def set_weights(model, c):
    """Parameter number p of the sorted names: (2 u - 1) 0.4, of embed 0.1, with the numbers of Philox step 0, stream p, in our layout
    ((KH,KW,in,out), (in,out)); plus 1 where it is a norm's weight."""
    parameters = dict(model.named_parameters())
    for stream, name in enumerate(sorted(parameters)):
        p = parameters[name]
        values = (2.0 * uniforms(c["seed"], 0, stream, p.numel()) - 1.0) * (0.1 if name.startswith("embed") else 0.4) + (1.0 if name.endswith("norm.weight") else 0.0)
        if p.dim() == 4:
            o, i, kh, kw = p.shape
            values = values.reshape(kh, kw, i, o).transpose(3, 2, 0, 1)
        elif p.dim() == 2:
            values = values.reshape(p.shape[::-1]).T
        p.data = torch.tensor(np.ascontiguousarray(values.astype(np.float32))).to(p.dtype)


def train(c, dtype):
    torch.set_default_dtype(dtype)
    model = Classifier(c)
    set_weights(model, c)
    optimizer = torch.optim.AdamW(model.parameters(), lr=c["rate"], weight_decay=c["weight_decay"])
    losses, norms = [], []
    for step in range(c["steps"]):
        shape = (c["batch"], c["height"], c["width"], c["channels"])
        x = uniforms(c["seed"], 1 + step, c["image_stream"], int(np.prod(shape))).reshape(shape).astype(np.float32)
        labels = (uniforms(c["seed"], 1 + step, c["image_stream"] + 1, c["batch"]) * c["classes"]).astype(np.int64)
        loss = F.cross_entropy(model(torch.tensor(x.transpose(0, 3, 1, 2)).to(dtype)), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.sqrt(sum((p.grad ** 2).sum() for p in model.parameters())).item())
        optimizer.step()
        losses.append(loss.item())
    return dict(loss=losses, grad_norm=norms)


def write(path, result):
    with open(path + ".tmp", "w") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    os.replace(path + ".tmp", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="tests/goldens")
    out = parser.parse_args().out
    write(os.path.join(out, "metrics.json"),
          dict(seed=SEED, ssim=[dict(shape=s, values=ssim(10 * i, s)) for i, s in enumerate(IMAGES)],
               frechet=[frechet(10 * i, f) for i, f in enumerate(FEATURES)], score=score(0, SCORE)))
    write(os.path.join(out, "classifier.json"),
          dict(torch=torch.__version__, config=CLASSIFIER, float64=train(CLASSIFIER, torch.float64),
               float32=train(CLASSIFIER, torch.float32)))


if __name__ == "__main__":
    main()
