#!/usr/bin/env python3
"""Checks what no compiler checks: the include floors, file length, formatting, forbidden words, and where clocks and threads may be.

  tools/tidy.py               checks the tree; one line for each violation; exit code 1 if there is one
  tools/tidy.py --format      runs clang-format on the C++ files first
  tools/tidy.py --self-test   proves that each rule fails where it should, on files made for it
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile

# A module may include modules of a lower floor, and of its own floor only itself. RESTRICTED says less where a module may see less.
FLOORS = {"base": 0, "text": 1, "net": 1, "wire": 1, "device": 1, "kv": 2, "model": 2, "transfer": 3, "engine": 4, "worker": 5,
          "gateway": 5, "api": 5, "app": 6}
RESTRICTED = {
    "gateway": {"base", "net", "wire"},
    "api": {"base", "text", "net", "wire"},
    # The engine knows that KV is handed over, not how: worker/ joins the two.
    "engine": {"base", "text", "net", "wire", "device", "kv", "model"},
}
TEXTKIT_USERS = {"text", "model"}
SIM_FORBIDS = {"app"}
SIM_USERS = {"app"}  # baton simulate

LINES_MAX = 800
COLUMNS_MAX = 140
# Texts under test, which a line break would change, and Python tests: one request and what is expected of it a line.
COLUMNS_EXEMPT = ("tools/golden_text.py", "tests/integration/", "tests/fuzz/run.py")
CODE = (".h", ".cc", ".inc", ".py", ".sh", ".cmake", ".rs", "CMakeLists.txt")
CPP = (".h", ".cc", ".inc")
DATA = ("tests/golden/", "tests/fuzz/corpus/", "src/device/testdata/")  # generated

WORDS = [
    (re.compile(r"\b(TO" r"DO|FIX" r"ME)\b"), "unfinished work: finish it or file an issue"),
    (re.compile(r"(?<![\w.])/(work|root|tmp/wt)/|\.\./shared\b"), "a path of one machine"),
    (re.compile(r"\b(files\.pythonhosted|pypi|test\.pypi)\.org\b|\b(index\.|static\.)?crates\.io\b|\b(deb|security|ftp)\.debian\.org\b|"
                r"\b(huggingface\.co|hf-mirror\.com|modelscope\.cn|registry\.npmjs\.org|proxy\.golang\.org)\b"), "a registry's host name"),
]
WORDS_EXEMPT = {
    "tools/tidy.py": None,
    "textkit/Cargo.lock": "a registry's host name",  # cargo writes it
    "src/app/pull.cc": "a registry's host name",     # the default of HF_ENDPOINT
}

# What makes a run differ from the one before, or block: (what, pattern, where it may be).
SHELLS = ("src/base/clock.", "src/base/spin.", "src/base/team.", "src/net/", "src/device/", "src/engine/device_executor", "src/app/",
          "bench/")
SHELL_ONLY = [
    ("a thread", re.compile(r"\bstd::(jthread|thread|async)\b|\bpthread_create\b"), SHELLS),
    ("a clock", re.compile(r"\b(steady|system|high_resolution)_clock::now\b|\b(clock_gettime|gettimeofday)\s*\("), SHELLS),
    ("a sleep", re.compile(r"\bsleep_(for|until)\b|\b(usleep|nanosleep)\s*\("), SHELLS),
    ("a socket", re.compile(r"\b(socket|socketpair)\s*\(\s*[AP]F_"), SHELLS),
    ("randomness", re.compile(r"\brandom_device\b|\bgetrandom\s*\(|\b(s?rand)\s*\("), SHELLS + ("src/base/rng.",)),
    # Their results differ between standard libraries, so a seed would not name one trace.
    ("a standard distribution", re.compile(r"\bstd::\w+_distribution\b"), ()),
    ("vector intrinsics", re.compile(r'#\s*include\s*<(immintrin|x86intrin|arm_neon|arm_sve)\.h>'), ("src/device/",)),
]
TRANSFER_FABRIC = re.compile(r"src/transfer/[^/]+/")

CLANG_FORMATS = ("clang-format-19", "clang-format")


class Tree:
    """The project's files, read once."""

    def __init__(self, root):
        self.root = root
        self.files = sorted(self._list())
        self.text = {}
        for path in self.files:
            try:
                with open(os.path.join(root, path), encoding="utf-8") as f:
                    self.text[path] = f.read()
            except (UnicodeDecodeError, FileNotFoundError):
                pass  # binary, or deleted and not yet committed

    def _list(self):
        try:
            command = ["git", "-C", self.root, "ls-files", "--cached", "--others", "--exclude-standard"]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            return [line for line in out.splitlines() if line]
        except (OSError, subprocess.CalledProcessError):  # an unpacked archive
            found = []
            for folder, folders, names in os.walk(self.root):
                folders[:] = [f for f in folders if not f.startswith((".", "build")) and f not in ("target", "__pycache__")]
                found += [os.path.relpath(os.path.join(folder, name), self.root) for name in names]
            return found

    def code(self, suffixes=CODE):
        for path in self.files:
            if path in self.text and path.endswith(suffixes) and not path.startswith(DATA):
                yield path, self.text[path]


