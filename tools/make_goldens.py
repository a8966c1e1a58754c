#!/usr/bin/env python3
"""Writes tests/goldens/*.json: numbers from PyTorch that goldens_test.cc holds stopgrad against.

    python3 tools/make_goldens.py [--out tests/goldens]
        [--only vqvae_ten_steps|estimators|quantizers|ops|grids|codebook_rules]

Needs PyTorch >= 2, NumPy and vector-quantize-pytorch; about two minutes on one core. Nothing random: initial weights and
batches come from Philox, keyed as described at `weights` and `images`, and goldens_test.cc computes the same numbers
from core/philox.h, so that neither is stored. Run it again only where a definition changes; a golden that moves
otherwise is a finding.
"""
import argparse
import json
import math
import os

import numpy as np
import torch
import torch.nn.functional as F
from vector_quantize_pytorch import FSQ, LFQ, LatentQuantize, SimVQ, VectorQuantize, vector_quantize_pytorch

import torch_vqvae
from philox import uniforms

IMAGE_STREAM = 1000


# ---- ten training steps ---------------------------------------------------------------------------------------------

# fashion: a batch small enough for a seed to exist (one of 79) with which every row kept its code in 12 runs with a noise
# of 2^-20 on the initial weights, large enough for the cpu backend's Winograd convolutions to take part.
NETS = [
    dict(name="fashion", batch=8, height=28, width=28, channels=1, hidden=128, residual=32, code_dim=64, codes=512,
         encoder_gain=2.25, decoder_gain=1.0, bias_gain=0.1, seed=31),
    dict(name="small", batch=6, height=16, width=12, channels=3, hidden=24, residual=8, code_dim=12, codes=48,
         encoder_gain=2.25, decoder_gain=1.0, bias_gain=0.1, seed=6),
]
STEPS, RATE, BETA, GAMMA = 10, 3e-4, 1.0, 0.25
NOISE = 2.0**-21


def set_weights(model, net):
    """Parameter number p of the sorted names is f32(centre + (2 u - 1) bound), with u the numbers of Philox step 0,
    stream p, in the order of our layout. Codebook: centre and bound are the net's. Else centre is 0 and bound is
    gain / sqrt(fan_in), gain being encoder_gain or decoder_gain for weights and bias_gain for biases, and fan_in the
    product of the first three extents of the layer's weight (KH,KW,in,out), or (KH,KW,out,in) where it is transposed.
    """
    parameters = dict(model.named_parameters())
    for stream, name in enumerate(sorted(parameters)):
        p = parameters[name]
        u = uniforms(net["seed"], 0, stream, p.numel())
        if name == "quantizer.codebook":
            values = np.tile(net["codebook_centre"], net["codes"]) + (2.0 * u - 1.0) * net["codebook_range"]
        else:
            _, i, kh, kw = parameters[name.rsplit(".", 1)[0] + ".weight"].shape
            gain = net[name.split(".")[0] + "_gain" if name.endswith("weight") else "bias_gain"]
            values = (2.0 * u - 1.0) * (gain / math.sqrt(kh * kw * i))
        if p.dim() == 4:   # PyTorch's (y,x,KH,KW) from our (KH,KW,x,y), of plain and transposed convolutions alike
            o, i, kh, kw = p.shape
            values = values.reshape(kh, kw, i, o).transpose(3, 2, 0, 1)
        with torch.no_grad():
            p.copy_(torch.from_numpy(np.ascontiguousarray(values.reshape(p.shape).astype(np.float32))))


def make_images(net, step):
    """Batch number `step`, f32 (N,C,H,W): channel c of image n is two smooth spots on a ramp, from 12 numbers of Philox
    step 1 + `step`, stream IMAGE_STREAM + n * channels + c."""
    n, c, h, w = net["batch"], net["channels"], net["height"], net["width"]
    y, x = np.meshgrid(np.arange(h, dtype=np.float64), np.arange(w, dtype=np.float64), indexing="ij")
    out = np.empty((n, c, h, w))
    for i in range(n):
        for j in range(c):
            u = uniforms(net["seed"], 1 + step, IMAGE_STREAM + i * c + j, 12)
            value = 0.15 * u[10] * y / h + 0.15 * u[11] * x / w
            for s in (0, 5):
                dy = (y - h * u[s]) / (h * (0.03 + 0.15 * u[s + 2]))
                dx = (x - w * u[s + 1]) / (w * (0.03 + 0.15 * u[s + 3]))
                value = value + 0.35 * (0.1 + 0.9 * u[s + 4]) / (1.0 + dy * dy + dx * dx)
            out[i, j] = value
    return torch.from_numpy(out.astype(np.float32))


class NearestRecorder:
    """Nearest codes by squared differences in float64, whatever the run's precision; keeps what they say about ties."""

    def __init__(self):
        self.indices, self.smallest_gap = [], math.inf

    def __call__(self, z, codes):
        z, codes = z.double(), codes.double()
        distances = torch.stack([(codes - row).pow(2).sum(1) for row in z])
        least = distances.topk(2, dim=1, largest=False).values
        self.smallest_gap = min(self.smallest_gap, ((least[:, 1] - least[:, 0]) / least[:, 1]).min().item())
        self.indices.append(distances.argmin(1))
        return self.indices[-1]


def make_model(net, **options):
    model = torch_vqvae.VqVae(**{k: net[k] for k in ("channels", "hidden", "residual", "code_dim", "codes")}, **options)
    set_weights(model, net)
    return model


