#!/usr/bin/env python3
"""Writes tests/goldens/inception.json: features and logits of FID's Inception-v3 in PyTorch, from which
inception_golden_test.cc checks models/inception. Needs what make_goldens.py needs; a minute. The real weights are not needed:
weights and images are Philox's numbers (tools/philox.py), which the test computes again.

The network is written as one module for each kind of block, in the form of pytorch-fid's patched torchvision network, with
norms of their own and PyTorch's poolings. resize() restates TensorFlow 1's resize_bilinear by indexing.

    python3 tools/goldens/inception.py [--out tests/goldens]
"""
import argparse
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from make_goldens import dump  # noqa: E402
from philox import uniforms  # noqa: E402

CASES = [dict(side=75, shape=[2, 28, 28, 1]), dict(side=91, shape=[1, 40, 100, 3])]
SEED, IMAGE_STREAM, KEPT = 5, 10000, 61  # every KEPT-th feature and logit is kept


class Basic(nn.Module):
    def __init__(self, i, o, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(i, o, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(o, eps=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def mean3(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class A(nn.Module):
    def __init__(self, i, pooled):
        super().__init__()
        self.branch1x1 = Basic(i, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Basic(i, 48, 1), Basic(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Basic(i, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = Basic(64, 96, 3, padding=1), Basic(96, 96, 3, padding=1)
        self.branch_pool = Basic(i, pooled, 1)

    def forward(self, x):
        return torch.cat([self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)),
                          self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                          self.branch_pool(mean3(x))], 1)


class B(nn.Module):
    def __init__(self, i):
        super().__init__()
        self.branch3x3 = Basic(i, 384, 3, 2)
        self.branch3x3dbl_1 = Basic(i, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = Basic(64, 96, 3, padding=1), Basic(96, 96, 3, 2)

    def forward(self, x):
        return torch.cat([self.branch3x3(x), self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                          F.max_pool2d(x, 3, 2)], 1)


class C(nn.Module):
    def __init__(self, i, c):
        super().__init__()
        wide, high = dict(kernel=(1, 7), padding=(0, 3)), dict(kernel=(7, 1), padding=(3, 0))
        self.branch1x1 = Basic(i, 192, 1)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = Basic(i, c, 1), Basic(c, c, **wide), Basic(c, 192, **high)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Basic(i, c, 1), Basic(c, c, **high)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Basic(c, c, **wide), Basic(c, c, **high)
        self.branch7x7dbl_5 = Basic(c, 192, **wide)
        self.branch_pool = Basic(i, 192, 1)

    def forward(self, x):
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return torch.cat([self.branch1x1(x), self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
                          self.branch7x7dbl_5(self.branch7x7dbl_4(double)), self.branch_pool(mean3(x))], 1)


class D(nn.Module):
    def __init__(self, i):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Basic(i, 192, 1), Basic(192, 320, 3, 2)
        self.branch7x7x3_1 = Basic(i, 192, 1)
        self.branch7x7x3_2 = Basic(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Basic(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Basic(192, 192, 3, 2)

    def forward(self, x):
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, 2)], 1)


class E(nn.Module):
    def __init__(self, i, pool):
        super().__init__()
        wide, high = dict(kernel=(1, 3), padding=(0, 1)), dict(kernel=(3, 1), padding=(1, 0))
        self.branch1x1 = Basic(i, 320, 1)
        self.branch3x3_1 = Basic(i, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Basic(384, 384, **wide), Basic(384, 384, **high)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Basic(i, 448, 1), Basic(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Basic(384, 384, **wide), Basic(384, 384, **high)
        self.branch_pool = Basic(i, 192, 1)
        self.pool = pool

    def forward(self, x):
        once, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat([self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once),
                          self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(self.pool(x))], 1)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Basic(3, 32, 3, 2), Basic(32, 32, 3)
        self.Conv2d_2b_3x3 = Basic(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Basic(64, 80, 1), Basic(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
        self.Mixed_6a = B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = C(768, 128), C(768, 160), C(768, 160), C(768, 192)
        self.Mixed_7a = D(768)
        self.Mixed_7b, self.Mixed_7c = E(1280, mean3), E(2048, lambda x: F.max_pool2d(x, 3, 1, 1))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, "Mixed_" + name)(x)
        pooled = x.mean((2, 3))
        return pooled, pooled @ self.fc.weight.T


def fill(network):
    """Tensor number p of the sorted names takes Philox stream p: a weight (2 u - 1) sqrt(6 / fan_in), a norm's weight and
    running variance 0.5 + u, its bias and running mean 0.2 (u - 0.5)."""
    tensors = {n: t for n, t in network.state_dict().items() if not n.endswith(("num_batches_tracked", "fc.bias"))}
    for stream, name in enumerate(sorted(tensors)):
        t = tensors[name]
        u = uniforms(SEED, 0, stream, t.numel())
        if t.dim() > 1:
            values = (2 * u - 1) * np.sqrt(6 / (t.numel() / t.shape[0]))
        else:
            values = 0.5 + u if name.endswith(("bn.weight", "running_var")) else 0.2 * (u - 0.5)
        t.copy_(torch.from_numpy(values.astype(np.float32)).reshape(t.shape))
    return {name: list(tensors[name].shape) for name in sorted(tensors)}


def resize(images, side):
    """(N,C,H,W) -> (N,C,side,side)."""
    for axis in (2, 3):
        n = images.shape[axis]
        at = np.arange(side, dtype=np.float32) * np.float32(np.float32(n) / np.float32(side))
        low = np.floor(at).astype(np.int64)
        share = torch.from_numpy(at - low.astype(np.float32)).to(images.dtype)
        share = share.view([-1 if a == axis else 1 for a in range(4)])
        first, second = (images.index_select(axis, torch.tensor(i)) for i in (low, np.minimum(low + 1, n - 1)))
        images = first + share * (second - first)
    return images


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="tests/goldens")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        network = Network().eval()
        shapes = fill(network)
        network.double()
        cases = []
        for number, case in enumerate(CASES):
            n, h, w, c = case["shape"]
            u = uniforms(SEED, 1, IMAGE_STREAM + number, n * h * w * c)
            pixels = np.floor(256 * u) / 255
            images = torch.from_numpy(pixels.astype(np.float32)).double().reshape(n, h, w, c).permute(0, 3, 1, 2)
            images = resize(images, case["side"]).expand(-1, 3, -1, -1)
            pooled, logits = network((255 * images - 128) / 128)
            cases.append(dict(case, resized=images[0, 0, 1, ::7].tolist(), features=pooled[:, ::KEPT].reshape(-1).tolist(),
                              logits=logits[:, ::KEPT].reshape(-1).tolist()))
            print(case, "features", float(pooled.mean()), float(pooled.std()), "logits", float(logits.std()))
    file = dict(about="FID's Inception-v3 with made-up weights: every `kept`-th feature and logit of each image.",
                torch=torch.__version__, seed=SEED, image_stream=IMAGE_STREAM, kept=KEPT, cases=cases, tensors=shapes)
    path = os.path.join(args.out, "inception.json")
    with open(path, "w") as f:
        f.write(dump(file) + "\n")
    print(path, os.path.getsize(path))


if __name__ == "__main__":
    main()
