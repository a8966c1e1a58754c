"""The peers' side of bench_peers.py: each function does one kind of work in PyTorch, vector-quantize-pytorch or FAISS and
returns what it measured. A process runs one of them and prints the result as JSON (main at the end).

A peer that cannot be imported raises ImportError; bench_peers.py prints that and goes on without it.
"""
import json
import os
import resource
import sys
import time


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else 0.5 * (values[middle - 1] + values[middle])


def seconds_of(work, slice_seconds, rounds):
    """Median over the rounds, as `stopgrad bench` measures: each repeats the work until the slice is over."""
    work()
    work()
    times = []
    for _ in range(rounds):
        start, runs = time.perf_counter(), 0
        while True:
            work()
            runs += 1
            passed = time.perf_counter() - start
            if passed >= slice_seconds:
                break
        times.append(passed / runs)
    return median(times)


def extents(text):
    return [int(x) for x in text.split("x")]


# ---- a whole training step ------------------------------------------------------------------------------------------


def by_convolution_backward(transposed):
    """The transposed convolution (4x4, stride 2, padding 1) as the gradient of a convolution in its input, which is
    what it is and what oneDNN does fastest."""
    import torch
    import torch.nn.functional as F

    gradients_of = torch.ops.aten.convolution_backward

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias):
            n, _, h, w = x.shape
            ctx.save_for_backward(x, weight)
            size = (n, weight.shape[1], 2 * h, 2 * w)
            like = torch.empty(size, dtype=x.dtype).to(memory_format=torch.channels_last)
            y = gradients_of(x, like, weight, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])[0]
            return y + bias.view(1, -1, 1, 1)

        @staticmethod
        def backward(ctx, g):
            x, weight = ctx.saved_tensors
            gw = gradients_of(x, g, weight, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])[1]
            return F.conv2d(g, weight, None, 2, 1), gw, g.sum((0, 2, 3))

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = transposed.weight, transposed.bias

        def forward(self, x):
            return Function.apply(x, self.weight, self.bias)

    return Module()


def step(contender, preset, estimator, threads, repeats, warm):
    """What `stopgrad bench step --json -` calls median_ms, min_ms, first_step_s (from $BENCH_START) and loss;
    import_rss_mib, the memory taken before the model was made."""
    import torch
    import torch_vqvae
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    sizes = torch_vqvae.PRESETS[preset]
    name = "rotation-products" if contender == "products" else estimator
    model = torch_vqvae.VqVae(**sizes, estimator=torch_vqvae.ESTIMATORS[name])
    if contender == "hand":
        model.decoder.up1 = by_convolution_backward(model.decoder.up1)
        model.decoder.up2 = by_convolution_backward(model.decoder.up2)
    images = torch.rand(sizes["batch"], sizes["channels"], sizes["height"], sizes["width"])
    if contender == "contiguous":
        model.dense = True
    else:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    compute = torch.compile(torch_vqvae.losses) if contender == "compile" else torch_vqvae.losses

    def one():
        with torch.autocast("cpu", torch.bfloat16, enabled=contender == "bf16"):
            total = compute(model, images)[0]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        return total.item()

    one()
    first_step = time.time() - float(os.environ["BENCH_START"])
    for _ in range(warm):
        one()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        loss = one()
        times.append(1e3 * (time.perf_counter() - start))
    return dict(median_ms=median(times), min_ms=min(times), first_step_s=first_step, loss=loss,
                import_rss_mib=imported)


# ---- pieces: {case: {variant: seconds}} -----------------------------------------------------------------------------


def nearest_torch(sizes, threads, slice_seconds, rounds):
    import torch
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(1)
    out = {}
    for size in sizes:
        n, d, k = extents(size)
        z, codes = torch.randn(n, d), torch.randn(k, d)
        scores = torch.empty(n, k)
        variants = {
            "product alone": lambda: torch.mm(z, codes.t(), out=scores),
            "cdist, argmin": lambda: torch.cdist(z, codes).argmin(1),
            "|z|^2 - 2 z.c + |c|^2, argmin":
                lambda: (z.pow(2).sum(1, keepdim=True) - 2 * (z @ codes.t()) + codes.pow(2).sum(1)).argmin(1),
            "addmm into one array, argmin":
                lambda: torch.addmm(codes.pow(2).sum(1), z, codes.t(), alpha=-2, out=scores).argmin(1),
        }
        out[size] = {name: seconds_of(f, slice_seconds, rounds) for name, f in variants.items()}
    return out