def module_of(path):
    parts = path.split("/")
    return parts[1] if parts[0] == "src" and len(parts) > 2 else None


def allowed_modules(module):
    """What `module` may see besides itself."""
    return RESTRICTED.get(module, {m for m, floor in FLOORS.items() if floor < FLOORS[module]})


INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


def check_floors(tree):
    for path, text in tree.code(CPP):
        module = module_of(path)
        if module is None and not path.startswith("sim/"):
            continue
        if module is not None and module not in FLOORS:
            yield path, 1, f"src/{module} is not in the table of floors"
            continue
        for match in INCLUDE.finditer(text):
            target, line = match.group(1), text.count("\n", 0, match.start(1)) + 1
            if os.path.basename(target) == "textkit.h":
                if module not in TEXTKIT_USERS:
                    yield path, line, f"includes {target}: only {' and '.join(sorted(TEXTKIT_USERS))} may"
                continue
            other = target.split("/")[0]
            if module is None:  # sim
                if other in SIM_FORBIDS:
                    yield path, line, f"sim may not include {target}"
                continue
            if other == module or (other == "sim" and module in SIM_USERS):
                continue
            if other not in FLOORS:
                yield path, line, f'includes "{target}", which is of no module: includes start from src/'
            elif other not in allowed_modules(module):
                yield path, line, f"{module} (floor {FLOORS[module]}) may not include {target} (floor {FLOORS[other]})"


def check_cmake_floors(tree):
    for path, text in tree.code(("CMakeLists.txt",)):
        module = module_of(path)
        if module not in FLOORS:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            line = line.split("#")[0]
            for name in re.findall(r"\bbaton_([a-z]+)", line):
                if name in FLOORS and name != module and name not in allowed_modules(module):
                    yield path, number, f"{module} (floor {FLOORS[module]}) may not link {name} (floor {FLOORS[name]})"
            if re.search(r"\btextkit\b", line) and module not in TEXTKIT_USERS:
                yield path, number, f"links textkit: only {' and '.join(sorted(TEXTKIT_USERS))} may"
    for path, text in tree.code(("CMakeLists.txt",)):
        if path.startswith("sim/") and (match := re.search(r"^[^#\n]*\bbaton_app\b", text, re.M)):
            yield path, text.count("\n", 0, match.end()) + 1, "sim may not link app"


def check_length(tree):
    for path, text in tree.code():
        lines = sum(1 for line in text.splitlines() if line.strip())
        if lines > LINES_MAX:
            yield path, LINES_MAX, f"{lines} lines of code, more than {LINES_MAX}: split it"


def check_words(tree):
    for path, text in tree.text.items():
        exempt = WORDS_EXEMPT.get(path, "")
        if exempt is None:
            continue
        for pattern, why in WORDS:
            if why == exempt:
                continue
            for match in pattern.finditer(text):
                yield path, text.count("\n", 0, match.start()) + 1, f"`{match.group(0)}`: {why}"


