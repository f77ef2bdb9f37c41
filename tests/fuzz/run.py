#!/usr/bin/env python3
"""Runs each fuzz target of a build for a fixed time, as many at once as there are cores, and fails where one finds something.

  tests/fuzz/run.py [--build build-fuzz] [--seconds 10] [--keep] [TARGET...]

An input that breaks a property, takes longer than --timeout seconds or needs more than --memory MB is kept in BUILD/fuzz/; put it into
tests/fuzz/corpus/TARGET/ under a name that says what it is, together with the fix. --keep adds to the corpus what reaches new code (few
files: see --keep-max).
"""

import argparse
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


def last_lines(text, n=25):
    return "\n".join(text.splitlines()[-n:])


def limits(args):
    return [f"-timeout={args.timeout}", f"-rss_limit_mb={args.memory}", f"-malloc_limit_mb={args.memory // 2}", f"-max_len={args.max_len}"]


def keep(args, program, corpus, found, scratch):
    """Adds to the corpus what of `found` reaches code that it does not; inputs of up to 2 KB, the richest first."""
    merged = scratch / "merged"
    merged.mkdir()
    inputs = [str(corpus)] if corpus.is_dir() else []
    subprocess.run([program, "-set_cover_merge=1", *limits(args), str(merged), *inputs, str(scratch / "seeds"), str(found)], capture_output=True, check=True)
    known = {p.read_bytes() for folder in (corpus, scratch / "seeds") if folder.is_dir() for p in folder.iterdir()}
    new = sorted((p for p in merged.iterdir() if p.read_bytes() not in known), key=lambda p: -p.stat().st_size)
    new = [p for p in new if p.stat().st_size <= 2048]
    corpus.mkdir(exist_ok=True)
    for path in new[:args.keep_max]:
        (corpus / path.name[:12]).write_bytes(path.read_bytes())
    return min(len(new), args.keep_max)


def fuzz(args, program):
    """(target, failure or None, a line of report)"""
    target = program.name.removeprefix("fuzz_")
    corpus = HERE / "corpus" / target
    artifacts = args.build / "fuzz" / target
    artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{target}-") as name:
        scratch = pathlib.Path(name)
        seeds, found = scratch / "seeds", scratch / "found"
        seeds.mkdir()
        found.mkdir()
        env = {**os.environ, "TMPDIR": name, "UBSAN_OPTIONS": "print_stacktrace=1"}
        if "ASAN_SYMBOLIZER_PATH" not in env and (symbolizer := shutil.which("llvm-symbolizer-19") or shutil.which("addr2line")):
            env["ASAN_SYMBOLIZER_PATH"] = symbolizer
        subprocess.run([program, "--write-seeds", seeds], check=True, env=env)
        command = [program, f"-max_total_time={args.seconds}", *limits(args), f"-artifact_prefix={artifacts}/", "-print_final_stats=1", str(found), str(seeds)]
        if corpus.is_dir():
            command.append(str(corpus))
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env, timeout=args.seconds + 120, check=False)
        stats = dict(line.removeprefix("stat::").split(":", 1) for line in done.stderr.splitlines() if line.startswith("stat::"))
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "Test unit written to" in line]
            where = lines[-1].split("Test unit written to ")[1] if lines else "no input was written"
            return target, f"{last_lines(done.stderr)}\n{target}: FAILED on {where}\n  again: {program} {where}", ""
        kept = f", {keep(args, program, corpus, found, scratch)} inputs kept" if args.keep else ""
        runs = stats.get("number_of_executed_units", "?").strip()
        return target, None, f"{target}: {runs} inputs, {stats.get('average_exec_per_sec', '?').strip()}/s, nothing found{kept}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--build", type=pathlib.Path, default=HERE.parents[1] / "build-fuzz")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--timeout", type=int, default=5)
    parser.add_argument("--memory", type=int, default=1024)
    parser.add_argument("--max-len", type=int, default=8192)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--keep-max", type=int, default=8, help="at most so many new files a target")
    args = parser.parse_args()
    programs = sorted(p for p in (args.build / "tests").glob("fuzz_*") if os.access(p, os.X_OK))
    if args.targets:
        programs = [p for p in programs if p.name.removeprefix("fuzz_") in args.targets]
    if not programs:
        sys.exit(f"no fuzz targets in {args.build}/tests: cmake --preset fuzz && cmake --build --preset fuzz")
    failures = 0
    with concurrent.futures.ThreadPoolExecutor(max_workers=args.jobs) as pool:
        for _, failure, report in pool.map(lambda p: fuzz(args, p), programs):
            print(failure or report, flush=True)
            failures += failure is not None
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
