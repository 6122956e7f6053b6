"""Medians, ratios, tables, the machine."""

import os
import platform
import sqlite3
import statistics
import subprocess

# Reads send none; this much is left for what else the kernel and the node do on the mount meanwhile. A scan reads 49,000 pages;
# the kernel may have taken some of them back for other uses, and reads those again with a request for up to 256.
MOST_REQUESTS_PER_READ = {"reads/s": 0.001, "MB/s": 49}
NOISY_SPREAD = 1.3
NOISY_FOREIGN_CPU = 0.05


def short(number):
    if number is None:
        return ""
    for limit, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(number) >= limit:
            return f"{number:.{digits}f}" if number < 100_000 else f"{number / 1000:.0f}k"
    return f"{number:.3f}"


class Row:
    """One workload's rounds on all targets."""

    def __init__(self, workload, rounds):
        self.workload = workload
        self.rounds = rounds

    def value(self, target):
        runs = self.rounds.get(target)
        return statistics.median(run["value"] for run in runs) if runs else None

    def ratios(self, target):
        """Per round, to raw of the same round."""
        raw = self.rounds.get("raw")
        runs = self.rounds.get(target)
        return [run["value"] / base["value"] for run, base in zip(runs, raw)] if raw and runs else []

    def ratio(self, target):
        ratios = self.ratios(target)
        return statistics.median(ratios) if ratios else None

    def requests(self, target):
        runs = self.rounds.get(target)
        return statistics.median(run["requests_per_op"] for run in runs) if runs else None

    def cpu(self, target, node):
        runs = self.rounds.get(target)
        values = [run["cpu_us_per_op"][node] for run in runs or [] if node in run["cpu_us_per_op"]]
        return statistics.median(values) if values else None

    @property
    def noisy(self):
        raw = [run["value"] for run in self.rounds.get("raw", [])]
        foreign = [run["foreign_cpu"] for runs in self.rounds.values() for run in runs]
        return (len(raw) > 1 and max(raw) > NOISY_SPREAD * min(raw)) or statistics.median(foreign) > NOISY_FOREIGN_CPU

    @property
    def met(self):
        """None: no target, or not measured."""
        ratio = self.ratio("replica")
        if self.workload.target_ratio is None or ratio is None:
            return None
        if self.workload.no_requests and self.requests("replica") > MOST_REQUESTS_PER_READ[self.workload.unit]:
            return False
        return ratio >= self.workload.target_ratio

    @property
    def target(self):
        if self.workload.target_ratio is None:
            return ""
        return f">= {self.workload.target_ratio:.2f}" + (", 0 req" if self.workload.no_requests else "")

    def summary(self):
        return {"name": self.workload.name, "what": self.workload.what, "unit": self.workload.unit,
                "median": {t: self.value(t) for t in self.rounds}, "ratio": {t: self.ratio(t) for t in self.rounds if t != "raw"},
                "requests_per_op": {t: self.requests(t) for t in self.rounds}, "target_ratio": self.workload.target_ratio,
                "met": self.met, "noisy": self.noisy, "rounds": self.rounds}


def verdict(met, judged):
    return "" if met is None or not judged else "ok" if met else "MISSED"


def table(head, rows):
    """Markdown, columns padded."""
    rows = [head] + rows
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def throughput_table(rows, judged):
    head = ["workload", "unit", "raw", "mount", "ratio", "with replica", "ratio", "min-max", "req/op", "cpu us/op P+R",
            "at replica", "target", ""]
    cells = []
    for row in rows:
        ratios = row.ratios("replica")
        cpu = [row.cpu("replica", "primary"), row.cpu("replica", "replica")]
        at_replica = row.value("at_replica")
        cells.append([row.workload.name + (" ~" if row.noisy else ""), row.workload.unit, short(row.value("raw")),
                      short(row.value("mount")), short(row.ratio("mount")), short(row.value("replica")), short(row.ratio("replica")),
                      f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else "", short(row.requests("replica")),
                      "+".join(short(c) for c in cpu) if None not in cpu else "",
                      f"{short(at_replica)} ({short(row.ratio('at_replica'))})" if at_replica else "",
                      row.target, verdict(row.met, judged)])
    return table(head, cells)


def findings_table(findings, judged):
    head = ["measure", "unit", "median", "rounds", "target", ""]
    return table(head, [[f.name, f.unit, short(f.value), " ".join(short(v) for v in f.values), f.target, verdict(f.met, judged)]
                        for f in findings])


def first_line(path, prefix):
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.startswith(prefix):
                    return line.split(":", 1)[1].strip() if prefix else line.strip()
    except OSError:
        pass
    return ""


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def machine(directory, repository):
    changed = output_of("git", "-C", repository, "status", "--porcelain", "--untracked-files=no")
    return {"commit": output_of("git", "-C", repository, "rev-parse", "--short=12", "HEAD") + (" + changes" if changed else ""),
            "cpu": first_line("/proc/cpuinfo", "model name"), "cpus": os.cpu_count(), "kernel": platform.release(),
            "memory": first_line("/proc/meminfo", "MemTotal"), "sqlite": sqlite3.sqlite_version,
            "file system": output_of("stat", "-f", "-c", "%T", directory), "load": first_line("/proc/loadavg", "")}
