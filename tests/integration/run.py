#!/usr/bin/env python3
"""run.py MODULE[.CLASS[.test]]... [-v]: runs tests and cleans up before ctest's own time limit would kill it without (BATON_TEST_TIMEOUT, seconds).

Exit code 77 where everything was skipped, for ctest's SKIP_RETURN_CODE.
"""

import os
import pathlib
import signal
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


def on_alarm(*_):
    raise TimeoutError("the test's time limit")


def main():
    names = [a for a in sys.argv[1:] if not a.startswith("-")]
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    signal.signal(signal.SIGALRM, on_alarm)
    signal.signal(signal.SIGTERM, on_alarm)
    signal.alarm(max(1, int(os.environ.get("BATON_TEST_TIMEOUT", "600")) - 10))
    result = unittest.TextTestRunner(verbosity=2, failfast="-f" in sys.argv).run(suite)
    if not result.wasSuccessful():
        return 1
    ran = result.testsRun - sum(isinstance(test, unittest.TestCase) for test, _ in result.skipped)
    return 77 if result.skipped and ran == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
