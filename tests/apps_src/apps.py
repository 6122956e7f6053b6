"""Unmodified applications on both nodes: Python's sqlite3, Node with better-sqlite3, the sqlite3 shell.

    tests/apps [--binary build/release/sluice] [--raw] [python|node|shell …]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(HERE, "..", "harness"))
from nodes import Node, TestFailure, end_on_signals, first_difference, wait_same_position, wait_until  # noqa: E402

SECONDS = 300


def run(command, what, seconds=SECONDS, **options):
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False, **options)
    if result.returncode != 0:
        raise TestFailure(f"{what}: exit code {result.returncode}\n{(result.stdout + result.stderr)[-3000:]}")
    return result.stdout.strip()


def node_modules(cache):
    """Installs the binding for Node once; returns the folder for NODE_PATH."""
    if not shutil.which("node") or not shutil.which("npm"):
        run(["apt-get", "install", "-y", "--no-install-recommends", "nodejs", "npm"],
            "Node is missing and cannot be installed (apt install nodejs npm)", 900)
    folder = os.path.join(cache, run(["node", "--version"], "node"))
    modules = os.path.join(folder, "node_modules")
    if os.path.exists(os.path.join(folder, "done")):
        return modules
    failures = []
    for package in (None, "sqlite3@5.1.7"):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        shutil.copy(os.path.join(HERE, "package.json") if package is None else os.devnull, os.path.join(folder, "package.json"))
        if package is not None:
            with open(os.path.join(folder, "package.json"), "w", encoding="utf-8") as file:
                file.write('{"private": true}')
        try:
            # Compiled here, not downloaded ready-made.
            run(["npm", "install", "--no-audit", "--no-fund"] + ([package] if package else []), "npm install", 1200, cwd=folder,
                env=dict(os.environ, npm_config_build_from_source="true"))
            run(["node", "-e", f"require('{package.split('@')[0] if package else 'better-sqlite3'}')"], "loading the binding",
                cwd=folder)
        except TestFailure as failure:
            failures.append(str(failure))
            continue
        with open(os.path.join(folder, "done"), "w", encoding="utf-8") as done:
            done.write("ok\n")
        return modules
    raise TestFailure("neither better-sqlite3 nor sqlite3 can be installed from npm:\n" + "\n".join(failures))


def commands(app, role, folder, scratch, cache):
    """(command, environment) that runs the application."""
    if app == "python":
        return [sys.executable, os.path.join(HERE, "python_app.py"), role, folder, scratch], None
    if app == "shell":
        return [os.path.join(HERE, "shell_app.sh"), role, folder, scratch], None
    return (["node", os.path.join(HERE, "node_app.js"), role, folder],
            dict(os.environ, NODE_PATH=node_modules(cache)))


def databases(root):
    found = []
    for folder, _, files in os.walk(root):
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files if name.endswith(".db")]
    return sorted(found)


def compare(primary, replica, directory):
    names = databases(primary.mount)
    wait_until(lambda: databases(replica.mount) == names, 60, "the replica has the same databases")
    for name in names:
        wait_same_position(primary, replica, name)
        images = [os.path.join(directory, node.name + ".image") for node in (primary, replica)]
        for node, image in zip((primary, replica), images):
            node.export(name, image)
        difference = first_difference(*images)
        if difference:
            raise TestFailure(f"{name} differs: {difference}")
    return len(names)


def main():
    parser = argparse.ArgumentParser(prog="tests/apps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(TOP, "build/release/sluice"))
    parser.add_argument("--cache", default=os.path.join(TOP, "build", "apps-node"), help="for what comes from npm")
    parser.add_argument("--raw", action="store_true", help="a plain directory: tests the applications")
    parser.add_argument("apps", nargs="*", default=[], metavar="APP")
    options = parser.parse_args()
    end_on_signals()
    directory = tempfile.mkdtemp(prefix="sluice-apps-")
    scratch = os.path.join(directory, "scratch")
    os.makedirs(scratch)
    nodes = []
    try:
        if options.raw:
            root = os.path.join(directory, "raw")
            os.makedirs(root)
        else:
            nodes.append(Node(options.binary, directory, "primary"))
            nodes.append(Node(options.binary, directory, "replica", nodes[0].url))
            for node in nodes:
                node.start()
            root = nodes[0].mount
        for app in options.apps or ["python", "node", "shell"]:
            command, environment = commands(app, "write", root, scratch, options.cache)
            print(f"{app}: on the primary; {run(command, app + ' on the primary', env=environment)}", flush=True)
            if nodes:
                equal = compare(*nodes, directory)
                command, environment = commands(app, "read", nodes[1].mount, scratch, options.cache)
                print(f"{app}: on the replica, {equal} databases equal; "
                      f"{run(command, app + ' on the replica', env=environment)}", flush=True)
        for node in reversed(nodes):
            node.stop()
    except (TestFailure, OSError, subprocess.TimeoutExpired) as failure:
        print(f"FAILED: {failure}\nkept {directory}")
        for node in nodes:
            print(f"---- {node.name}\n{node.log_tail()}")
        return 1
    finally:
        for node in nodes:
            node.close()
    shutil.rmtree(directory)
    print("all passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