def place_codebook(net):
    """Chooses the codebook's centre and range from the first batch's encoder outputs, at 0.8 of their mean and as wide
    as they spread, so that many codes are used. Both are stored: they are inputs of the golden, not results.

    What makes the golden robust: Adam's first steps have the size of the rate whatever the gradient's, so rounding
    noise in a tiny gradient moves rows by up to 1e-4, and of thousands of rows some are nearer than that to the border
    between two codes. With the decoder at PyTorch's own scale, one row on the other side does not matter; with one
    twice as strong it spreads into differences of a per cent.
    """
    net["codebook_centre"], net["codebook_range"] = [0.0] * net["code_dim"], 1.0
    with torch.no_grad():
        z, _ = make_model(net).rows(make_images(net, 0))
    net["codebook_centre"] = [round(v * 4096) / 4096 for v in (0.8 * z.mean(0)).tolist()]
    net["codebook_range"] = round(z.std(0).mean().item() * 4096) / 4096


def train(net, estimator, dtype, noise=0.0):
    """The losses of each step, the change of each parameter, the recorder. noise: relative, on the initial weights."""
    recorder = NearestRecorder()
    model = make_model(net, estimator=estimator, nearest=recorder).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + noise * torch.randn(p.shape, generator=generator, dtype=dtype))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    history = {name: [] for name in ("total", "reconstruction", "codebook", "commitment")}
    for step in range(STEPS):
        values = torch_vqvae.losses(model, make_images(net, step).to(dtype), BETA, GAMMA)
        for name, value in zip(history, values):
            history[name].append(value.item())
        optimizer.zero_grad()
        values[0].backward()
        optimizer.step()
    change = {}
    for name, p in model.named_parameters():
        d = p.detach().double() - before[name].double()
        change[name] = {"norm": d.norm().item(), "sum": d.sum().item()}
    return history, change, recorder


def apart(a, b):
    """The largest relative difference of two runs' losses."""
    return float(f"{max(abs(x / y - 1) for k in a for x, y in zip(a[k], b[k])):.2g}")


def ten_steps():
    nets = []
    for net in NETS:
        place_codebook(net)
        runs = []
        for name, estimator in (("ste", torch_vqvae.straight_through), ("rotation", rotation)):
            f32, _, recorder32 = train(net, estimator, torch.float32)
            f64, change, recorder = train(net, estimator, torch.float64)
            noisy, _, _ = train(net, estimator, torch.float32, NOISE)
            other = sum(int((a != b).sum()) for a, b in zip(recorder32.indices, recorder.indices))
            runs.append(dict(estimator=name, float32=f32, float64=f64, change_float64=change,
                             smallest_gap=float(f"{min(recorder.smallest_gap, recorder32.smallest_gap):.2g}"),
                             used_codes=[len(i.unique()) for i in recorder.indices], rows_that_differ=other,
                             effect_of_precision=apart(f32, f64), effect_of_noise=apart(f32, noisy)))
            print(net["name"], {k: v for k, v in runs[-1].items() if not isinstance(v, dict)},
                  f"total {f64['total'][0]:.4f} to {f64['total'][-1]:.4f}", flush=True)
        nets.append(dict(net, runs=runs))
    return dict(about="Ten training steps in PyTorch: losses before each step's update, change of the parameters after "
                      "the last. smallest_gap: least (second best - best) / second best squared distance of a row to "
                      "its nearest codes, over all rows and steps; rows_that_differ: rows of all steps whose code is "
                      "another in float32 than in float64. effect_of_*: largest relative difference of a loss between "
                      "float32 and float64, and between float32 and the same from weights with a relative noise of "
                      "2^-21: both must be far below the test's tolerance, or another rounding would fail it.",
                torch=torch.__version__, steps=STEPS, rate=RATE, beta=BETA, gamma=GAMMA, image_stream=IMAGE_STREAM,
                nets=nets)


# ---- estimators -----------------------------------------------------------------------------------------------------


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def outer(a, b):
    return a.unsqueeze(-1) * b.unsqueeze(-2)


def apply_scaled(z, q, matrix):
    """(|q|/|z|) matrix z with everything but z detached. matrix (N,D,D)."""
    scale = q.norm(dim=-1, keepdim=True) / z.detach().norm(dim=-1, keepdim=True)
    return scale.detach() * (matrix.detach() @ z.unsqueeze(-1)).squeeze(-1)


def rotation(z, q):
    """G z with G = (|q|/|z|) (I - 2 w w^T + 2 v u^T) formed as a matrix for each row."""
    u, v = unit(z.detach()), unit(q)
    w = unit(u + v)
    eye = torch.eye(z.shape[-1], dtype=z.dtype)
    return apply_scaled(z, q, eye - 2 * outer(w, w) + 2 * outer(v, u))


def released_rotation(z, q):
    """As the code of the paper's tables 3 and 4 has it: the rotation applied to z/|z|, which is not detached."""
    u = unit(z)
    v = unit(q)
    w = unit(u + v)
    eye = torch.eye(z.shape[-1], dtype=z.dtype)
    matrix = (eye - 2 * outer(w, w) + 2 * outer(v, u)).detach()
    return (matrix @ u.unsqueeze(-1)).squeeze(-1) * q.norm(dim=-1, keepdim=True).detach()


def rotation_matrix(z, q):
    u, v = unit(z.detach()), unit(q.detach())
    w = unit(u + v)
    return torch.eye(z.shape[-1], dtype=z.dtype) - 2 * outer(w, w) + 2 * outer(v, u)


def by_matrix(z, q, g, b=1.0):
    """G z + b (q - G z) detached."""
    gz = (g.detach() @ z.unsqueeze(-1)).squeeze(-1)
    return gz + b * (q - gz).detach()


def reflection(z, q):
    """G z with G = (|q|/|z|) (I - 2 r r^T) formed as a matrix for each row."""
    r = unit(unit(z.detach()) - unit(q))
    return apply_scaled(z, q, torch.eye(z.shape[-1], dtype=z.dtype) - 2 * outer(r, r))


def length(x):
    return x.norm(dim=-1, keepdim=True)


def two_parameter(z, q, a, b):
    scale = (length(q) / length(z)).unsqueeze(-1)
    return by_matrix(z, q, scale**a * rotation_matrix(z, q), b)


