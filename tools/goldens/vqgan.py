#!/usr/bin/env python3
"""Golden of VQ-GAN: ten training steps of both players in PyTorch -> tests/goldens/vqgan_ten_steps.json; and batch norm.

    python3 tools/goldens/vqgan.py [--out tests/goldens] [--seeds N]

Written against 2012.09841 and the layout of its released code, not against ours: torch.nn modules, autograd.grad for
the adaptive weight, two torch.optim.Adam, three passes of the discriminator in training mode. Both players step from one
point, which is the one thing that differs from the released loop (docs/vqgan.md). Needs PyTorch >= 2 and NumPy.
Nothing random: weights and images come from Philox as `fill` and `make_images` say; tests/models/vqgan_golden_test.cc
computes the same numbers. --seeds tries seeds and writes nothing: choose one that noise leaves alone.
"""
import argparse
import json
import math
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from make_goldens import NearestRecorder, dump  # noqa: E402
from philox import uniforms  # noqa: E402
from torch_vqvae import ESTIMATORS  # noqa: E402

NET = dict(batch=4, height=16, width=12, channels=2, ch=8, ch_mult=[1, 2], res_blocks=1, groups=4, latent=6, code_dim=5,
           codes=12, ndf=6, layers=2, perceptual_weight=0.7, disc_weight=0.8, disc_start=5, disc_warmup=3, beta=0.25,
           gamma=1.0, rate=3e-4, steps=10, image_stream=1000, seed=6)
NOISE = 2.0**-21