def code_only(text):
    """`text` without comments and string contents, line by line as it was."""
    pattern = re.compile(r'R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.S)

    def blank(match):
        kept = match.group(0)
        if kept.startswith('"') and re.search(r"#\s*include\s*$", text[max(0, match.start() - 20):match.start()]):
            return kept
        return "\n" * kept.count("\n")

    return pattern.sub(blank, text)


def check_shells(tree):
    for path, text in tree.code(CPP):
        if not path.startswith(("src/", "sim/", "bench/")):
            continue
        code = code_only(text)
        for what, pattern, where in SHELL_ONLY:
            if path.startswith(where) or (where and what in ("a thread", "a socket", "a clock") and TRANSFER_FABRIC.match(path)):
                continue
            for match in pattern.finditer(code):
                yield path, code.count("\n", 0, match.start()) + 1, f"{what} (`{match.group(0).strip()}`) has no place here"


def check_headers(tree):
    for path, text in tree.code((".h",)):
        if "#pragma once" not in text and not re.search(r"^#ifndef (\w+)\n#define \1\b", text, re.M):
            yield path, 1, "a header without #pragma once"


def check_readmes(tree):
    folders = {"/".join(path.split("/")[:2]) for path in tree.files if path.startswith("src/") and path.count("/") > 1}
    folders |= {top for top in ("textkit", "sim") if any(p.startswith(top + "/") and p.endswith((".cc", ".rs")) for p in tree.files)}
    for folder in sorted(folders):
        if folder + "/README.md" not in tree.text:
            yield folder, 1, "a module without a README.md"


LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")


def check_links(tree):
    for path, text in tree.text.items():
        if not path.endswith(".md"):
            continue
        for match in LINK.finditer(text):
            target = match.group(1)
            if "://" in target or target.startswith("mailto:"):
                continue
            if not os.path.exists(os.path.normpath(os.path.join(tree.root, os.path.dirname(path), target))):
                yield path, text.count("\n", 0, match.start()) + 1, f"a link to {target}, which does not exist"


def check_columns(tree):
    for path, text in tree.code():
        if path.startswith(COLUMNS_EXEMPT):
            continue
        if path.endswith(CPP):
            text = re.sub(r'R"(\w*)\(.*?\)\1"', lambda m: "\n" * m.group(0).count("\n"), text, flags=re.S)
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) <= COLUMNS_MAX or "://" in line or line.lstrip().startswith("#include"):
                continue
            if line.rstrip() != line.strip() and len(line.split()) == 1:
                continue  # one word that nothing can break
            yield path, number, f"{len(line)} columns, more than {COLUMNS_MAX}"


def find_clang_format():
    for name in CLANG_FORMATS:
        if found := shutil.which(name):
            version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
            if re.search(r"version 19\.", version):  # other versions format differently
                return found
    return None


def check_format(tree):
    tool = find_clang_format()
    if tool is None:
        print("tidy: no clang-format 19 here: formatting is not checked", file=sys.stderr)
        return
    paths = [path for path, _ in tree.code(CPP)]

    def some(batch):
        command = [tool, "--dry-run", "-Werror", "--style=file", *batch]
        done = subprocess.run(command, cwd=tree.root, capture_output=True, text=True, check=False)
        first = {}
        for path, line in re.findall(r"^(\S+):(\d+):\d+: error", done.stderr, re.M):
            first.setdefault(path, int(line))
        if done.returncode != 0 and not first:
            first[batch[0]] = 1
        return first.items()

    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for found in pool.map(some, [paths[at:at + 16] for at in range(0, len(paths), 16)]):
            for path, line in found:
                yield path, line, "is not formatted: tools/tidy.py --format"


CHECKS = {
    "floors": check_floors,
    "cmake-floors": check_cmake_floors,
    "length": check_length,
    "words": check_words,
    "shells": check_shells,
    "headers": check_headers,
    "readmes": check_readmes,
    "links": check_links,
    "columns": check_columns,
    "format": check_format,
}


def format_tree(tree):
    tool = find_clang_format()
    if tool is None:
        sys.exit("tidy: clang-format 19 is not installed: apt-get install clang-format-19")
    paths = [path for path, _ in tree.code(CPP)]
    for at in range(0, len(paths), 50):
        subprocess.run([tool, "-i", "--style=file", *paths[at:at + 50]], cwd=tree.root, check=True)


def run(root, names):
    tree = Tree(root)
    count = 0
    for name in names:
        for path, line, message in CHECKS[name](tree):
            print(f"{path}:{line}: [{name}] {message}")
            count += 1
    print(f"tidy: {count} violation{'' if count == 1 else 's'} in {len(tree.files)} files")
    return 1 if count else 0


# --- self-test: files that must be complained about, and their good twins

