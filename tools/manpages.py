#!/usr/bin/env python3
"""Writes the man pages of `baton` from what its commands say of themselves with --help, so that the two cannot differ.

  tools/manpages.py PROGRAM FOLDER     baton.1 and one baton-COMMAND.1 a command
"""

import os
import re
import subprocess
import sys

# Beyond --help: what a page adds. (section, lines)
EXAMPLES = {
    "serve": [
        ("One prefill worker, one decode worker, in the background:", "baton serve smollm2-135m --prefill 1 --decode 1 --detach"),
        ("A prefill worker of two ranks and two decode workers:", "baton serve smollm2-135m --prefill 1xTP2 --decode 2"),
        ("One engine that does both phases, on four cores:", "baton serve ./model.gguf --cores 0-3 --port 8001"),
    ],
    "chat": [("One question, without a dialogue:", "baton chat -q 'What is a hand-off?'")],
    "check": [("After a start, in a script:", "baton check --json")],
    "pull": [("From a mirror:", "HF_ENDPOINT=https://mirror.example baton pull ORG/NAME")],
    "bench-serve": [("200 pairs of lengths at 4 requests a second:",
                     "baton bench serve --dataset-name lengths --num-prompts 200 --request-rate 4"),
                    ("The first minute of a trace at half its speed, and how much of it kept its limits:",
                     "baton bench serve --dataset-name azure --trace-duration 60 --trace-scale 0.5 --goodput ttft:300 tpot:150")],
    "bench-compare": [("All arms on all cores, with a page of plots:", "baton bench compare smollm2-135m --output-dir results"),
                      ("Disaggregation against one group, under long prompts and two limits:",
                       "baton bench compare smollm2-135m --arms tpN,pd --dataset-name mix --goodput ttft:300 tpot:150")],
    "bench-engine": [("On one core:", "baton bench engine smollm2-135m --threads 1")],
    "simulate": [("A thousand seeds:", "baton simulate --seeds 1..1000"),
                 ("What a failure left behind, with every event:", "baton simulate --scenario failed-412.scenario --trace")],
    "worker": [("A prefill worker for a gateway of another terminal:", "baton worker smollm2-135m --name p0 --role prefill --port 9000")],
    "gateway": [("Over two workers:",
                 "baton gateway smollm2-135m --worker p0=prefill@127.0.0.1:9000 --worker d0=decode@127.0.0.1:9001")],
}
EXIT = "0: done. 1: it failed, and the message says what to do. 2: the command line is wrong."
ENVIRONMENT = [
    ("BATON_HOME", "models, records of running servers and logs (default: $XDG_CACHE_HOME/baton, else ~/.cache/baton)"),
    ("BATON_API_KEY, VLLM_API_KEY", "keys that clients must send, separated by commas (serve, gateway)"),
    ("OPENAI_API_KEY", "the key that the client commands send"),
    ("HF_ENDPOINT, HF_TOKEN", "where pull fetches ORG/NAME from, and as whom"),
    ("PIP_INDEX_URL", "where pull finds the package of a model that it knows by name"),
]


def roff(text):
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.M)


def help_of(program, words):
    return subprocess.run([program, *words, "--help"], capture_output=True, text=True, check=True).stdout


def head(name, version, summary):
    return [f'.TH "{name.upper()}" 1 "" "baton {version}" "Baton"', ".SH NAME", f"{roff(name)} \\- {roff(summary)}"]


def options(lines):
    """A block of CLI11's: a flag and its text on one line, or the text on lines of its own."""
    out, flag, text = [], None, []

    def flush():
        if flag:
            out.extend([".TP", f".B {roff(flag)}", roff(" ".join(text))])

    for line in lines:
        if re.match(r"^  \S", line):
            flush()
            parts = re.split(r"\s{2,}", line.strip(), maxsplit=1)
            if len(parts) == 1 and len(line) > 30:  # one blank where the flag reaches the column of the texts
                parts = [line[2:30].strip(), line[30:].strip()] if line[29] == " " else [line.strip()]
            flag, text = parts[0], parts[1:]
        elif line.strip():
            text.append(line.strip())
    flush()
    return out


def command_page(program, words, summary, version):
    """The page of one command, from the three parts of its help: a description, `Usage:`, and groups of options."""
    text = help_of(program, words)
    description, _, rest = text.partition("Usage: ")
    usage, _, groups = rest.partition("\n")
    name = "-".join(["baton", *words])
    page = head(name, version, summary)
    page += [".SH SYNOPSIS", f".B {roff(usage.strip())}", ".SH DESCRIPTION", roff(description.strip())]
    for group in re.split(r"\n(?=\S[^\n]*:\n)", "\n" + groups):
        lines = group.strip("\n").split("\n")
        if len(lines) > 1:
            page += [f".SH {roff(lines[0].rstrip(':').upper())}", *options(lines[1:])]
    if examples := EXAMPLES.get("-".join(words)):
        page.append(".SH EXAMPLES")
        for what, line in examples:
            page += [".TP", roff(what), f".B {roff(line)}"]
    page += [".SH EXIT STATUS", roff(EXIT), ".SH SEE ALSO", "baton(1)"]
    return name, page


def main_page(program, version, commands):
    usage = help_of(program, [])
    page = head("baton", version, usage.split("\n")[0].partition(": ")[2])
    page += [".SH SYNOPSIS", ".B baton", ".I command", "[flags]", ".SH COMMANDS"]
    for command, summary in commands:
        page += [".TP", f".B {roff('baton ' + command)}", roff(summary)]
    page += [".SH COMMON TO ALL COMMANDS",
             roff("Flags may be written with _ for -. A flag that is not known is refused, with the nearest one that is. Flags of vLLM "
                  "that change nothing here are accepted with a notice. --config FILE reads flags from a flat YAML file (key: value); "
                  "the command line wins."),
             ".SH ENVIRONMENT"]
    for name, what in ENVIRONMENT:
        page += [".TP", f".B {name}", roff(what)]
    page += [".SH FILES", ".TP", ".B $BATON_HOME/models", "what was pulled", ".TP",
             ".B $BATON_HOME/run/serve\\-PORT.json, serve\\-PORT.log",
             roff("the record of a running server, by which status and stop find it; the log of a detached one"),
             ".SH EXIT STATUS", roff(EXIT), ".SH SEE ALSO"]
    page.append(", ".join(roff(f"baton-{command.replace(' ', '-')}(1)") for command, _ in commands))
    return page


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    program, folder = os.path.abspath(sys.argv[1]), sys.argv[2]
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    commands = []
    for command, summary in re.findall(r"^  (\w+) +(.+)$", help_of(program, []), re.M):
        if command == "bench":
            commands += [("bench " + sub, text) for sub, text in re.findall(r"^  (\w+) +(.+)$", help_of(program, ["bench"]), re.M)]
        else:
            commands.append((command, summary))
    os.makedirs(folder, exist_ok=True)
    pages = [("baton", main_page(program, version, commands))]
    pages += [command_page(program, command.split(), summary, version) for command, summary in commands]
    for name, page in pages:
        with open(os.path.join(folder, name + ".1"), "w", encoding="utf-8") as f:
            f.write("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