def radius(z, q, a):
    r = length(q - z)**a
    return z + r * ((q - z) / r).detach()


def towards(z, q, noise):
    return length(q - z) * unit(q - z + noise).detach()


def low_rank(z, q, u, v):
    return by_matrix(z, q, torch.eye(z.shape[-1], dtype=z.dtype) + u @ v.transpose(-1, -2))


def centred(z, q, origin):
    origin = origin.detach()
    scale = (length(q - origin) / length(z - origin)).unsqueeze(-1)
    g = (scale * rotation_matrix(z - origin, q - origin)).detach()
    moved = (g @ (z - origin).unsqueeze(-1)).squeeze(-1)
    return moved + (q - moved).detach()


def choose(pi, codes, chosen):
    return (F.one_hot(chosen, len(codes)).to(pi.dtype) + pi - pi.detach()) @ codes


def squared_distances(z, codes):
    return (z.unsqueeze(1) - codes).pow(2).sum(-1)


def gumbel(z, codes, noise, chosen, tau):
    return choose(F.softmax((noise.detach() - squared_distances(z, codes)) / tau, -1), codes, chosen)


def soft_one_hot(z, codes, chosen, tau):
    return choose(F.softmax(-squared_distances(z, codes) / tau, -1), codes, chosen)


def reinmax(z, codes, chosen, tau):
    """Algorithm 2 of the paper: y = p2 - p2.detach() + onehot."""
    logits = -squared_distances(z, codes)
    onehot = F.one_hot(chosen, len(codes)).to(z.dtype)
    p1 = (onehot + F.softmax(logits / tau, -1)) / 2
    p1 = F.softmax((torch.log(p1) - logits).detach() + logits, -1)
    return choose(2 * p1 - 0.5 * F.softmax(logits, -1), codes, chosen)


def ibq(z, codes, chosen, tau):
    return choose(F.softmax(z @ codes.T / tau, -1), codes, chosen)


def decoder_loss(x, w):
    return torch.tanh(x @ w).pow(2).sum() + (x @ w).pow(3).sum() / 8


def second_order(z, q, w):
    """The straight-through loss plus <(H(q) (z - q)).detach(), z>, less that term's value."""
    second = torch.autograd.functional.hvp(lambda x: decoder_loss(x, w.detach()), q.detach(), (z - q).detach())[1]
    term = (second.detach() * z).sum()
    return decoder_loss(torch_vqvae.straight_through(z, q), w) + term - term.detach()


def exact(z, q, w):
    """The loss at q for w, and at z for z."""
    other = decoder_loss(z, w.detach())
    return decoder_loss(q.detach(), w) + other - other.detach()


def rows_of(z, q):
    """(golden, name and arguments in the estimator table, function of z and q)."""
    mean_ratio = (length(q).mean() / length(z).mean()).item()
    vqp = "vector_quantize_pytorch."
    return [
        ("ste", "ste", lambda z, q: torch_vqvae.straight_through(z, q)),
        (vqp + "straight_through", "ste", lambda z, q: vector_quantize_pytorch.straight_through(z, q)),
        ("rotation", "rotation", rotation),
        (vqp + "rotate_to", "rotation", lambda z, q: vector_quantize_pytorch.rotate_to(z, q)),
        ("g-dense", "g-dense", rotation),
        ("rotation-released", "rotation-released", released_rotation),
        ("rotation-corrected", "rotation-corrected", lambda z, q: by_matrix(z, q, rotation_matrix(z, q))),
        ("g-low-rank", "g-low-rank", lambda z, q: by_matrix(z, q, rotation_matrix(z, q))),
        ("rotation-inverse", "rotation-inverse:4",
         lambda z, q: by_matrix(z, q, rotation_matrix(z, q) / (4 * length(q - z)**2).unsqueeze(-1))),
        ("two-parameter", "two-parameter:0.5:1", lambda z, q: two_parameter(z, q, 0.5, 1.0)),
        ("two-parameter, another forward", "two-parameter:0.5:0.25", lambda z, q: two_parameter(z, q, 0.5, 0.25)),
        ("reflection", "reflection", reflection),
        ("g-scalar", "g-scalar", lambda z, q: mean_ratio * z + (q - mean_ratio * z).detach()),
        ("g-diagonal", "g-diagonal",
         lambda z, q: torch_vqvae.straight_through((length(q) / length(z)).detach() * z, q)),
        ("sync", "sync:0.5", lambda z, q: z + (q - z).detach() + 0.5 * (q - q.detach())),
        ("radius, a = 1/2", "radius:0.5", lambda z, q: radius(z, q, 0.5)),
        ("radius, a = 2", "radius:2", lambda z, q: radius(z, q, 2)),
        ("diveq-detach", "diveq-detach", lambda z, q: radius(z, q, 1)),
    ]


