#!/usr/bin/env python3
"""Times one VQ-VAE training step: stopgrad against PyTorch, in alternation.

Each figure comes from a process of its own. A round runs every contender once, in an order that changes from round to
round; a ratio is taken within a round, and what is printed is the median over rounds with the least and the greatest.
Also reported: peak resident memory of the process, and seconds from its start to the end of its first training step.

The peers run this very file with --worker, under the Python given to tools/bench_peers (torch and numpy).
Contenders: contiguous, channels_last: PyTorch eager in either memory format; tuned: channels_last with a glibc malloc
that keeps freed memory (no page faults for temporaries); compile: channels_last under torch.compile;
products: the rotation trick by outer products as in its authors' code, channels_last.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

# The peers' codebook: trained by loss, as in vanilla VQ-VAE.
CODEBOOK = ["--codebook", "loss", "--init", "uniform", "--revive", "0"]

HERE = os.path.dirname(os.path.abspath(__file__))
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184",
               "MALLOC_TOP_PAD_": "268435456"}
CONTENDERS = ["stopgrad", "contiguous", "channels_last", "tuned", "compile", "products"]
EAGER = ("contiguous", "channels_last", "tuned", "products")
BUSY = 0.05   # share of the machine that others may take in a run


# ---- the peer's process ---------------------------------------------------------------------------------------------


def work(contender, preset, estimator, threads, repeats, warm):
    """Prints one JSON line: what `stopgrad bench step --json -` calls median_ms, min_ms, first_step_s (from $BENCH_START) and
    loss; import_rss_mib, the memory taken before the model was made."""
    import resource
    import torch
    import torch_vqvae
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    sizes = torch_vqvae.PRESETS[preset]
    name = "rotation-products" if contender == "products" else estimator
    model = torch_vqvae.VqVae(**sizes, estimator=torch_vqvae.ESTIMATORS[name])
    images = torch.rand(sizes["batch"], sizes["channels"], sizes["height"], sizes["width"])
    if contender == "contiguous":
        model.dense = True
    else:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    compute = torch.compile(torch_vqvae.losses) if contender == "compile" else torch_vqvae.losses

    def step():
        total = compute(model, images)[0]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        return total.item()

    step()
    first_step = time.time() - float(os.environ["BENCH_START"])
    for _ in range(warm):
        step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        loss = step()
        times.append(1e3 * (time.perf_counter() - start))
    times.sort()
    print(json.dumps(dict(median_ms=times[len(times) // 2], min_ms=times[0], first_step_s=first_step, loss=loss,
                          import_rss_mib=imported)))


# ---- the comparison -------------------------------------------------------------------------------------------------


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else 0.5 * (values[middle - 1] + values[middle])


def machine_ticks():
    """(busy, all) clock ticks of the whole machine since boot."""
    with open("/proc/stat", encoding="ascii") as f:
        fields = [int(x) for x in f.readline().split()[1:]]
    everything = sum(fields[:8])   # guest time is part of user time
    return everything - fields[3] - fields[4], everything


def wait_for_idle(limit):
    """Returns the share of the machine that is busy, after at most `limit` seconds of waiting for less than BUSY."""
    end = time.monotonic() + limit
    while True:
        busy, everything = machine_ticks()
        time.sleep(1.0)
        busy_now, everything_now = machine_ticks()
        share = (busy_now - busy) / max(1, everything_now - everything)
        if share < BUSY or time.monotonic() > end:
            return share


def run_once(command, extra):
    """One process, alone: a dict with what it printed, rss_mib, others (the share of the machine that other processes
    took meanwhile); or {"failed": last line of its messages}."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "MALLOC_", "OMP_", "GOMP_"))}
    environment.update(extra)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        busy, everything = machine_ticks()
        environment["BENCH_START"] = repr(time.time())
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        busy_now, everything_now = machine_ticks()
        out.seek(0)
        err.seek(0)
        printed, messages = out.read(), err.read().strip().splitlines()
    if process.returncode != 0 or "{" not in printed:
        return {"failed": messages[-1] if messages else f"exit code {process.returncode}"}
    own = (usage.ru_utime + usage.ru_stime) * os.sysconf("SC_CLK_TCK")
    others = max(0.0, (busy_now - busy - own) / max(1, everything_now - everything))
    return dict(json.loads(printed[printed.index("{"):]), rss_mib=usage.ru_maxrss / 1024.0, others=others)


