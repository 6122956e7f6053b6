"""Runs counter-examples of WAL capture on a primary with a replica attached (docs/TESTING.md).

    run.py [--binary build/release/sluice | --raw] [--cache DIR] [CASE…]        no case: all of them
    run.py --prepare                                                           only fetches and compiles
"""

import argparse
import os
import sys
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "harness"))
import sqlite_source  # noqa: E402
from cases import CASES as WAL_CASES  # noqa: E402
from nodes import TestFailure, end_on_signals  # noqa: E402
from orphan_cases import ORPHAN_CASES  # noqa: E402
from scene import Scene  # noqa: E402

CASES = WAL_CASES | ORPHAN_CASES


def run_case(name, program, binary):
    try:
        with Scene(program, binary) as scene:
            CASES[name](scene)
            scene.verdict()
        print(f"CE-{name}: passed", flush=True)
        return True
    except (TestFailure, OSError) as failure:
        print(f"CE-{name}: FAILED: {failure}", flush=True)
        traceback.print_exc()
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(sqlite_source.TOP, "build/release/sluice"))
    parser.add_argument("--raw", action="store_true", help="a plain directory: shows that the steps do what they say")
    parser.add_argument("--cache", default=sqlite_source.DEFAULT_CACHE)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    options = parser.parse_args()
    end_on_signals()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    cache = os.path.abspath(options.cache)
    try:
        with sqlite_source.Locked(cache):
            sqlite_source.prepare(cache)
            program = sqlite_source.program(cache, "hk", [os.path.join(HERE, "hk.c")], with_hooks=True)
    except sqlite_source.SourceError as error:
        print(f"cannot build SQLite with fault hooks: {error}", file=sys.stderr)
        return 1
    if options.prepare:
        return 0
    binary = None if options.raw else options.binary
    results = [run_case(name, program, binary) for name in options.cases or CASES]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