def estimator_cases():
    """(function, attributes, inputs by name, integer inputs by name, function of all): more than two rows."""
    n, k, d = 6, 7, 5
    stream = iter(range(4, 100))

    def g(*shape, scale=1.5):
        return grid(next(stream), shape, scale)

    z, q, codes = g(n, d), g(n, d), g(k, d, scale=0.75)
    chosen = dict(chosen=torch.tensor([2, 0, 6, 2, 5, 3]))
    yield "g_low_rank", {}, dict(z=z, q=q, u=g(d, 2), v=g(d, 2)), {}, low_rank
    yield "g_low_rank", {}, dict(z=z, q=q, u=g(n, d, 3), v=g(n, d, 3)), {}, low_rank
    yield "g_matrix", {}, dict(z=z, q=q, g=g(n, d, d)), {}, by_matrix
    yield "centred_rotation", {}, dict(z=z, q=q, origin=g(d)), {}, centred
    yield ("nsvq", {}, dict(z=z, q=q, noise=g(n, d)), {},
           lambda z, q, noise: z + length(q - z) * unit(noise).detach())
    yield "diveq", {}, dict(z=z, q=q, noise=g(n, d, scale=0.125)), {}, lambda z, q, noise: z + towards(z, q, noise)
    yield ("sf_diveq", {}, dict(z=z, q=q, q_next=g(n, d), t=(g(n, 1) + 1.5) / 3, noise=g(n, d, scale=0.125)), {},
           lambda z, q, q_next, t, noise: z + ((1 - t) * unit(q - z + noise)).detach() * length(q - z) +
           (t * unit(q_next - z + noise)).detach() * length(q_next - z))
    yield "soft_one_hot", dict(tau=0.75), dict(z=z, codes=codes, noise=g(n, k)), chosen, gumbel
    yield "soft_one_hot", dict(tau=1.5), dict(z=z, codes=codes), chosen, soft_one_hot
    yield "reinmax", dict(tau=1.25), dict(z=z, codes=codes), chosen, reinmax
    yield "index_backpropagation", dict(tau=1.25), dict(z=z, codes=codes), chosen, ibq
    yield "hessian_term", {}, dict(z=z, q=q, w=g(d, 3, scale=0.5)), {}, second_order
    yield "exact_gradient_term", {}, dict(z=z, q=q, w=g(d, 3, scale=0.5)), {}, exact


def run_case(function, inputs, integers, attrs, cotangent, dtype=torch.float64):
    """Output, and the gradient of sum(cotangent * output) in each input, zero where none arrives."""
    leaves = {name: x.to(dtype, copy=True).requires_grad_() for name, x in inputs.items()}
    out = function(**leaves, **integers, **attrs)
    grads = torch.autograd.grad(out, list(leaves.values()), cotangent(out).to(dtype), allow_unused=True)
    return out, {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(leaves.items(), grads)}


def estimators():
    n, d = 6, 5
    z = 2.0 * grid(1, (n, d)) + 0.5
    q = grid(2, (n, d))
    g = grid(3, (n, d))
    q[1] = z[1] * 0.5 + q[1] * 2.0**-10   # almost parallel
    q[2] = -z[2] + q[2] * 2.0**-6         # almost opposite
    z[3] *= 1024.0                        # |q| / |z| about 1 : 1000 and 1000 : 1
    q[4] *= 1024.0
    z[5] *= 2.0**-10
    q[5] *= 2.0**-10
    cases = {}
    for golden, name, estimator in rows_of(z, q):
        out, grads = run_case(estimator, dict(z=z, q=q), {}, {}, lambda _: g)
        _, rounded = run_case(estimator, dict(z=z, q=q), {}, {}, lambda _: g, torch.float32)
        sizes = grads["z"].abs().amax(1)
        lost = ((rounded["z"].double() - grads["z"]).abs().amax(1) / sizes > 2e-6).nonzero().flatten().tolist()
        cases[golden] = dict(estimator=name, lost_in_float32=lost, forward=array(out), gradient=array(grads["z"]),
                             gradient_in_q=array(grads["q"]))
    functions = []
    for number, (function, attrs, inputs, integers, f) in enumerate(estimator_cases()):
        cotangent = grid(60000 + number, (n, d))
        out, grads = run_case(f, inputs, integers, attrs,
                              lambda out: cotangent if out.dim() else torch.ones((), dtype=out.dtype))
        functions.append(dict(function=function, attrs=attrs, inputs={name: array(x) for name, x in inputs.items()},
                              integers={name: array(x) for name, x in integers.items()}, cotangent=array(cotangent),
                              output=array(out), gradients={name: array(x) for name, x in grads.items()}))
    return dict(about="z_q and J^T g of PyTorch's autograd in float64, J = d z_q / d z, and the same in q. Row 1: q almost "
                      "parallel to z, 2: almost opposite, 3 and 4: lengths 1000:1 and 1:1000, 5: both short. "
                      "lost_in_float32: rows whose gradient PyTorch itself gets wrong by more than 2e-6 in float32. "
                      "functions: estimators of more than z and q; gradients of sum(cotangent * output), or of the "
                      "output where it is a scalar.",
                torch=torch.__version__, z=array(z), q=array(q), g=array(g), estimators=cases, functions=functions)


# ---- quantizers -----------------------------------------------------------------------------------------------------


def nearest(rows, codes):
    """Indices of the nearest codes; refuses numbers for which rounding could choose another."""
    distances = (rows.unsqueeze(1) - codes.unsqueeze(0)).pow(2).sum(-1)
    least = distances.topk(2, dim=1, largest=False).values
    assert ((least[:, 1] - least[:, 0]) / least[:, 1]).min() > 1e-3, "a row is nearly as close to a second code"
    return distances.argmin(1)


def vq_terms(rows, q):
    return F.mse_loss(q, rows.detach()), F.mse_loss(rows, q.detach())


def residual_vq(estimator, z, books):
    rest, total, indices, terms = z, 0.0, [], []
    for codes in books:
        indices.append(nearest(rest.detach(), codes.detach()))
        q = codes[indices[-1]]
        terms.append(vq_terms(rest, q))
        total = total + q
        rest = rest - q.detach()
    return estimator(z, total.detach()), torch.stack(indices, 1), [sum(t) / len(books) for t in zip(*terms)]


def cosine_vq(estimator, z, codes):
    rows, codes = unit(z), unit(codes)
    indices = nearest(rows.detach(), codes.detach())
    q = codes[indices]
    return unit(estimator(rows, q.detach())), indices, vq_terms(rows, q)


def factorised_vq(estimator, z, w_in, b_in, codes, w_out, b_out):
    z_q, indices, terms = cosine_vq(estimator, z @ w_in + b_in, codes)
    return z_q @ w_out + b_out, indices, terms