def command_of(contender, preset, estimator, threads, args):
    """(command line, variables to add to the environment)."""
    extra = {"OMP_NUM_THREADS": str(threads)}
    counts = ["--threads", str(threads), "--repeats", str(args.repeats), "--warm", str(args.warm)]
    if contender == "stopgrad":
        return [args.program, "bench", "step", "--json", "-", "--preset", preset, "--estimator", estimator, *CODEBOOK, *counts], extra
    if contender == "tuned":
        extra.update(KEEP_MEMORY)
    return [sys.executable, os.path.abspath(__file__), "--worker", contender, "--presets", preset, "--estimators",
            estimator, *counts], extra


def measure(args):
    """A list of {preset, estimator, threads, rounds: [{contender: run}]}."""
    groups = [dict(preset=p, estimator=e, threads=t, rounds=[]) for t in args.threads for p in args.presets
              for e in args.estimators]
    gave_up = set()
    for number in range(args.rounds):
        for group in groups:
            key = group["preset"], group["estimator"], group["threads"]
            contenders = [c for c in args.contenders if (c != "products" or group["estimator"] == "rotation")
                          and (*key, c) not in gave_up]
            shift = number % len(contenders)
            runs = {}
            for contender in contenders[shift:] + contenders[:shift]:
                for _ in range(1 + args.retries):
                    wait_for_idle(args.wait)
                    run = run_once(*command_of(contender, *key, args))
                    if "failed" in run or run["others"] <= BUSY:
                        break
                if "failed" in run:
                    if contender == "stopgrad":
                        sys.exit(f"bench_peers: {args.program} failed: {run['failed']}")
                    gave_up.add((*key, contender))
                    print(f"{contender} failed and is left out: {run['failed']}", file=sys.stderr)
                    group.setdefault("failed", {})[contender] = run["failed"]
                    continue
                runs[contender] = run
                disturbed = f", OTHERS TOOK {100 * run['others']:.0f} %" if run["others"] > BUSY else ""
                print(f"round {number + 1} {key[0]} {key[1]} {key[2]} threads {contender}: {run['median_ms']:.1f} ms, "
                      f"{run['rss_mib']:.0f} MiB, first step {run['first_step_s']:.2f} s{disturbed}", file=sys.stderr,
                      flush=True)
            group["rounds"].append(runs)
    return groups


def summary(group):
    """For each contender: medians, and ratios to stopgrad of the same round as (median, least, greatest)."""
    rows = {}
    for contender in CONTENDERS:
        rounds = [r for r in group["rounds"] if contender in r]
        if not rounds:
            continue
        row = {}
        for quantity in ("median_ms", "rss_mib", "first_step_s"):
            values = [r[contender][quantity] for r in rounds]
            ratios = [r[contender][quantity] / r["stopgrad"][quantity] for r in rounds]
            row[quantity] = dict(median=median(values), least=min(values), greatest=max(values))
            row[quantity]["ratio"] = dict(median=median(ratios), least=min(ratios), greatest=max(ratios))
        row["disturbed"] = sum(r[contender]["others"] > BUSY for r in rounds)
        rows[contender] = row
    return rows


def spread(d, digits):
    return f"{d['median']:.{digits}f} ({d['least']:.{digits}f}–{d['greatest']:.{digits}f})"