GOOD = {
    "src/base/README.md": "see [the code](a.h)\n",
    "src/base/a.h": "#pragma once\n// a comment may say std::thread\nint a();\n",
    "src/base/clock.cc": "auto t = std::chrono::steady_clock::now();\n",
    "src/gateway/README.md": "x\n",
    "src/gateway/b.cc": '#include "gateway/b.h"\n\n#include "base/a.h"\n#include "net/http.h"\n\nconst char* s = "std::thread";\n',
    "src/gateway/CMakeLists.txt": "baton_module(gateway DEPS baton_base baton_net baton_wire)  # not baton_device\n",
    "src/transfer/README.md": "x\n",
    "src/transfer/shm/c.cc": "std::thread t;\n",
    "src/text/README.md": "x\n",
    "src/text/ffi.h": '#pragma once\n#include "textkit/textkit.h"\n',
    "sim/README.md": "x\n",
    "sim/d.cc": '#include "gateway/b.h"\n',
    "src/app/README.md": "x\n",
    "src/app/e.cc": '#include "sim/d.h"\n',
}
BAD = {
    "floors": [
        ("src/gateway/x.cc", '#include "device/device.h"\n'),
        ("src/gateway/x.cc", '#include "worker/worker.h"\n'),
        ("src/api/x.cc", '#include "gateway/core.h"\n'),
        ("src/net/x.cc", '#include "wire/generate.h"\n'),
        ("src/engine/x.cc", '#include "transfer/fabric.h"\n'),
        ("src/transfer/x.cc", '#include "engine/engine.h"\n'),
        ("src/base/x.cc", '#include "app/args.h"\n'),
        ("src/base/x.cc", '#include "x.h"\n'),
        ("src/new/x.cc", "int a;\n"),
        ("src/api/x.cc", '#include "textkit/textkit.h"\n'),
        ("sim/x.cc", '#include "app/args.h"\n'),
        ("src/gateway/x.cc", '#include "sim/run.h"\n'),
    ],
    "cmake-floors": [
        ("src/wire/CMakeLists.txt", "baton_module(wire DEPS baton_device)\n"),
        ("src/api/CMakeLists.txt", "baton_module(api DEPS textkit)\n"),
        ("sim/CMakeLists.txt", "target_link_libraries(x PUBLIC baton_app)\n"),
    ],
    "length": [("src/base/x.cc", "int a;\n" * (LINES_MAX + 1))],
    "words": [
        ("src/base/x.cc", "// TO" "DO: later\n"),
        ("docs/x.md", "FIX" "ME\n"),
        ("tools/x.py", 'open("/wo' 'rk/x")\n'),
        ("docs/x.md", "see ../sha" "red/DESIGN.md\n"),
        ("docs/x.md", "from pypi" ".org\n"),
    ],
    "shells": [
        ("src/gateway/x.cc", "std::thread t;\n"),
        ("src/transfer/x.cc", "std::thread t;\n"),
        ("src/kv/x.cc", "auto t = std::chrono::steady_clock::now();\n"),
        ("src/worker/x.cc", "int fd = socket(AF_INET, SOCK_STREAM, 0);\n"),
        ("src/engine/x.cc", "std::random_device d;\n"),
        ("src/engine/x_test.cc", "std::this_thread::sleep_for(1s);\n"),
        ("sim/x.cc", "std::uniform_int_distribution<int> d;\n"),
        ("src/engine/x.cc", "#include <immintrin.h>\n"),
    ],
    "headers": [("src/base/x.h", "int a();\n")],
    "readmes": [("src/wire/x.cc", "int a;\n")],
    "links": [("docs/x.md", "[nowhere](nowhere.md)\n")],
    "columns": [("tools/x.py", "a = 1 + " + "1 + " * 40 + "1\n")],
    "format": [("src/base/x.cc", "int  a ;\n")],
}


def self_test():
    failures = []

    def violations(check, extra):
        with tempfile.TemporaryDirectory() as root:
            files = {**GOOD, ".clang-format": "BasedOnStyle: Google\nColumnLimit: 140\n", **dict(extra)}
            for path, text in files.items():
                os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
                with open(os.path.join(root, path), "w", encoding="utf-8") as f:
                    f.write(text)
            return list(CHECKS[check](Tree(root)))

    cases = 0
    for check in CHECKS:
        if check == "format" and find_clang_format() is None:
            continue
        if found := violations(check, []):
            failures.append(f"{check}: complains about good files: {found}")
        for path, text in BAD[check]:
            cases += 1
            if not any(p == path or path.startswith(p + "/") for p, _, _ in violations(check, [(path, text)])):
                failures.append(f"{check}: does not see {path}: {text[:60]!r}")
    for failure in failures:
        print(failure)
    print(f"tidy self-test: {cases} bad files, {len(failures)} failures")
    return 1 if failures else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser.add_argument("--format", action="store_true", help="run clang-format on the C++ files first")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--only", choices=sorted(CHECKS), action="append", help="this rule alone")
    args = parser.parse_args()
    if args.self_test:
        return self_test()
    if args.format:
        format_tree(Tree(args.root))
    return run(args.root, args.only or list(CHECKS))


if __name__ == "__main__":
    sys.exit(main())
