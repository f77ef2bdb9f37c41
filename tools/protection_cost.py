#!/usr/bin/env python3
"""What the hand-off's protection costs: the share of a served request's CPU time that goes into digests, ledger and timeline.

Starts one prefill and one decode worker, sends the 200 built-in request lengths at a steady rate, samples the CPU time of gateway and
workers with call stacks (perf, cpu-clock), and sorts each sample by the parts below. Copying KV and digesting it are one pass on the
decode side: the sample counts as digest although a copy without one would cost nearly as much, so the figure is an upper bound. Page
faults are the price of memory that is touched for the first time, whoever touches it, and transport (sockets, threads that wake one
another) that of any hand-off: they are shown apart and not counted.

    tools/protection_cost.py [--model smollm2-135m] [--num-prompts 100] [--request-rate 3] [--first-token N] [--baton build/baton]

With --first-token N the requests are prompts of N random tokens with two tokens of answer: nearly all that is counted stands before the
first token, or beside it in the other process, and so bounds what protection adds to TTFT.

Needs perf. Prints one line a part: share of all CPU time, and milliseconds of CPU time a request, in all and by process. The first token
comes from the prefill worker and waits for nobody else.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

SAMPLES_PER_SECOND = 199
PAGE_FAULTS = "page faults"
TRANSPORT = "transport"
PARTS = [  # the first part whose pattern matches a frame has the sample
    (PAGE_FAULTS, re.compile(r"page_fault")),
    ("digest", re.compile(r"copy_and_digest|digest_runs|digest_ids|digest_update|XXH3|Digester")),
    (TRANSPORT, re.compile(r"EventLoop::post|net::Socket|ShmFabric|_Invoker.*baton::transfer")),
    ("timeline", re.compile(r"RequestRecord|RequestLog|Core::(note|\w+_served|record_handoff)|wire::(Served|HandoffTimes)")),
    ("ledger", re.compile(r"baton::transfer::|worker::Handoff|worker::PeerLinks|Retention")),
]


def part_of(stack):
    for frame in stack:
        for name, pattern in PARTS:
            if pattern.search(frame):
                return name
    return "rest"


def samples(script):
    """The process and the stack of each sample in perf script's text, innermost frame first."""
    pid, stack = None, []
    for line in script:
        words = line.split()
        if not words:
            if stack:
                yield pid, stack
            stack = []
        elif not line[0].isspace():
            pid = words[-1]
        else:
            stack.append(" ".join(words[1:]))
    if stack:
        yield pid, stack


def process_name(pid):
    """`gateway`, or the name of a worker."""
    words = open(f"/proc/{pid}/cmdline").read().split("\0")
    return words[words.index("--name") + 1] if "--name" in words else words[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--num-prompts", type=int, default=100)
    parser.add_argument("--request-rate", type=float, default=3)
    parser.add_argument("--first-token", type=int, metavar="N")
    parser.add_argument("--baton", default="build/baton")
    parser.add_argument("--port", type=int, default=8190)
    args = parser.parse_args()
    dataset = ["lengths"] if args.first_token is None else [
        "random", "--random-input-len", str(args.first_token), "--random-output-len", "2"]
    with tempfile.TemporaryDirectory() as home:
        serve = subprocess.Popen(
            [args.baton, "serve", args.model, "--prefill", "1", "--decode", "1", "--port", str(args.port)],
            stdout=open(os.path.join(home, "serve.log"), "w"), stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{args.port}/health/ready", timeout=1)
                    break
                except OSError:
                    if time.monotonic() > deadline or serve.poll() is not None:
                        sys.exit("error: the server did not become ready:\n" + open(os.path.join(home, "serve.log")).read())
                    time.sleep(0.1)
            children = subprocess.check_output(["pgrep", "-P", str(serve.pid)], text=True).split()
            names = {pid: process_name(pid) for pid in children}
            data = os.path.join(home, "perf.data")
            perf = subprocess.Popen(["perf", "record", "-q", "-e", "cpu-clock", "-F", str(SAMPLES_PER_SECOND), "--call-graph", "dwarf,4096",
                                     "-p", ",".join(children), "-o", data])
            result = os.path.join(home, "result.json")
            subprocess.check_call([args.baton, "bench", "serve", "--port", str(args.port), "--dataset-name", *dataset, "--num-prompts",
                                   str(args.num_prompts), "--request-rate", str(args.request_rate), "--save-result", "--result-filename",
                                   result], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            perf.send_signal(2)
            perf.wait()
            completed = json.load(open(result))["completed"]
        finally:
            serve.terminate()
            serve.wait()
        script = subprocess.Popen(["perf", "script", "-i", data, "--no-inline", "-F", "pid,ip,sym"], stdout=subprocess.PIPE, text=True)
        count = collections.Counter((part_of(stack), names.get(pid, "?")) for pid, stack in samples(script.stdout))
    total = sum(count.values())  # of parts and rest
    if total == 0 or completed == 0:
        sys.exit("error: no samples; does perf work here?")
    to_ms = 1e3 / SAMPLES_PER_SECOND / completed
    print(f"{completed} requests, {total} samples, {total * to_ms:.1f} ms of CPU time a request")
    parts = [name for name, _ in PARTS]
    counted = [name for name in parts if name not in (PAGE_FAULTS, TRANSPORT)]
    print(f"{'':11} {'':8}  " + "".join(f"{who:>12}" for who in ["all", *names.values()]) + "   ms a request")
    for title, of in [(name, [name]) for name in parts] + [("together", counted)]:
        by = [sum(count[part, who] for part in of) for who in names.values()]
        print(f"{title:11} {100 * sum(by) / total:6.2f} %  " + "".join(f"{n * to_ms:12.3f}" for n in [sum(by), *by]))


if __name__ == "__main__":
    main()
