"""SQLite's own source, from the source package of the Debian release this machine runs, fetched and built at test time.

    python3 sqlite_source.py --cache build/sqlite-source

The list of source mirrors is made from the machine's own APT configuration. Nothing is installed or changed outside the
cache directory. Needs apt, dpkg-dev, gcc, make and tclsh.
"""

import argparse
import fcntl
import glob
import os
import re
import shutil
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEFAULT_CACHE = os.path.join(TOP, "build", "sqlite-source")

# Fault hooks: a call of sluice_fault_hook(n) before or after the only place in the amalgamation that reads so.
# (number, function it is in, text, "before" | "after")
HOOKS = [
    (1, "sqlite3WalFrames", "      walIndexWriteHdr(pWal);\n      pWal->iCallback = iFrame;", "before"),
    (2, "walIndexWriteHdr", "  memcpy((void*)&aHdr[0], (const void*)&pWal->hdr, sizeof(WalIndexHdr));", "before"),
    (3, "sqlite3WalCheckpoint", "      rc = walCheckpoint(pWal, db, eMode2, xBusy2, pBusyArg, sync_flags, zBuf);", "before"),
    (4, "walRestartHdr", "  assert( pInfo->aReadMark[0]==0 );", "after"),
    (5, "sqlite3WalFrames", "    rc = sqlite3OsWrite(pWal->pWalFd, aWalHdr, sizeof(aWalHdr), 0);", "after"),
    (6, "sqlite3PagerCommitPhaseTwo", "  rc = pager_end_transaction(pPager, pPager->setSuper, 1);", "before"),
]


class SourceError(Exception):
    """SQLite's source could not be fetched, patched or built; the text says which and what to do."""


def run(command, what, **options):
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, **options)
    if result.returncode != 0:
        tail = "\n".join((result.stdout + result.stderr).splitlines()[-15:])
        raise SourceError(f"{what} failed ({' '.join(command)}):\n{tail}")
    return result.stdout


def source_lists():
    """deb-src twins of the machine's package sources: (text in one-line style, text in deb822 style)."""
    lines, stanzas = [], []
    for path in ["/etc/apt/sources.list"] + sorted(glob.glob("/etc/apt/sources.list.d/*.list")):
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                lines += [re.sub(r"^deb(?=\s)", "deb-src", line.strip()) for line in file if re.match(r"deb\s", line.strip())]
    for path in sorted(glob.glob("/etc/apt/sources.list.d/*.sources")):
        with open(path, encoding="utf-8") as file:
            text = "\n".join(line for line in file.read().splitlines() if not line.startswith("#"))
        for stanza in re.split(r"\n\s*\n", text):
            if re.search(r"^Types:.*\bdeb\b", stanza, re.M) and not re.search(r"^Enabled:\s*(no|false)", stanza, re.M):
                stanzas.append(re.sub(r"^Types:.*$", "Types: deb-src", stanza.strip(), flags=re.M))
    return "\n".join(lines) + "\n", "\n\n".join(stanzas) + "\n"


def fetch(cache):
    """Downloads and unpacks the source package; returns the directory of the sources."""
    found = glob.glob(os.path.join(cache, "sqlite3-3*", "configure"))
    if found:
        return os.path.dirname(found[0])
    for tool in ("apt-get", "dpkg-source"):
        if not shutil.which(tool):
            raise SourceError(f"{tool} is missing: SQLite's source package cannot be fetched (apt install apt dpkg-dev)")
    shutil.rmtree(cache, ignore_errors=True)
    for name in ("lists/partial", "archives/partial", "parts"):
        os.makedirs(os.path.join(cache, name))
    one_line, deb822 = source_lists()
    for name, text in (("mirror.list", one_line), ("mirror.sources", deb822)):
        if text.strip():
            with open(os.path.join(cache, "parts", name), "w", encoding="utf-8") as file:
                file.write(text)
    apt = ["apt-get", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={cache}/parts",
           "-o", f"Dir::State::lists={cache}/lists", "-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User=root"]
    # A mirror without sources may fail here; what counts is whether the package is found.
    subprocess.run(apt + ["update"], capture_output=True, check=False)
    run(apt + ["source", "sqlite3"], "fetching SQLite's Debian source package", cwd=cache)
    found = glob.glob(os.path.join(cache, "sqlite3-3*", "configure"))
    if not found:
        raise SourceError(f"the source package of sqlite3 has no configure script (see {cache})")
    return os.path.dirname(found[0])