def multi_scale_vq(estimator, z, codes, scales, share, convolutions):
    """z (N,S,S,D); convolutions: (weight (3,3,D,D), bias) for each scale; phi(h) = (1-share) h + share conv(h)."""
    side = (z.shape[1], z.shape[2])
    rest, total, indices, terms = to_nchw(z), 0.0, [], []
    for s, (weight, bias) in zip(scales, convolutions):
        windows = to_nhwc(F.interpolate(rest, size=(s, s), mode="area"))
        found = nearest(windows.detach().reshape(-1, z.shape[-1]), codes.detach())
        indices.append(found.reshape(z.shape[0], -1))
        h = to_nchw(codes[found].reshape(windows.shape))
        h = F.interpolate(h, size=side, mode="bilinear", align_corners=False)
        h = (1 - share) * h + share * F.conv2d(h, weight.permute(3, 2, 0, 1), bias, padding=1)
        total = total + h
        rest = rest - h.detach()
        terms.append(vq_terms(z, to_nhwc(total)))
    flat = z.reshape(-1, z.shape[-1])
    z_q = estimator(flat, to_nhwc(total).detach().reshape(flat.shape)).reshape(z.shape)
    return z_q, torch.cat(indices, 1), [sum(t) / len(scales) for t in zip(*terms)]


def quantizer_cases():
    """(name, settings, z, variables by our names, function of estimator, z and the variables)."""
    stream = iter(range(60000, 61000))

    def g(*shape, scale=1.5):
        return grid(next(stream), shape, scale)

    z = g(9, 6)
    books = {f"quantizer.level{i + 1}.codebook": g(11, 6, scale=1.5 / 2**i) for i in range(4)}
    yield ("residual", dict(levels=4, codes=11, dim=6), z, books, lambda e, z, *v: residual_vq(e, z, v))
    yield ("cosine", dict(codes=13, dim=6), g(9, 6), {"quantizer.codebook": g(13, 6)}, cosine_vq)
    yield ("factorised", dict(metric="cosine", codes=13, dim=6, code_dim=3), g(9, 6),
           {"quantizer.in.weight": g(6, 3), "quantizer.in.bias": g(3), "quantizer.book.codebook": g(13, 3),
            "quantizer.out.weight": g(3, 6), "quantizer.out.bias": g(6)}, factorised_vq)
    scales, share = [1, 2, 4, 5], 0.5
    variables = {"quantizer.book.codebook": g(17, 3)}
    for s in scales:
        variables[f"quantizer.phi{s}.weight"] = g(3, 3, 3, 3, scale=0.5)
        variables[f"quantizer.phi{s}.bias"] = g(3, scale=0.25)
    yield ("multi-scale", dict(codes=17, dim=3, side=5, scales=scales, phi=share), g(2, 5, 5, 3), variables,
           lambda e, z, codes, *v: multi_scale_vq(e, z, codes, scales, share, list(zip(v[::2], v[1::2]))))


def quantizers():
    cases = []
    for number, (name, settings, z, variables, function) in enumerate(quantizer_cases()):
        for estimator_name, estimator in (("ste", torch_vqvae.straight_through), ("rotation", rotation)):
            leaf = z.clone().requires_grad_()
            leaves = {n: v.clone().requires_grad_() for n, v in variables.items()}
            z_q, indices, (codebook, commitment) = function(estimator, leaf, *leaves.values())
            cotangent = grid(61000 + number, z_q.shape)
            ((cotangent * z_q).sum() + BETA * codebook + GAMMA * commitment).backward()
            cases.append(dict(quantizer=name, estimator=estimator_name, settings=settings, z=array(z),
                              variables={n: array(v) for n, v in variables.items()}, cotangent=array(cotangent),
                              z_q=array(z_q), indices=array(indices), codebook=codebook.item(),
                              commitment=commitment.item(), gradient=array(leaf.grad),
                              gradients={n: array(v.grad) for n, v in leaves.items()}))
    return dict(about="Composed quantizers in PyTorch, in float64. gradients: of sum(cotangent * z_q) + beta codebook + "
                      "gamma commitment.", torch=torch.__version__, beta=BETA, gamma=GAMMA, cases=cases)


# ---- ops ------------------------------------------------------------------------------------------------------------


def grid(stream, shape, scale=1.5):
    """Numbers in [-scale, scale) that float32 and a short text hold exactly: multiples of scale / 64."""
    u = uniforms(7, 0, stream, int(np.prod(shape)))
    return torch.from_numpy((np.floor(u * 128) - 64) / 64 * scale).reshape(tuple(shape)).clone()


def array(t):
    return dict(shape=list(t.shape), data=[float(f"{v:.15g}") for v in t.detach().double().reshape(-1).tolist()])


def to_nchw(x):
    return x.permute(0, 3, 1, 2)


def to_nhwc(x):
    return x.permute(0, 2, 3, 1)


def padded(x, pad):
    top, left, bottom, right = pad
    return F.pad(x, (left, right, top, bottom))


def conv2d(x, w, stride, pad, dilation, groups):
    """w (KH,KW,C/groups,O)."""
    return to_nhwc(F.conv2d(padded(to_nchw(x), pad), w.permute(3, 2, 0, 1), None, stride, 0, dilation, groups))


def conv2d_transpose(x, w, stride, pad, dilation, groups, size):
    """x (N,HO,WO,O), w (KH,KW,C/groups,O): cut from the whole transposed convolution, as PyTorch has it unpadded."""
    whole = F.conv_transpose2d(to_nchw(x), w.permute(3, 2, 0, 1), None, stride, 0, 0, groups, dilation)
    height, width = size
    whole = F.pad(whole, (0, max(0, pad[1] + width - whole.shape[3]), 0, max(0, pad[0] + height - whole.shape[2])))
    return to_nhwc(whole[:, :, pad[0]:pad[0] + height, pad[1]:pad[1] + width])


def avg_pool(x, window, stride, pad):
    return to_nhwc(F.avg_pool2d(padded(to_nchw(x), pad), window, stride))


