"""Measures what the number and the size of databases cost: start, memory, descriptors, processor, many writers, replication.

Every figure is printed as "name value unit"; with --limits a figure beyond its limit makes the run fail. Two nodes run as processes.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "harness"))

import big  # noqa: E402
import many  # noqa: E402
from nodes import TestFailure, end_on_signals  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--databases", type=int, default=0, help="this many small databases on two nodes")
    parser.add_argument("--dirs", type=int, default=100, help="in this many directories")
    parser.add_argument("--writers", type=int, default=200, help="databases written at once")
    parser.add_argument("--big-gb", type=float, default=0, help="one database of this size")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement that lasts")
    parser.add_argument("--limits", action="store_true", help="fail when a figure is beyond its limit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--binary", default="build/release/sluice")
    parser.add_argument("--dir", default=None, help="where to work (default: a new directory in TMPDIR)")
    parser.add_argument("--keep", action="store_true", help="leave the directory behind")
    options = parser.parse_args()
    if not options.databases and not options.big_gb:
        parser.error("--databases or --big-gb is needed")
    end_on_signals()
    root = tempfile.mkdtemp(prefix="sluice-scale-", dir=options.dir)
    options.random = random.Random(options.seed)
    print(f"# {' '.join(sys.argv)}; in {root}", flush=True)
    try:
        if options.databases:
            many.run(options, root)
        if options.big_gb:
            big.run(options, root)
    except TestFailure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
