#!/usr/bin/env python3
"""Shows that planted bugs are in the mutants' program and nowhere else.

  absent.py TABLE PROGRAM FILE...    TABLE: table.h; PROGRAM: the one with mutants; FILE: libraries and programs without any
"""

import re
import sys


def main():
    table, program, *files = sys.argv[1:]
    with open(table, encoding="utf-8") as f:
        names = re.findall(r"^\s+M\((\w+),", f.read(), re.M)
    marks = [b"5baton7mutants"] + [name.encode() for name in names]  # the mangled namespace; the names

    def found(path):
        with open(path, "rb") as f:
            content = f.read()
        return [mark.decode() for mark in marks if mark in content]

    if len(names) < 24:
        sys.exit(f"only {len(names)} mutants in {table}")
    missing = set(mark.decode() for mark in marks) - set(found(program))
    if missing:  # then the search proves nothing
        sys.exit(f"{program} lacks {', '.join(sorted(missing))}")
    bad = [f"{path} holds {', '.join(marks_there)}" for path in files if (marks_there := found(path))]
    if bad:
        sys.exit("\n".join(bad))
    print(f"{len(names)} mutants in {program}, none in {len(files)} files")


if __name__ == "__main__":
    main()
