"""python -m tests.drills.busy N -- COMMAND ...

Run a command beside N processes that do nothing but compute, and leave with its exit code. Tests must pass beside any number:

    for n in 0 1 4; do python -m tests.drills.busy $n -- make test cluster-test || break; done
"""

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

# They end with this process, also if it is killed: then nobody writes to their standard input any more.
LOOP = "import os, threading\nthreading.Thread(target=lambda: (os.read(0, 1), os._exit(0))).start()\nwhile True: pass"


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many processors busy inside the block."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP], stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills.busy")
    parser.add_argument("count", type=int, metavar="N", help="how many processes compute meanwhile")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with busy(options.count):
        return subprocess.run(options.command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