def group_norm(x, gamma, beta, groups, eps):
    return to_nhwc(F.group_norm(to_nchw(x), groups, gamma, beta, eps))


def op_cases():
    """(op, case, attributes, inputs by name, integer inputs by name, function of both)."""
    stream = iter(range(100, 10000))

    def g(*shape, scale=1.5):
        return grid(next(stream), shape, scale)

    convolutions = [
        ("k3 p1", (2, 5, 4, 3), (3, 3, 3, 4), (1, 1), (1, 1, 1, 1), (1, 1), 1),
        ("k4 s2 p1", (2, 6, 8, 2), (4, 4, 2, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
        ("k1", (2, 3, 3, 4), (1, 1, 4, 5), (1, 1), (0, 0, 0, 0), (1, 1), 1),
        ("uneven pads and strides", (1, 7, 6, 2), (3, 2, 2, 3), (2, 1), (1, 0, 2, 1), (1, 1), 1),
        ("rows left over", (1, 8, 7, 2), (3, 3, 2, 2), (3, 2), (0, 0, 0, 0), (1, 1), 1),
        ("dilation", (1, 7, 8, 2), (3, 2, 2, 3), (1, 2), (2, 1, 1, 1), (2, 3), 1),
        ("groups", (2, 4, 4, 4), (3, 3, 2, 6), (1, 1), (1, 1, 1, 1), (1, 1), 2),
        ("depthwise s2", (1, 5, 6, 3), (3, 3, 1, 6), (2, 2), (1, 1, 1, 1), (1, 1), 3),
    ]
    for case, x, w, stride, pad, dilation, groups in convolutions:
        attrs = dict(stride=stride, pad=pad, dilation=dilation, groups=groups)
        yield "conv2d", case, attrs, dict(x=g(*x), w=g(*w)), {}, conv2d
        ho = (x[1] + pad[0] + pad[2] - dilation[0] * (w[0] - 1) - 1) // stride[0] + 1
        wo = (x[2] + pad[1] + pad[3] - dilation[1] * (w[1] - 1) - 1) // stride[1] + 1
        yield ("conv2d_transpose", case, dict(attrs, size=x[1:3]), dict(x=g(x[0], ho, wo, w[3]), w=g(*w)), {},
               conv2d_transpose)

    for case, x, window, stride, pad in [("2x2", (2, 4, 6, 3), (2, 2), (2, 2), (0, 0, 0, 0)),
                                         ("overlapping", (1, 5, 6, 2), (3, 2), (2, 1), (0, 0, 0, 0)),
                                         ("padded", (1, 5, 4, 2), (3, 3), (1, 2), (1, 0, 1, 2))]:
        yield "avg_pool", case, dict(window=window, stride=stride, pad=pad), dict(x=g(*x)), {}, avg_pool

    for groups in (1, 2, 6):
        yield ("group_norm", f"{groups} groups", dict(groups=groups, eps=1e-5),
               dict(x=g(2, 3, 2, 6), gamma=g(6), beta=g(6)), {}, group_norm)
    flat = g(2, 2, 2, 4) * 2.0**-4 + 0.5
    yield ("group_norm", "variance near eps", dict(groups=2, eps=1e-2), dict(x=flat, gamma=g(4), beta=g(4)), {},
           group_norm)
    yield ("layer_norm", "rows", dict(eps=1e-5), dict(x=g(3, 2, 7), gamma=g(7), beta=g(7)), {},
           lambda x, gamma, beta, eps: F.layer_norm(x, x.shape[-1:], gamma, beta, eps))
    yield ("rms_norm", "rows", dict(eps=1e-3), dict(x=g(4, 5), gamma=g(5)), {},
           lambda x, gamma, eps: F.rms_norm(x, x.shape[-1:], gamma, eps))

    yield "gelu", "wide", {}, dict(x=g(4, 9, scale=6.0)), {}, lambda x: F.gelu(x)
    yield "silu", "wide", {}, dict(x=g(4, 9, scale=12.0)), {}, lambda x: F.silu(x)
    # PyTorch's own softplus is the identity above its threshold, ours is exact: lift the threshold.
    yield "softplus", "wide", {}, dict(x=g(4, 9, scale=24.0)), {}, lambda x: F.softplus(x, threshold=1e3)

    logits = g(5, 7, scale=6.0)
    logits[1] += 512.0
    labels = torch.tensor([0, 6, 3, 3, 1])
    yield "softmax", "rows", {}, dict(x=logits), {}, lambda x: F.softmax(x, -1)
    yield "log_softmax", "rows", {}, dict(x=logits), {}, lambda x: F.log_softmax(x, -1)
    yield ("cross_entropy", "rows", {}, dict(x=logits), dict(labels=labels),
           lambda x, labels: F.cross_entropy(x, labels, reduction="none"))
    yield ("cross_entropy_of_softmax_squared", "three axes", {}, dict(x=g(2, 3, 4, scale=3.0)),
           dict(labels=torch.tensor([[0, 3, 2], [1, 1, 0]])),
           lambda x, labels: F.cross_entropy((F.softmax(x, -1)**2).reshape(-1, 4), labels.reshape(-1),
                                             reduction="none").reshape(2, 3))


def optimizer_cases():
    gradients = [grid(20 + step, (6,)) for step in range(5)]
    for step, gradient in enumerate(gradients):
        gradient[4] = 0.0 if step < 2 else 2.0**-20
        gradient[5] = 2.0**-27   # of the size of Adam's eps
    rates = [2.0**-6, 2.0**-5, 2.0**-6, 2.0**-7, 2.0**-7]
    optimizers = [
        ("sgd", dict(momentum=0.0), torch.optim.SGD),
        ("sgd", dict(momentum=0.9), torch.optim.SGD),
        ("sgd", dict(momentum=0.9, weight_decay=0.125), torch.optim.SGD),
        ("sgd", dict(momentum=0.5, weight_decay=0.125, nesterov=True), torch.optim.SGD),
        ("adam", dict(), torch.optim.Adam),
        ("adam", dict(betas=(0.5, 0.75), eps=1e-3, weight_decay=0.25), torch.optim.Adam),
        ("adamw", dict(), torch.optim.AdamW),
        ("adamw", dict(betas=(0.9, 0.95), eps=1e-6, weight_decay=0.25), torch.optim.AdamW),
    ]
    for name, options, make in optimizers:
        start = grid(30, (6,))
        p = start.clone().requires_grad_()
        optimizer = make([p], lr=rates[0], **options)
        values = []
        for rate, gradient in zip(rates, gradients):
            optimizer.param_groups[0]["lr"] = rate
            p.grad = gradient.clone()
            optimizer.step()
            values.append(array(p))
        yield dict(optimizer=name, options=options, start=array(start), rates=rates,
                   gradients=[array(gradient) for gradient in gradients], values=values)


def ops():
    cases = []
    for number, (op, case, attrs, inputs, integers, function) in enumerate(op_cases()):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        out = function(**leaves, **integers, **attrs)
        cotangent = grid(50000 + number, out.shape)
        out.backward(cotangent)
        cases.append(dict(op=op, case=case, attrs=attrs, inputs={name: array(x) for name, x in inputs.items()},
                          integers={name: array(x) for name, x in integers.items()}, output=array(out),
                          cotangent=array(cotangent), gradients={name: array(x.grad) for name, x in leaves.items()}))
    return dict(about="Ops and optimizers of PyTorch in float64, in our layouts: activations (N,H,W,C), weights "
                      "(KH,KW,C/groups,O). gradients: of sum(cotangent * output). values: after each step.",
                torch=torch.__version__, ops=cases, optimizers=list(optimizer_cases()))


# ---- grid quantizers ------------------------------------------------------------------------------------------------


def bits_reversed(indices, bits):
    """LFQ's first dimension is the highest bit in vector-quantize-pytorch, the lowest in 2310.05737 and here."""
    return sum(((indices >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))


def fsq_case(levels, z, **options):
    quantizer = FSQ(levels, allowed_dtypes=(torch.float64,), **options)
    quantizer._levels = quantizer._levels.double()   # else its constants are float32
    z_q, indices = quantizer(z.unsqueeze(0))
    return z_q[0], indices[0], {}


def lfq_case(bits, z, temperature, spherical):
    quantizer = LFQ(codebook_size=2**bits, spherical=spherical, commitment_loss_weight=1.0,
                    force_quantization_f32=False)
    quantizer.codebook = quantizer.codebook.double()
    (z_q, indices, _), parts = quantizer(z.unsqueeze(0), inv_temperature=1 / temperature, return_loss_breakdown=True)
    of_batch = parts.batch_entropy
    size = 1 / math.sqrt(bits) if spherical else 1.0
    p = torch.sigmoid(4 * size / temperature * (F.normalize(z, dim=-1) if spherical else z))
    # The package counts probabilities below 1e-5 as 1e-5 in its logarithms.
    assert torch.minimum(p, 1 - p).prod(1).min() > 1e-5, "a probability that the package cuts off"
    if spherical:   # the sum over bits of 2406.07548; the package has the joint entropy
        of_batch = sum(-(q * q.log()).sum() for q in (p.mean(0), 1 - p.mean(0)))
    return z_q[0], bits_reversed(indices[0], bits), {"entropy": parts.per_sample_entropy - of_batch,
                                                     "diversity": -of_batch, "commitment": parts.commitment}


def latent_case(levels, z):
    quantizer = LatentQuantize(levels, len(levels)).double()
    z_q = quantizer.quantize(z)
    values = [v.detach() for v in quantizer.values_per_latent]
    indices = torch.stack([(z[:, d, None] - v).abs().argmin(-1) for d, v in enumerate(values)], -1)
    q = torch.stack([v[indices[:, d]] for d, v in enumerate(values)], -1)
    return z_q, indices, {"codebook": F.mse_loss(q, z.detach()), "commitment": F.mse_loss(z, q)}


GRID_WEIGHTS = {"entropy": 0.3, "diversity": 0.2, "commitment": 0.7, "codebook": 1.0}


def grids():
    cases = []
    recipes = [("fsq", dict(grid=levels), 3.0, fsq_case, {}) for levels in ([8, 6, 5], [7, 5, 4, 3], [16, 3])]
    recipes += [("fsq-symmetric", dict(grid=levels), 3.0, fsq_case, dict(preserve_symmetry=True))
                for levels in ([2, 5, 6], [17, 4])]
    for bits, temperature, scale in ((4, 2.0, 1.2), (2, 0.5, 0.6), (6, 4.0, 0.7)):
        recipes.append(("lfq", dict(bits=bits, temperature=temperature), scale, lfq_case, dict(spherical=False)))
        recipes.append(("bsq", dict(bits=bits, temperature=temperature), scale, lfq_case, dict(spherical=True)))
    recipes.append(("latent", dict(grid=[5, 8, 2, 3]), 0.75, latent_case, {}))
    for number, (name, settings, scale, function, options) in enumerate(recipes):
        size = settings.get("bits") or len(settings["grid"])
        # Off the multiples of scale / 64: none is on the edge between two levels.
        z = (grid(60000 + number, (12, size), scale) + scale / 1000).requires_grad_()
        if "bits" in settings:
            z_q, indices, losses = function(settings["bits"], z, settings["temperature"], **options)
        else:
            z_q, indices, losses = function(settings["grid"], z, **options)
        g = grid(61000 + number, (12, size))
        total = (g * z_q).sum() + sum(GRID_WEIGHTS[n] * loss for n, loss in losses.items())
        total.backward()
        cases.append(dict(quantizer=name, settings=settings, z=array(z), g=array(g), z_q=array(z_q),
                          indices=array(indices), losses={n: loss.item() for n, loss in losses.items()},
                          gradient=array(z.grad)))
    return dict(about="FSQ, LFQ and LatentQuantize of vector-quantize-pytorch in float64. bsq: LFQ(spherical), with "
                      "the batch's entropy summed over bits as in 2406.07548. latent: the losses of 2305.18378. "
                      "gradient: in z, of sum(g z_q) + the losses weighted.",
                torch=torch.__version__, weights=GRID_WEIGHTS, cases=cases)


# ---- codebook rules -------------------------------------------------------------------------------------------------

RULES_K, RULES_D = 6, 4


def ema_case(name, cosine=False, masked=False):
    """Three training steps of VectorQuantize's EMA codebook from codes with counts of 1."""
    codes = grid(71000, (RULES_K, RULES_D)).float()
    if cosine:
        codes = F.normalize(codes, dim=-1)
    quantizer = VectorQuantize(RULES_D, RULES_K, decay=0.8, eps=1e-5, use_cosine_sim=cosine, rotation_trick=False,
                               threshold_ema_dead_code=0)
    book = quantizer._codebook
    book.embed.copy_(codes[None])
    book.embed_avg.copy_(codes[None])
    mask = torch.tensor([[True] * 5, [True, True] + [False] * 3]) if masked else None
    steps = []
    quantizer.train()
    for step in range(3):
        z = grid(71100 + step, (2, 5, RULES_D)).float()
        z_q, indices, commitment = quantizer(z, mask=mask)
        steps.append(dict(z=array(z), z_q=array(z_q), indices=array(indices), commitment=commitment.item(),
                          codes=array(book.embed[0]), count=array(book.cluster_size[0]), sum=array(book.embed_avg[0])))
    return dict(case=name, rule="ema", metric="cosine" if cosine else "euclidean", start=array(codes),
                mask=array(mask.float()) if masked else None, steps=steps)


def simvq_case():
    frozen, w = grid(72000, (RULES_K, RULES_D)), grid(72001, (RULES_D, RULES_D))
    quantizer = SimVQ(RULES_D, RULES_K, rotation_trick=False).double()
    quantizer.frozen_codebook.copy_(frozen)
    quantizer.code_transform.weight.data.copy_(w.T)
    z, g = grid(72002, (1, 10, RULES_D)).requires_grad_(), grid(72003, (1, 10, RULES_D))
    z_q, indices, loss = quantizer(z)   # mean (sg z - q)^2 + 0.25 mean (z - sg q)^2
    ((g * z_q).sum() + loss).backward()
    return dict(case="simvq", rule="simvq", frozen=array(frozen), transform=array(w), z=array(z[0]), g=array(g[0]),
                z_q=array(z_q[0]), indices=array(indices[0]), loss=loss.item(), gradient_z=array(z.grad[0]),
                gradient_transform=array(quantizer.code_transform.weight.grad.T))


def inner_case():
    """One step of torch.optim.SGD on half the squared error, averaged within each code and summed over codes."""
    start, z = grid(73000, (RULES_K, RULES_D)), grid(73001, (10, RULES_D))
    codes = start.clone().requires_grad_()
    indices = torch.cdist(z, codes).argmin(-1)
    loss = sum(0.5 * (codes[k] - z[indices == k]).square().sum(-1).mean() for k in indices.unique())
    loss.backward()
    torch.optim.SGD([codes], lr=0.3).step()
    return dict(case="alternating", rule="alternating", rate=0.3, start=array(start), z=array(z),
                indices=array(indices), codes=array(codes))


def codebook_rules():
    codes = grid(74000, (9, RULES_D))
    return dict(about="VectorQuantize (EMA, in float32), SimVQ and the orthogonal loss of vector-quantize-pytorch; an "
                      "inner step by torch.optim.SGD.",
                torch=torch.__version__,
                cases=[ema_case("ema"), ema_case("ema masked", masked=True), ema_case("ema cosine", cosine=True),
                       simvq_case(), inner_case()],
                orthogonal=dict(codes=array(codes), loss=vector_quantize_pytorch.orthogonal_loss_fn(codes[None]).item()))


# ---- files ----------------------------------------------------------------------------------------------------------


def dump(value, indent=0):
    """JSON with one line for each array of numbers."""
    inside, end = "\n" + " " * (indent + 1), "\n" + " " * indent
    if isinstance(value, dict) and any(isinstance(v, (dict, list, tuple)) for v in value.values()):
        return "{" + ",".join(f"{inside}{json.dumps(k)}: {dump(v, indent + 1)}" for k, v in value.items()) + end + "}"
    if isinstance(value, (list, tuple)) and any(isinstance(v, (dict, list, tuple)) for v in value):
        return "[" + ",".join(inside + dump(v, indent + 1) for v in value) + end + "]"
    return json.dumps(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/goldens"))
    parser.add_argument("--only", choices=["vqvae_ten_steps", "estimators", "quantizers", "ops", "grids",
                                           "codebook_rules"])
    parser.add_argument("--seeds", type=int, metavar="N",
                        help="write nothing: try the ten steps with seeds 1..N, to choose one that noise leaves alone")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    if args.seeds:
        for seed in range(1, args.seeds + 1):
            print(f"seed {seed}")
            for net in NETS:
                net["seed"] = seed
            ten_steps()
        return
    os.makedirs(args.out, exist_ok=True)
    for name, make in (("ops", ops), ("estimators", estimators), ("quantizers", quantizers), ("grids", grids),
                       ("codebook_rules", codebook_rules), ("vqvae_ten_steps", ten_steps)):
        if args.only in (None, name):
            with open(os.path.join(args.out, name + ".json"), "w", encoding="utf-8") as f:
                f.write(dump(make()) + "\n")


if __name__ == "__main__":
    main()