def norm(channels):
    return nn.GroupNorm(NET["groups"], channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.norm1, self.conv1 = norm(i), nn.Conv2d(i, o, 3, padding=1)
        self.norm2, self.conv2 = norm(o), nn.Conv2d(o, o, 3, padding=1)
        if i != o:
            self.shortcut = nn.Conv2d(i, o, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return (self.shortcut(x) if hasattr(self, "shortcut") else x) + h


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = norm(c)
        self.query, self.key, self.value, self.out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        n, c, h, w = x.shape
        a = self.norm(x)
        q, k, v = (f(a).reshape(n, c, h * w) for f in (self.query, self.key, self.value))
        weights = torch.softmax(torch.einsum("nci,ncj->nij", q, k) * c**-0.5, dim=2)
        return x + self.out(torch.einsum("ncj,nij->nci", v, weights).reshape(n, c, h, w))


class Stage(nn.Module):
    """res1, attention1, res2, attention2, ... in the order of `parts`."""

    def __init__(self, i, o, blocks, attention):
        super().__init__()
        self.order = []
        for b in range(1, blocks + 1):
            self.add(f"res{b}", ResBlock(i if b == 1 else o, o))
            if attention == "each" or (attention == "between" and b < blocks):
                self.add(f"attention{b}", Attention(o))

    def add(self, name, module):
        self.add_module(name, module)
        self.order.append(module)

    def forward(self, x):
        for module in self.order:
            x = module(x)
        return x


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [NET["ch"] * m for m in NET["ch_mult"]]
        low = widths[-1]
        setattr(self, "in", nn.Conv2d(NET["channels"], NET["ch"], 3, padding=1))
        for l, w in enumerate(widths):
            last = l == len(widths) - 1
            setattr(self, f"level{l}", Stage(widths[l - 1] if l else NET["ch"], w, NET["res_blocks"],
                                             "each" if last else None))
            if not last:
                setattr(self, f"down{l}", nn.Conv2d(w, w, 3, stride=2))
        self.middle = Stage(low, low, 2, "between")
        self.norm, self.out = norm(low), nn.Conv2d(low, NET["latent"], 3, padding=1)
        self.quant_conv = nn.Conv2d(NET["latent"], NET["code_dim"], 1)

    def forward(self, x):
        h = getattr(self, "in")(x)
        for l in range(len(NET["ch_mult"])):
            h = getattr(self, f"level{l}")(h)
            if hasattr(self, f"down{l}"):
                h = getattr(self, f"down{l}")(F.pad(h, (0, 1, 0, 1)))
        return self.quant_conv(self.out(F.silu(self.norm(self.middle(h)))))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [NET["ch"] * m for m in NET["ch_mult"]]
        low, levels = widths[-1], len(widths)
        self.post_quant_conv = nn.Conv2d(NET["code_dim"], NET["latent"], 1)
        setattr(self, "in", nn.Conv2d(NET["latent"], low, 3, padding=1))
        self.middle = Stage(low, low, 2, "between")
        for l in reversed(range(levels)):
            above = widths[min(l + 1, levels - 1)]
            setattr(self, f"level{l}", Stage(above, widths[l], NET["res_blocks"] + 1, "each" if l == levels - 1 else None))
            if l:
                setattr(self, f"up{l}", nn.Conv2d(widths[l], widths[l], 3, padding=1))
        self.norm, self.out = norm(widths[0]), nn.Conv2d(widths[0], NET["channels"], 3, padding=1)

    def forward(self, z):
        h = self.middle(getattr(self, "in")(self.post_quant_conv(z)))
        for l in reversed(range(len(NET["ch_mult"]))):
            h = getattr(self, f"level{l}")(h)
            if l:
                h = getattr(self, f"up{l}")(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.out(F.silu(self.norm(h)))


class Quantizer(nn.Module):
    def __init__(self):
        super().__init__()
        self.codebook = nn.Parameter(torch.zeros(NET["codes"], NET["code_dim"]))


class VqGan(nn.Module):
    def __init__(self, estimator, nearest):
        super().__init__()
        self.encoder, self.decoder, self.quantizer = Encoder(), Decoder(), Quantizer()
        self.estimator, self.nearest = estimator, nearest

    def rows(self, x):
        return self.encoder(x).permute(0, 2, 3, 1)

    def forward(self, x):
        maps = self.rows(x)
        z = maps.reshape(-1, maps.shape[-1])
        q = self.quantizer.codebook[self.nearest(z.detach(), self.quantizer.codebook.detach())]
        z_q = self.estimator(z, q.detach()).reshape(maps.shape).permute(0, 3, 1, 2)
        return self.decoder(z_q), F.mse_loss(q, z.detach()), F.mse_loss(z, q.detach())


class Discriminator(nn.Module):
    """Parameters named as ours; the convolution before a batch norm has no bias."""

    def __init__(self):
        super().__init__()
        width = [NET["ndf"] * min(2**i, 8) for i in range(NET["layers"] + 1)]
        strides = [2] * NET["layers"] + [1, 1]
        ins, outs = [NET["channels"], *width], [*width, 1]
        self.strides = strides
        for i, (a, b) in enumerate(zip(ins, outs)):
            self.register_parameter(f"conv{i}_weight", nn.Parameter(torch.zeros(b, a, 4, 4)))
            if 0 < i < len(outs) - 1:
                setattr(self, f"norm{i}", nn.BatchNorm2d(b))
            else:
                self.register_parameter(f"conv{i}_bias", nn.Parameter(torch.zeros(b)))

    def forward(self, x):
        for i, stride in enumerate(self.strides):
            x = F.conv2d(x, getattr(self, f"conv{i}_weight"), getattr(self, f"conv{i}_bias", None), stride, padding=1)
            if hasattr(self, f"norm{i}"):
                x = getattr(self, f"norm{i}")(x)
            if i + 1 < len(self.strides):
                x = F.leaky_relu(x, 0.2)
        return x


def fill(parameters, seed, step, codebook):
    """Parameter number p of the sorted names gets the numbers u of Philox step `step`, stream p, in our layout:
    codebook: centre + (2u-1) range; "norm..weight": 1 + .2 (2u-1); other weights: (2u-1) 2 / sqrt(fan_in), fan_in that
    of a convolution's weight (KH,KW,I,O) or a linear layer's (I,O); the rest .1 (2u-1); all rounded to f32."""
    for stream, name in enumerate(sorted(parameters)):
        p = parameters[name]
        u = 2.0 * uniforms(seed, step, stream, p.numel()) - 1.0
        if name == "quantizer.codebook":
            values = np.tile(codebook["centre"], NET["codes"]) + u * codebook["range"]
        elif "norm" in name and name.endswith("weight"):
            values = 1.0 + 0.2 * u
        elif name.endswith("weight"):
            o, i, kh, kw = p.shape
            values = (u * (2.0 / math.sqrt(i * kh * kw))).reshape(kh, kw, i, o).transpose(3, 2, 0, 1)
        else:
            values = 0.1 * u
        with torch.no_grad():
            p.copy_(torch.from_numpy(np.ascontiguousarray(values.reshape(p.shape).astype(np.float32))))


def make_images(seed, step):
    """Batch `step`: channel c of image n is .5 + .4 sin(2 pi (3 u0 y/H + 3 u1 x/W + u2)), u of Philox step 10 + `step`,
    stream image_stream + n channels + c."""
    n, c, h, w = NET["batch"], NET["channels"], NET["height"], NET["width"]
    y, x = np.meshgrid(np.arange(h, dtype=np.float64), np.arange(w, dtype=np.float64), indexing="ij")
    out = np.empty((n, c, h, w))
    for i in range(n):
        for j in range(c):
            u = uniforms(seed, 10 + step, NET["image_stream"] + i * c + j, 3)
            out[i, j] = 0.5 + 0.4 * np.sin(2 * np.pi * (3 * u[0] * y / h + 3 * u[1] * x / w + u[2]))
    return torch.from_numpy(out.astype(np.float32))


class Features(nn.Module):
    """The fixed net of the perceptual term: relu(conv 3x3 (C -> 5)), relu(conv 3x3 s2 (5 -> 7)) of it; weights from Philox
    step 2, biases .1 (2u-1). LPIPS' layer weights: u of streams 90 and 91 of the same step."""

    def __init__(self, seed):
        super().__init__()
        self.a, self.b = nn.Conv2d(NET["channels"], 5, 3, padding=1), nn.Conv2d(5, 7, 3, stride=2, padding=1)
        fill(dict(self.named_parameters()), seed, 2, None)
        for l, c in enumerate((5, 7)):
            self.register_buffer(f"lin{l}", torch.from_numpy(uniforms(seed, 2, 90 + l, c).astype(np.float32)))

    def maps(self, x):
        a = F.relu(self.a(x))
        return a, F.relu(self.b(a))

    def distance(self, x, y):
        total = 0
        for l, (a, b) in enumerate(zip(self.maps(x), self.maps(y))):
            a, b = (t / (t.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for t in (a, b))
            total = total + ((a - b).pow(2) * getattr(self, f"lin{l}")[:, None, None]).sum(1).mean((1, 2))
        return total


def place_codebook(seed):
    """Centre and range of the codes, chosen from the first batch so that many are used: inputs of the golden."""
    model = VqGan(None, None)
    fill(dict(model.named_parameters()), seed, 0, dict(centre=[0.0] * NET["code_dim"], range=1.0))
    with torch.no_grad():
        z = model.rows(2 * make_images(seed, 0) - 1).reshape(-1, NET["code_dim"])
    return dict(centre=[round(v * 4096) / 4096 for v in (0.8 * z.mean(0)).tolist()],
                range=round(z.std(0).mean().item() * 4096) / 4096)


def change_of(before, module):
    out = {}
    for name, p in module.named_parameters():
        d = p.detach().double() - before[name].double()
        out[name] = {"norm": d.norm().item(), "sum": d.sum().item()}
    return out


def train(seed, codebook, estimator, dtype, noise=0.0):
    recorder = NearestRecorder()
    g, d, features = VqGan(ESTIMATORS[estimator], recorder), Discriminator(), Features(seed).to(dtype)
    fill(dict(g.named_parameters()), seed, 0, codebook)
    fill(dict(d.named_parameters()), seed, 1, None)
    g, d = g.to(dtype), d.to(dtype)
    features.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in [*g.parameters(), *d.parameters()]:
            p.mul_(1 + noise * torch.randn(p.shape, generator=generator, dtype=dtype))
    start = {name: p.detach().clone() for m in (g, d) for name, p in m.named_parameters()}
    opt_g, opt_d = (torch.optim.Adam(m.parameters(), lr=NET["rate"], betas=(0.5, 0.9)) for m in (g, d))
    last = g.decoder.out.weight
    history = {}
    for step in range(NET["steps"]):
        x = 2 * make_images(seed, step).to(dtype) - 1
        xh, codebook_loss, commitment = g(x)
        f_g = float(step >= NET["disc_start"])
        f_d = float(step >= NET["disc_start"] - NET["disc_warmup"])
        l1, perceptual = (x - xh).abs().mean(), features.distance(x, xh).mean()
        nll = l1 + NET["perceptual_weight"] * perceptual
        adversarial = -d(xh).mean()
        size_nll = torch.autograd.grad(nll, last, retain_graph=True)[0].norm()
        size_adversarial = torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm()
        lam = NET["disc_weight"] * torch.clamp(size_nll / (size_adversarial + 1e-4), 0.0, 1e4).detach()
        loss = nll + f_g * lam * adversarial + NET["beta"] * codebook_loss + NET["gamma"] * commitment
        grads_g = torch.autograd.grad(loss, list(g.parameters()))
        real, fake = d(x.detach()), d(xh.detach())
        hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        grads_d = torch.autograd.grad(f_d * hinge, list(d.parameters()))
        for name, value in dict(loss=loss, reconstruction=l1, perceptual=perceptual, nll=nll, adversarial=adversarial,
                                discriminator=hinge, logits_real=real.mean(), logits_fake=fake.mean(), codebook=codebook_loss,
                                commitment=commitment, grad_nll_last=size_nll, grad_adversarial_last=size_adversarial,
                                grad_norm=torch.cat([t.flatten() for t in grads_g]).norm(),
                                grad_discriminator=torch.cat([t.flatten() for t in grads_d]).norm(),
                                **{"lambda": lam}).items():
            history.setdefault(name, []).append(value.item())
        for module, grads, optimizer in ((g, grads_g, opt_g), (d, grads_d, opt_d)):
            for p, grad in zip(module.parameters(), grads):
                p.grad = grad
            optimizer.step()
    change = {**change_of(start, g), **{"discriminator." + k: v for k, v in change_of(start, d).items()}}
    running = {"discriminator." + name: t.tolist() for name, t in d.named_buffers() if "running" in name}
    return history, change, running, recorder


def far(a, b):
    """Largest difference of two runs' numbers, relative to the larger of a number and a hundredth of its run's largest."""
    most = 0.0
    for name in a:
        scale = 0.01 * max(abs(v) for v in a[name])
        most = max(most, max(abs(x - y) / max(abs(x), scale, 1e-30) for x, y in zip(a[name], b[name])))
    return float(f"{most:.2g}")


def ten_steps(seed):
    codebook, runs = place_codebook(seed), []
    for estimator in ("ste", "rotation"):
        f32, _, _, recorder32 = train(seed, codebook, estimator, torch.float32)
        f64, change, running, recorder = train(seed, codebook, estimator, torch.float64)
        noisy = train(seed, codebook, estimator, torch.float32, NOISE)[0]
        runs.append(dict(estimator=estimator, float64=f64, change_float64=change, running_float64=running,
                         smallest_gap=float(f"{min(recorder.smallest_gap, recorder32.smallest_gap):.2g}"),
                         used_codes=[len(i.unique()) for i in recorder.indices],
                         rows_that_differ=sum(int((a != b).sum()) for a, b in zip(recorder32.indices, recorder.indices)),
                         effect_of_precision=far(f64, f32), effect_of_noise=far(f32, noisy)))
        print(f"seed {seed}", {k: v for k, v in runs[-1].items() if "float" not in k},
              f"loss {f64['loss'][0]:.4f} to {f64['loss'][-1]:.4f}, lambda {f64['lambda'][-1]:.4f}", flush=True)
    return dict(about="Ten steps of both players of a VQ-GAN in PyTorch: numbers before each step's updates, change of the "
                      "parameters and running statistics after the last. effect_of_*: largest difference of a number "
                      "between float32 and float64, and between float32 and the same from weights with a relative noise of "
                      "2^-21, relative to the larger of the number and a hundredth of its largest in the run.",
                torch=torch.__version__, net=dict(NET, seed=seed), codebook=codebook, runs=runs)


def batch_norm():
    """nn.BatchNorm2d over two training steps and in evaluation, with the gradients of <cotangent, output>."""
    u = lambda stream, *shape: torch.from_numpy(  # noqa: E731
        (2 * uniforms(7, 3, stream, math.prod(shape)) - 1).reshape(shape).astype(np.float32)).double()
    array = lambda t: dict(shape=list(t.shape), data=t.detach().flatten().tolist())  # noqa: E731
    layer = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        layer.weight.copy_(1 + 0.5 * u(0, 3)), layer.bias.copy_(u(1, 3))
    cases = []
    for i, training in enumerate((True, True, False)):
        layer.train(training)
        x = (u(10 + i, 2, 4, 3, 3) * 2 + 0.7).requires_grad_()   # (N,H,W,C)
        y = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        cotangent = u(20 + i, *y.shape)
        grads = torch.autograd.grad((y * cotangent).sum(), [x, layer.weight, layer.bias])
        cases.append(dict(training=training, x=array(x), cotangent=array(cotangent), y=array(y), dx=array(grads[0]),
                          dgamma=array(grads[1]), dbeta=array(grads[2]), running_mean=array(layer.running_mean),
                          running_var=array(layer.running_var)))
    return dict(about="torch.nn.BatchNorm2d: two training passes, then one in evaluation; running statistics after each.",
                torch=torch.__version__, gamma=array(layer.weight), beta=array(layer.bias), cases=cases)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/goldens"))
    parser.add_argument("--seeds", type=int, metavar="N", help="write nothing: try seeds 1..N")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    if args.seeds:
        for seed in range(1, args.seeds + 1):
            ten_steps(seed)
        return
    for name, value in (("vqgan_ten_steps", ten_steps(NET["seed"])), ("batch_norm", batch_norm())):
        with open(os.path.join(args.out, name + ".json"), "w", encoding="utf-8") as f:
            f.write(dump(value) + "\n")


if __name__ == "__main__":
    main()
