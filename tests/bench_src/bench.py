"""tests/bench: Sluice against the plain file system. docs/PERFORMANCE.md says what is measured and how.

Ends with 0; with 1 when a target is missed (never with --quick); with 2 when something failed or a result was wrong;
with 130 when it was interrupted.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import time

import report
from measures import MEASURES
from stage import Stage, TestFailure, stop_on_signals, use_io_path
from workloads import run_rounds, workloads

REPOSITORY = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
TARGETS = ("raw", "mount", "replica")
# seconds of a run, rounds, database for reads, bulk load, big transaction
SIZES = {"quick": (0.1, 1, 8, 8, 16), "normal": (0.5, 3, 200, 200, 256), "full": (1.0, 5, 200, 200, 2000)}


def parse(arguments):
    parser = argparse.ArgumentParser(prog="tests/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", default="normal",
                      help="does everything once and small, in less than a minute; its figures mean nothing")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="5 rounds of 1 s, a transaction of 2 GB")
    parser.add_argument("--only", metavar="NAME", action="append", default=[], help="these (NAME,NAME or a pattern as point_*)")
    parser.add_argument("--list", action="store_true", help="names and meanings, then ends")
    parser.add_argument("--targets", default=",".join(TARGETS), help="some of raw,mount,replica (default all)")
    parser.add_argument("--seconds", type=float, help="of one run")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--database-mb", type=int, help="size of the databases that are read and caught up with")
    parser.add_argument("--load-mb", type=int, help="size of a bulk load")
    parser.add_argument("--big-mb", type=int, help="size of the big transaction")
    parser.add_argument("--poll-us", type=int, default=0, help="pause of the reader that waits for a row (default 0: none)")
    parser.add_argument("--io", choices=("native", "plain", "auto"), default="", help="the I/O path of the nodes")
    parser.add_argument("--dir", default=os.environ.get("TMPDIR", "/tmp"), help="where to work: the file system that is measured")
    parser.add_argument("--binary", default=os.path.join(REPOSITORY, "build", "release", "sluice"))
    parser.add_argument("--worker", help="default: bench_worker of the binary's build")
    parser.add_argument("--json", metavar="FILE", help="every round of everything")
    parser.add_argument("--keep", action="store_true", help="do not remove data and logs")
    options = parser.parse_args(arguments)
    if options.io:
        use_io_path(options.io)
    for name, value in zip(("seconds", "rounds", "database_mb", "load_mb", "big_mb"), SIZES[options.size]):
        if getattr(options, name) is None:
            setattr(options, name, value)
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    options.quick = options.size == "quick"
    options.targets = options.targets.split(",")
    if not options.targets or not set(options.targets) <= set(TARGETS):
        parser.error("--targets takes raw, mount, replica")
    options.binary = os.path.abspath(options.binary)
    if options.worker is None:
        options.worker = os.path.join(os.path.dirname(options.binary), "tests", "bench_src", "bench_worker")
    names = [workload.name for workload in workloads(options)] + list(MEASURES)
    options.patterns = [pattern for word in options.only for pattern in word.split(",")]
    for pattern in options.patterns:
        if not fnmatch.filter(names, pattern):
            parser.error(f"--only {pattern}: no such name (see --list)")
    return options


def wanted(options, name):
    return not options.patterns or any(fnmatch.fnmatch(name, pattern) for pattern in options.patterns)


def make_sure_it_is_built(options):
    """Builds the release preset if that is what is missing."""
    need_binary = set(options.targets) != {"raw"}
    missing = [path for path in ([options.binary] if need_binary else []) + [options.worker] if not os.path.exists(path)]
    build = os.path.join(REPOSITORY, "build", "release")
    if missing and all(path.startswith(build + os.sep) for path in missing):
        targets = ["bench_worker"] + (["sluice"] if need_binary else [])
        for command in (["cmake", "--preset", "release", "-DSLUICE_BUILD_TESTS=ON"], ["cmake", "--build", build, "--target", *targets]):
            subprocess.run(command, cwd=REPOSITORY, check=True, stdout=sys.stderr)
        missing = [path for path in missing if not os.path.exists(path)]
    if missing:
        raise TestFailure("not built: " + ", ".join(missing))
    if os.geteuid() != 0:
        raise TestFailure("must run as root: passthrough needs CAP_SYS_ADMIN, and some runs are as another user")


def note(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def measure(options):
    rows, findings = [], []
    with Stage(options) as stage:
        for name in options.targets:
            stage.target(name)
        for workload in workloads(options):
            if wanted(options, workload.name):
                rows.append(report.Row(workload, run_rounds(stage, workload, options, note)))
        if "replica" in options.targets:
            for name, function in MEASURES.items():
                if wanted(options, name):
                    findings += function(stage, options, note)
    return rows, findings


def print_report(options, machine, rows, findings):
    judged = not options.quick
    print(f"tests/bench, {options.rounds} rounds of {options.seconds:g} s. " + ", ".join(f"{k}: {v}" for k, v in machine.items()))
    if rows:
        print("\n" + report.throughput_table(rows, judged))
        print("\nmedians; ratio: median of the per-round ratios to raw; req/op: FUSE requests on that node's mount; ~ noisy (raw"
              " varies by more than 30 %,\nor others used more than 5 % of the CPUs)")
    if findings:
        print("\n" + report.findings_table(findings, judged))


def main():
    options = parse(sys.argv[1:])
    if options.list:
        for workload in workloads(options):
            print(f"{workload.name:22} {workload.what}")
        for name, function in MEASURES.items():
            print(f"{name:22} {function.__doc__ or ''}")
        return 0
    stop_on_signals()
    machine = report.machine(options.dir, REPOSITORY)
    try:
        make_sure_it_is_built(options)
        rows, findings = measure(options)
    except (TestFailure, subprocess.SubprocessError) as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print_report(options, machine, rows, findings)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine, "size": options.size, "rounds": options.rounds, "seconds": options.seconds,
                       "workloads": [row.summary() for row in rows], "measures": [vars(f) | {"value": f.value, "met": f.met} for f in findings]},
                      file, indent=1)
    missed = [row.workload.name for row in rows if row.met is False] + [f.name for f in findings if f.met is False]
    if missed and not options.quick:
        print(f"\nmissed: {', '.join(missed)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
