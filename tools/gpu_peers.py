"""Times the VQ-VAE's training step in PyTorch on a GPU, eager and under torch.compile, for tools/gpu_check.

    python tools/gpu_peers.py [--preset fashion] [--estimator ste] [--device cuda] [--warm 10] [--repeats 50]

One JSON object on standard output: the device's name, torch's version, and the median, least and greatest of so many
steps in milliseconds. A step is forward, backward, Adam and the reading of the loss, as `stopgrad bench step` times it.
"""
import argparse
import json
import statistics
import time

import torch
import torch_vqvae


def times_of(step, synchronize, warm, repeats):
    for _ in range(warm):
        step()
    milliseconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        step()
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return dict(median=statistics.median(milliseconds), least=min(milliseconds), greatest=max(milliseconds))


def step_of(preset, estimator, device, compiled):
    torch.manual_seed(0)
    p = torch_vqvae.PRESETS[preset]
    on_gpu = device.type == "cuda"
    model = torch_vqvae.VqVae(**p, estimator=torch_vqvae.ESTIMATORS[estimator]).to(device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, fused=on_gpu)
    images = torch.rand(p["batch"], p["channels"], p["height"], p["width"], device=device)
    images = images.to(memory_format=torch.channels_last)
    losses = torch.compile(torch_vqvae.losses, mode="max-autotune" if on_gpu else "default") if compiled else \
        torch_vqvae.losses

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = losses(model, images)[0]
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="fashion", choices=sorted(torch_vqvae.PRESETS))
    parser.add_argument("--estimator", default="ste", choices=sorted(torch_vqvae.ESTIMATORS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--warm", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=50)
    a = parser.parse_args()
    device = torch.device(a.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("this PyTorch sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # f32 means f32 on both sides
    torch.backends.cudnn.benchmark = True
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    report = dict(torch=torch.__version__, preset=a.preset, estimator=a.estimator,
                  device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device))
    for name, compiled in [("eager", False), ("compile", True)]:
        report[name] = times_of(step_of(a.preset, a.estimator, device, compiled), synchronize, a.warm, a.repeats)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