def amalgamate(cache, source):
    """Makes sqlite3.c; returns the build directory that holds it."""
    build = os.path.join(cache, "amalgamation")
    if os.path.exists(os.path.join(build, "done")):
        return build
    if not shutil.which("tclsh"):
        raise SourceError("tclsh is missing: SQLite's amalgamation cannot be made (apt install tcl)")
    shutil.rmtree(build, ignore_errors=True)
    os.makedirs(build)
    run([os.path.join(source, "configure"), "--disable-tcl"], "configuring SQLite", cwd=build)
    run(["make", "sqlite3.c"], "making SQLite's amalgamation", cwd=build)
    with open(os.path.join(build, "done"), "w", encoding="utf-8") as done:
        done.write("ok\n")
    return build


def body_of(text, function):
    """(start, end) of the definition of a function in the amalgamation."""
    for match in re.finditer(r"^[A-Za-z][^\n]*\b" + function + r"\(", text, re.M):
        signature = re.match(r"(?:/\*.*?\*/|[^;{])*", text[match.start():match.start() + 4000], re.S)
        opening = match.start() + signature.end()
        if text[opening] == "{":
            return match.start(), text.index("\n}\n", opening) + 3
    raise SourceError(f"SQLite's source has no function {function}: the fault hooks need another look")


def add_hooks(amalgamation, target):
    with open(amalgamation, encoding="utf-8") as file:
        text = file.read()
    for number, function, place, side in HOOKS:
        start, end = body_of(text, function)
        body = text[start:end]
        if body.count(place) != 1:
            raise SourceError(f"{function} of this SQLite has {body.count(place)} places for fault hook {number}, not 1")
        hook = f"if( sluice_fault_hook ) sluice_fault_hook({number});"
        body = body.replace(place, f"{hook}\n{place}" if side == "before" else f"{place}\n{hook}")
        text = text[:start] + body + text[end:]
    with open(target, "w", encoding="utf-8") as file:
        file.write("void (*sluice_fault_hook)(int) = 0;\n" + text)


COMPILE = ["cc", "-O1", "-g", "-w", "-DSQLITE_THREADSAFE=1", "-DHAVE_USLEEP=1"]


def newer(target, inputs):
    return os.path.exists(target) and all(os.path.getmtime(target) > os.path.getmtime(i) for i in inputs)


def library(cache, with_hooks):
    """The amalgamation as an object file, compiled once."""
    build = os.path.join(cache, "amalgamation")
    source = os.path.join(build, "sqlite3.c")
    if with_hooks:
        plain, source = source, os.path.join(build, "sqlite3-hooked.c")
        if not newer(source, [plain, os.path.abspath(__file__)]):
            add_hooks(plain, source)
    target = source.removesuffix(".c") + ".o"
    if not newer(target, [source]):
        run(COMPILE + ["-c", "-o", target, source], "compiling SQLite")
    return target


def program(cache, name, sources, flags=(), with_hooks=False):
    """Compiles a program against the source package's SQLite unless that is done."""
    target = os.path.join(cache, "bin", name)
    sqlite = library(cache, with_hooks)
    if newer(target, list(sources) + [sqlite]):
        return target
    os.makedirs(os.path.dirname(target), exist_ok=True)
    command = COMPILE + list(flags) + ["-I", os.path.dirname(sqlite), "-o", target] + list(sources)
    run(command + [sqlite, "-lpthread", "-ldl", "-lm"], f"compiling {name}")
    return target


class Locked:
    """Holds the cache against other test programs that build in it."""

    def __init__(self, cache):
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        self.file = open(cache + ".lock", "w", encoding="utf-8")

    def __enter__(self):
        fcntl.flock(self.file, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_):
        self.file.close()


def prepare(cache=DEFAULT_CACHE):
    """Fetches and amalgamates if that is not done yet; returns the source directory. Call it inside Locked."""
    source = fetch(cache)
    amalgamate(cache, source)
    return source


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", default=DEFAULT_CACHE)
    cache = os.path.abspath(parser.parse_args().cache)
    try:
        with Locked(cache):
            print(prepare(cache))
    except SourceError as error:
        print(f"SQLite's source: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
