#!/usr/bin/env python3
"""Trains the baseline VQ-VAE in PyTorch and in stopgrad alike, and compares the test-set reconstruction error.

    python3 tools/quality_vs_torch.py [--steps 2000] [--seeds 1,2,3] [--estimator ste|rotation]

Same network, Adam 3e-4, batch 128, Fashion-MNIST in [0,1], the same batches in the same order (the shuffle of
tools/data/loader.cc). Initial weights are each side's own draw from the same distributions (PyTorch's defaults;
codebook U(-1/K, 1/K)). Reported: mean squared error over all pixels of the test set. Exit status 1 where stopgrad's
mean over the seeds is above --limit times PyTorch's. Needs torch and numpy; the program must be built.
"""
import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch

import torch_vqvae
from philox import random_words

HERE = os.path.dirname(os.path.abspath(__file__))
SHUFFLE_STREAM = 0x73687566


def read_images(folder, part):
    """uint8 (N,1,28,28) of the IDX file of `part`, "train" or "t10k"."""
    path = os.path.join(folder, part + "-images-idx3-ubyte.gz")
    with gzip.open(path, "rb") as f:
        magic, count, height, width = np.frombuffer(f.read(16), ">u4").tolist()
        if magic != 0x803:
            sys.exit(f"{path} is not an IDX file of images")
        return torch.from_numpy(np.frombuffer(f.read(), np.uint8).reshape(count, 1, height, width).copy())


def batches(count, batch, seed, steps):
    """Indices of the images of each step, as BatchOrder of tools/data/loader.cc draws them."""
    per_epoch = count // batch
    for step in range(steps):
        if step % per_epoch == 0:
            words = random_words(seed, step // per_epoch, SHUFFLE_STREAM, count)
            draws = ((words[:, 0] << np.uint64(32)) | words[:, 1]) % (np.arange(count, dtype=np.uint64) + np.uint64(1))
            order, draws = list(range(count)), draws.tolist()
            for i in range(count - 1, 0, -1):
                order[i], order[draws[i]] = order[draws[i]], order[i]
        first = step % per_epoch * batch
        yield order[first:first + batch]


def as_floats(images):
    return (images.float() / 255.0).contiguous(memory_format=torch.channels_last)


def train_torch(args, seed, data, test):
    torch.manual_seed(seed)
    sizes = torch_vqvae.PRESETS["fashion"]
    model = torch_vqvae.VqVae(**sizes, estimator=torch_vqvae.ESTIMATORS[args.estimator])
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    for indices in batches(len(data), sizes["batch"], seed, args.steps):
        total = torch_vqvae.losses(model, as_floats(data[indices]))[0]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    squares, used = 0.0, set()

    def nearest(z, codes):
        indices = torch_vqvae.nearest_expanded(z, codes)
        used.update(indices.tolist())
        return indices

    model.nearest = nearest
    with torch.no_grad():
        for first in range(0, len(test), 128):
            images = as_floats(test[first:first + 128])
            squares += (model(images)[0] - images).double().pow(2).sum().item()
    return squares / test.numel(), len(used)


def train_stopgrad(args, seed):
    with tempfile.TemporaryDirectory() as folder:
        run = os.path.join(folder, "run")
        options = ["--threads", str(args.threads)] if args.threads else []
        train = ["train", "vqvae", "--data", "fashion-mnist", "--data-dir", args.data_dir, "--codebook", "loss", "--init", "uniform", "--revive", "0",
                 "--steps", str(args.steps),
                 "--estimator", args.estimator, "--seed", str(seed), "--batch", "128", "--lr", "3e-4", "--out", run]
        for command in (train, ["evaluate", run, "--json"]):
            done = subprocess.run([args.program, *command, *options], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"{args.program} {' '.join(command)} failed:\n{done.stderr or done.stdout}")
    result = json.loads(done.stdout[done.stdout.index("{"):])
    return result["mse"], round(result["usage"] * result["codes"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", default="1,2,3", type=lambda text: [int(s) for s in text.split(",")])
    parser.add_argument("--estimator", choices=["ste", "rotation"], default="ste")
    parser.add_argument("--threads", type=int, default=0, help="0: what each side takes by itself")
    parser.add_argument("--limit", type=float, default=1.05)
    parser.add_argument("--program", default=os.path.join(HERE, "..", "build", "bin", "stopgrad"))
    parser.add_argument("--data-dir", default="/usr/share/datasets/fashion-mnist",
                        help="where the Debian package dataset-fashion-mnist puts it")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    data, test = (read_images(args.data_dir, part) for part in ("train", "t10k"))
    rows = []
    for seed in args.seeds:
        theirs, their_codes = train_torch(args, seed, data, test)
        ours, our_codes = train_stopgrad(args, seed)
        rows.append(dict(seed=seed, torch_mse=theirs, stopgrad_mse=ours, torch_codes=their_codes,
                         stopgrad_codes=our_codes))
        print(f"seed {seed}: test MSE PyTorch {theirs:.6f} ({their_codes} codes used), stopgrad {ours:.6f} "
              f"({our_codes} codes used), ratio {ours / theirs:.4f}", flush=True)
    ratio = sum(r["stopgrad_mse"] for r in rows) / sum(r["torch_mse"] for r in rows)
    verdict = "within" if ratio <= args.limit else "ABOVE"
    print(f"{args.steps} steps, {args.estimator}, PyTorch {torch.__version__}: ratio of the means over {len(rows)} "
          f"seeds {ratio:.4f}, {verdict} the limit of {args.limit}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            report = dict(steps=args.steps, estimator=args.estimator, torch=torch.__version__, ratio=ratio, seeds=rows)
            json.dump(report, f, indent=1)
    sys.exit(0 if ratio <= args.limit else 1)


if __name__ == "__main__":
    main()
