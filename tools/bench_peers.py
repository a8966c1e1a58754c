#!/usr/bin/env python3
"""Times stopgrad against its peers, in alternation: whole training steps, and pieces of them.

Each figure comes from a process of its own. A round runs every contender once, in an order that changes from round to
round; a ratio is taken within a round, and what is printed is the median over rounds with the least and the greatest.

--what step       a VQ-VAE training step. Also: peak resident memory of the process, and seconds from its start to the
                  end of its first training step. Contenders: contiguous, channels_last: PyTorch eager in either memory
                  format; tuned: channels_last with a glibc malloc that keeps freed memory (no page faults for
                  temporaries); hand: tuned, and transposed convolutions as gradients of convolutions, AVX-512 kernels
                  where the processor has them; compile: tuned, under torch.compile (needs g++); bf16: tuned, under
                  autocast to bfloat16; products: the rotation trick by outer products as in its authors' code;
                  stopgrad-bf16: ours with --bf16-flags
       nearest    nearest codes: torch.cdist and other ways to write it, FAISS's flat index
       quantizer  a vector quantizer as a layer, forward, moving averages and backward: vector-quantize-pytorch
       ops        softmax, norms, gelu, Adam: PyTorch's own kernels
A peer that this Python cannot import is left out, with the reason.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

from bench_peers_work import median

# The peers' codebook: trained by loss, as in vanilla VQ-VAE.
CODEBOOK = ["--codebook", "loss", "--init", "uniform", "--revive", "0"]

HERE = os.path.dirname(os.path.abspath(__file__))
WORKER = os.path.join(HERE, "bench_peers_work.py")
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184",
               "MALLOC_TOP_PAD_": "268435456"}
CONTENDERS = ["stopgrad", "stopgrad-bf16", "contiguous", "channels_last", "tuned", "hand", "compile", "bf16", "products"]
EAGER = ("contiguous", "channels_last", "tuned", "hand", "products")   # in f32
TUNED = ("tuned", "hand", "compile", "bf16", "products")
# of each piece: our command, the option of its sizes, the peers' workers
PIECES = {
    "nearest": ("nearest", "nearest_sizes", ["nearest_torch", "nearest_faiss"]),
    "quantizer": ("quantizer", "quantizer_sizes", ["quantizer"]),
    "ops": ("ops", "ops_sizes", ["ops"]),
}
OURS_OF_OPS = "softmax,log_softmax,layer_norm,rms_norm,group_norm,gelu,adam"
BUSY = 0.05   # share of the machine that others may take in a run


# ---- the comparison -------------------------------------------------------------------------------------------------


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


def has_avx512():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        return " avx512f " in f.read()


def peer(work, *arguments):
    return [sys.executable, WORKER, work, json.dumps(arguments)]


def command_of(contender, preset, estimator, threads, args):
    """(command line, variables to add to the environment)."""
    extra = {"OMP_NUM_THREADS": str(threads)}
    if contender.startswith("stopgrad"):
        return [args.program, "bench", "step", "vqvae", "--json", "-", "--preset", preset, "--estimator", estimator,
                *CODEBOOK, "--threads", str(threads), "--repeats", str(args.repeats), "--warm", str(args.warm),
                *(args.bf16_flags.split() if contender == "stopgrad-bf16" else [])], extra
    if contender in TUNED:
        extra.update(KEEP_MEMORY)
    if contender == "hand" and has_avx512():
        extra["ATEN_CPU_CAPABILITY"] = "avx512"
    return peer("step", contender, preset, estimator, threads, args.repeats, args.warm), extra


def run_undisturbed(command, extra, args):
    """run_once when the machine is idle, again where others disturbed it."""
    for _ in range(1 + args.retries):
        wait_for_idle(args.wait)
        run = run_once(command, extra)
        if "failed" in run or run["others"] <= BUSY:
            break
    return run


def measure(args):
    """A list of {preset, estimator, threads, rounds: [{contender: run}]}."""
    groups = [dict(preset=p, estimator=e, threads=t, rounds=[]) for t in args.threads for p in args.presets
              for e in args.estimators]
    gave_up = set()
    for number in range(args.rounds):
        for group in groups:
            key = group["preset"], group["estimator"], group["threads"]
            contenders = [c for c in args.contenders if (c != "products" or group["estimator"] == "rotation")
                          and (c != "stopgrad-bf16" or args.bf16_flags) and (*key, c) not in gave_up]
            shift = number % len(contenders)
            runs = {}
            for contender in contenders[shift:] + contenders[:shift]:
                run = run_undisturbed(*command_of(contender, *key, args), args)
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


def ours_by_case(kind, figures):
    """{case: seconds} of what `stopgrad bench KIND --json -` printed; cases are those of the peers."""
    out = {}
    for group in figures["groups"]:
        seconds = {v["name"]: v["seconds"]["median"] for v in group["variants"]}
        if kind == "ops":
            out[f"{group['rows']}x{group['columns']} {group['title']}"] = seconds["work"]
        elif kind == "nearest":
            out[f"{group['n']}x{group['d']}x{group['k']}"] = seconds["nearest_code"]
        else:
            for name, value in seconds.items():
                out[f"{group['n']}x{group['d']}x{group['k']} {name}"] = value
    return out


def measure_pieces(kind, threads, args):
    """{kind, threads, cases: {case: {variant: {seconds, ratio}}}, failed}: seconds and ratios as median, least and
    greatest over rounds; the variant "stopgrad" is ours."""
    command, sizes_option, workers = PIECES[kind]
    sizes = getattr(args, sizes_option)
    environment = {"OMP_NUM_THREADS": str(threads)}
    ours = [args.program, "bench", command, "--sizes", ",".join(sizes), "--threads", str(threads), "--json", "-",
            "--rounds", str(args.inner_rounds), "--slice", str(args.slice)]
    if kind == "ops":
        ours += ["--only", OURS_OF_OPS]
    rounds, failed, disturbed = [], {}, 0
    for number in range(args.rounds):
        cases = {}
        turns = ["stopgrad", *workers]
        shift = number % len(turns)
        for who in turns[shift:] + turns[:shift]:
            if who in failed:
                continue
            run = run_undisturbed(ours if who == "stopgrad" else peer(who, sizes, threads, args.slice, args.inner_rounds),
                                  environment if who == "stopgrad" else {**environment, **KEEP_MEMORY}, args)
            if "failed" in run:
                if who == "stopgrad":
                    sys.exit(f"bench_peers: {' '.join(ours)} failed: {run['failed']}")
                failed[who] = run["failed"]
                print(f"{who} is left out: {run['failed']}", file=sys.stderr)
                continue
            disturbed += run.pop("others") > BUSY
            run.pop("rss_mib")
            if who == "stopgrad":
                for case, seconds in ours_by_case(kind, run).items():
                    cases.setdefault(case, {})["stopgrad"] = seconds
            else:
                for case, variants in run.items():
                    cases.setdefault(case, {}).update(variants)
            print(f"round {number + 1} {kind} {threads} threads {who}: done", file=sys.stderr, flush=True)
        rounds.append(cases)
    out = {}
    for case in rounds[0]:
        for variant in rounds[0][case]:
            whole = [r[case] for r in rounds if variant in r[case]]   # a peer may have failed in a later round
            values = [r[variant] for r in whole]
            ratios = [r[variant] / r["stopgrad"] for r in whole]
            out.setdefault(case, {})[variant] = {
                what: dict(median=median(v), least=min(v), greatest=max(v))
                for what, v in (("seconds", values), ("ratio", ratios))}
    return dict(kind=kind, threads=threads, cases=out, failed=failed, disturbed=disturbed,
                runs=args.rounds * (1 + len(workers) - len(failed)))


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
            name = contender if contender.startswith("stopgrad") else "PyTorch " + contender
            cells = []
            for quantity, digits in (("median_ms", 1), ("rss_mib", 0), ("first_step_s", 2)):
                cells.append(spread(row[quantity], digits))
                cells.append("1" if contender == "stopgrad" else spread(row[quantity]["ratio"], 2))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        for contender, why in group.get("failed", {}).items():
            lines.append(f"| PyTorch {contender} | failed: {why.replace('|', '/')[:100]} | | | | | |")
        eager = [c for c in rows if c in EAGER]
        if "stopgrad-bf16" in rows:
            lines += ["", f"stopgrad's bf16 takes {spread(rows['stopgrad-bf16']['median_ms']['ratio'], 2)} × the time "
                      "of its f32."]
        if eager:
            best = min(eager, key=lambda c: rows[c]["median_ms"]["median"])
            lines += ["", f"PyTorch eager's best setting is {best}: {spread(rows[best]['median_ms']['ratio'], 2)} × "
                      "the time of stopgrad's step."]
        lines.append("")
    return "\n".join(lines + [pieces_markdown(piece) for piece in report["pieces"]])


def pieces_markdown(piece):
    plural = "s" if piece["threads"] > 1 else ""
    lines = [f"### {piece['kind']}, {piece['threads']} thread{plural}", "",
             "| | stopgrad, ms | peer | ms | × stopgrad |", "|---|---|---|---|---|"]
    for case, variants in piece["cases"].items():
        ours = {what: 1e3 * x for what, x in variants["stopgrad"]["seconds"].items()}
        for variant, row in variants.items():
            if variant == "stopgrad":
                continue
            theirs = {what: 1e3 * x for what, x in row["seconds"].items()}
            name = variant.replace("|", "\\|")
            lines.append(f"| {case} | {spread(ours, 3)} | {name} | {spread(theirs, 3)} | {spread(row['ratio'], 2)} |")
    for who, why in piece["failed"].items():
        lines.append(f"| left out: {who} | | {why.replace('|', '/')[:100]} | | |")
    return "\n".join(lines + [""])


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
    parser.add_argument("--what", type=words(["step", *PIECES]), default=["step"])
    parser.add_argument("--bf16-flags", default="", help="flags that make stopgrad's step a bf16 one; none: left out")
    parser.add_argument("--nearest-sizes", type=words(),
                        default=["6272x64x512", "65536x64x1024", "16384x32x16384", "65536x256x8192"])
    parser.add_argument("--quantizer-sizes", type=words(), default=["6272x64x512", "4096x256x1024"])
    parser.add_argument("--ops-sizes", type=words(), default=["6272x64", "262144x256"])
    parser.add_argument("--slice", type=float, default=0.05, help="seconds for which a piece is repeated at a time")
    parser.add_argument("--inner-rounds", type=int, default=5, help="times in each process; their median counts")
    parser.add_argument("--wait", type=float, default=60, help="seconds to wait for an idle machine before each run")
    parser.add_argument("--retries", type=int, default=1, help="times that a disturbed run is made again")
    parser.add_argument("--out", default=os.path.join(HERE, "..", "build", "bench_peers"),
                        help="writes OUT.json (everything measured) and OUT.md (tables)")
    args = parser.parse_args()
    if not os.access(args.program, os.X_OK):
        parser.error(f"{args.program} is not there: build it, or name it with --program")
    torch = first_line([sys.executable, "-c", "import numpy, torch; print(torch.__version__)"])
    if torch == "unknown":
        parser.error(f"{sys.executable} cannot import torch and numpy: tools/bench_peers says how to get them")
    if "stopgrad" not in args.contenders:
        args.contenders.insert(0, "stopgrad")
    groups = measure(args) if "step" in args.what else []
    for group in groups:
        group["summary"] = summary(group)
    runs = [run for group in groups for r in group["rounds"] for run in r.values()]
    pieces = [measure_pieces(kind, threads, args) for kind in args.what if kind in PIECES for threads in args.threads]
    commit = first_line(["git", "-C", HERE, "describe", "--always", "--dirty"])
    report = dict(torch=torch, commit=commit, cpu=cpu_name(), cores=os.cpu_count(),
                  date=time.strftime("%Y-%m-%d"), rounds=args.rounds,
                  runs=len(runs) + sum(p["runs"] for p in pieces),
                  disturbed=sum(run["others"] > BUSY for run in runs) + sum(p["disturbed"] for p in pieces),
                  groups=groups, pieces=pieces)
    with open(args.out + ".json", "w", encoding="utf-8") as f:
        json.dump(report, f, indent=1)
    text = markdown(report)
    with open(args.out + ".md", "w", encoding="utf-8") as f:
        f.write(text)
    print(text)
    if report["disturbed"]:
        print(f"bench_peers: warning: others disturbed {report['disturbed']} of {report['runs']} runs; do not quote these "
              "figures", file=sys.stderr)


if __name__ == "__main__":
    main()