def nearest_faiss(sizes, threads, slice_seconds, rounds):
    import faiss
    import numpy
    faiss.omp_set_num_threads(threads)
    random = numpy.random.default_rng(1)
    out = {}
    for size in sizes:
        n, d, k = extents(size)
        z = random.standard_normal((n, d), dtype=numpy.float32)
        index = faiss.IndexFlatL2(d)
        index.add(random.standard_normal((k, d), dtype=numpy.float32))
        out[size] = {"FAISS IndexFlatL2": seconds_of(lambda: index.search(z, 1), slice_seconds, rounds)}
    return out


def quantizer(sizes, threads, slice_seconds, rounds):
    """vector-quantize-pytorch's layer as its readers use it: forward with the moving averages, and backward."""
    import torch
    from vector_quantize_pytorch import VectorQuantize
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    out = {}
    for size in sizes:
        n, d, k = extents(size)
        z, g = torch.randn(1, n, d, requires_grad=True), torch.randn(1, n, d)
        for name, rotation in (("ste", False), ("rotation", True)):
            layer = VectorQuantize(dim=d, codebook_size=k, decay=0.99, commitment_weight=0.25,
                                   rotation_trick=rotation).train()

            def work():
                quantized, _, loss = layer(z)
                return torch.autograd.grad([(quantized * g).sum() + loss.sum()], [z])

            out[f"{size} {name}"] = {"VectorQuantize": seconds_of(work, slice_seconds, rounds)}
    return out


def ops(sizes, threads, slice_seconds, rounds):
    """PyTorch's own fused kernels for what is a composition here; names are those of `stopgrad bench ops`."""
    import torch
    import torch.nn.functional as F
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    out = {}
    for size in sizes:
        rows, columns = extents(size)
        x, g = torch.randn(rows, columns, requires_grad=True), torch.randn(rows, columns)
        gamma, beta = (torch.randn(columns, requires_grad=True) for _ in range(2))
        groups = 8 if columns % 8 == 0 else 1
        image = 64 if rows % 64 == 0 else 1

        def group_norm():  # over as many numbers, with channels where PyTorch wants them
            return F.group_norm(x.view(rows // image, columns, image), groups, gamma, beta, 1e-6).view(rows, columns)

        functions = {
            "softmax": (lambda: F.softmax(x, -1), [x]),
            "log_softmax": (lambda: F.log_softmax(x, -1), [x]),
            "layer_norm": (lambda: F.layer_norm(x, (columns,), gamma, beta), [x, gamma, beta]),
            "rms_norm": (lambda: F.rms_norm(x, (columns,), gamma, 1e-6), [x, gamma]),
            "group_norm": (group_norm, [x, gamma, beta]),
            "gelu": (lambda: F.gelu(x), [x]),
        }
        for name, (f, wrt) in functions.items():
            def forward():
                with torch.no_grad():
                    f()
            out[f"{size} {name}"] = {"PyTorch": seconds_of(forward, slice_seconds, rounds)}
            out[f"{size} {name} forward+backward"] = {
                "PyTorch": seconds_of(lambda: torch.autograd.grad(f(), wrt, g), slice_seconds, rounds)}
        parameter = torch.nn.Parameter(torch.randn(rows, columns))
        parameter.grad = torch.randn(rows, columns)
        out[f"{size} adam"] = {}
        for kind in ("foreach", "fused"):
            optimizer = torch.optim.Adam([parameter], lr=1e-3, **{kind: True})
            out[f"{size} adam"][f"PyTorch {kind}"] = seconds_of(optimizer.step, slice_seconds, rounds)
    return out


WORK = {f.__name__: f for f in (step, nearest_torch, nearest_faiss, quantizer, ops)}

if __name__ == "__main__":
    # WORK ARGUMENTS, the latter as a JSON list
    print(json.dumps(WORK[sys.argv[1]](*json.loads(sys.argv[2]))))
