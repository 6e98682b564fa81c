"""The speed of a simulation relative to real time, at 32 running sequences.

    python -m benchmarks.virtual_time [--repeats 5] [--json]

The embedded chat model's step times, prompts of 16-256 tokens and outputs of 16-128, always more waiting than run, so
that every step is a full one, and no observer. Processor time of this thread is counted, so that other work on the
machine does not matter.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator

from muai_lab.simulation.driver import VirtualDriver
from muai_lab.simulation.engine import VirtualEngine
from muai_lab.simulation.step_time import EMBEDDED_CHAT
from muai_lab.simulation.traffic import SimulatedRequest
from muai_lab.stack.limits import BatchLimits
from muai_lab.stack.scheduler import Scheduler

RUNNING = 32
SIMULATED_S = 600.0
GOAL = 200


def saturating() -> Iterator[SimulatedRequest]:
    """Somewhat more than this engine can serve."""
    draw = random.Random(0)
    for number in range(1 << 20):
        yield SimulatedRequest(number, number / 12.0, draw.randint(16, 256), draw.randint(16, 128))


def speed() -> float:
    """Simulated seconds for each second of processor time."""
    scheduler = Scheduler(BatchLimits(RUNNING), slots=RUNNING)
    driver = VirtualDriver(scheduler, VirtualEngine(RUNNING, EMBEDDED_CHAT), queue_capacity=100)
    driver.offer(saturating())
    began = time.thread_time()
    driver.run(SIMULATED_S)
    return driver.now / (time.thread_time() - began)


def main() -> None:
    """Measure, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ratios = [speed() for _ in range(options.repeats)]
    if options.json:
        sys.stdout.write(json.dumps({"simulated_per_real_second": ratios}) + "\n")
        return
    sys.stdout.write(
        f"{RUNNING} running sequences: {statistics.median(ratios):.0f} × real time "
        f"(from {min(ratios):.0f} to {max(ratios):.0f}; goal >= {GOAL})\n"
    )


if __name__ == "__main__":
    main()