def markdown(report):
    lines = [f"PyTorch {report['torch']} against stopgrad {report['commit']}, {report['cpu']}, {report['cores']} "
             f"cores, {report['date']}; medians of {report['rounds']} rounds (least–greatest), × is a peer's figure "
             "over stopgrad's of the same round. A step is forward, backward and update, with the loss read back; "
             "stopgrad's computes its statistics as well.", ""]
    imports = [run["import_rss_mib"] for group in report["groups"] for r in group["rounds"] for run in r.values()
               if "import_rss_mib" in run]
    if imports:
        lines += [f"Of a PyTorch process's memory, {median(imports):.0f} MiB are there once torch is imported.", ""]
    if report["disturbed"]:
        lines += [f"**Not valid as a measurement: in {report['disturbed']} of {report['runs']} runs others took more "
                  f"than {100 * BUSY:.0f} % of the machine.**", ""]
    for group in report["groups"]:
        rows = group["summary"]
        lines += [f"### {group['preset']}, {group['estimator']}, {group['threads']} "
                  f"thread{'s' if group['threads'] > 1 else ''}", "",
                  "| | step, ms | × | peak RSS, MiB | × | first step, s | × |", "|---|---|---|---|---|---|---|"]
        for contender, row in rows.items():
            name = contender if contender == "stopgrad" else "PyTorch " + contender
            cells = []
            for quantity, digits in (("median_ms", 1), ("rss_mib", 0), ("first_step_s", 2)):
                cells.append(spread(row[quantity], digits))
                cells.append("1" if contender == "stopgrad" else spread(row[quantity]["ratio"], 2))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        for contender, why in group.get("failed", {}).items():
            lines.append(f"| PyTorch {contender} | failed: {why.replace('|', '/')[:100]} | | | | | |")
        eager = [c for c in rows if c in EAGER]
        if eager:
            best = min(eager, key=lambda c: rows[c]["median_ms"]["median"])
            lines += ["", f"PyTorch eager's best setting is {best}: {spread(rows[best]['median_ms']['ratio'], 2)} × "
                      "the time of stopgrad's step."]
        lines.append("")
    return "\n".join(lines)


def first_line(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    return names[0] if names else platform.machine()


def words(known=None, convert=str):
    def parse(text):
        values = [convert(w) for w in text.split(",") if w]
        for value in values:
            if known is not None and value not in known:
                raise argparse.ArgumentTypeError(f"unknown: {value}; there are {', '.join(known)}")
        return values
    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.path.join(HERE, "..", "build", "bin", "stopgrad"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=25, help="steps timed in each process")
    parser.add_argument("--warm", type=int, default=5, help="steps before these")
    parser.add_argument("--threads", type=words(convert=int), default=[2, 1])
    parser.add_argument("--presets", type=words(["fashion", "large"]), default=["fashion", "large"])
    parser.add_argument("--estimators", type=words(["ste", "rotation"]), default=["ste", "rotation"])
    parser.add_argument("--contenders", type=words(CONTENDERS), default=CONTENDERS, help=", ".join(CONTENDERS))
    parser.add_argument("--wait", type=float, default=60, help="seconds to wait for an idle machine before each run")
    parser.add_argument("--retries", type=int, default=1, help="times that a disturbed run is made again")
    parser.add_argument("--out", default=os.path.join(HERE, "..", "build", "bench_peers"),
                        help="writes OUT.json (everything measured) and OUT.md (tables)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.presets[0], args.estimators[0], args.threads[0], args.repeats, args.warm)
        return
    if not os.access(args.program, os.X_OK):
        parser.error(f"{args.program} is not there: build it, or name it with --program")
    torch = first_line([sys.executable, "-c", "import numpy, torch; print(torch.__version__)"])
    if torch == "unknown":
        parser.error(f"{sys.executable} cannot import torch and numpy: tools/bench_peers says how to get them")
    if "stopgrad" not in args.contenders:
        args.contenders.insert(0, "stopgrad")
    groups = measure(args)
    for group in groups:
        group["summary"] = summary(group)
    runs = [run for group in groups for r in group["rounds"] for run in r.values()]
    commit = first_line(["git", "-C", HERE, "describe", "--always", "--dirty"])
    report = dict(torch=torch, commit=commit, cpu=cpu_name(), cores=os.cpu_count(),
                  date=time.strftime("%Y-%m-%d"), rounds=args.rounds, runs=len(runs),
                  disturbed=sum(run["others"] > BUSY for run in runs), groups=groups)
    with open(args.out + ".json", "w", encoding="utf-8") as f:
        json.dump(report, f, indent=1)
    text = markdown(report)
    with open(args.out + ".md", "w", encoding="utf-8") as f:
        f.write(text)
    print(text)
    if report["disturbed"]:
        print(f"bench_peers: warning: others disturbed {report['disturbed']} of {len(runs)} runs; do not quote these "
              "figures", file=sys.stderr)


if __name__ == "__main__":
    main()
