"""Memory and imports, seen from a process of its own: streams hold little, imports are light."""

import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import re, sys
import jax, numpy as np
from vaejax import data
from vaejax.data import feed, sources

print({"tensorflow_datasets", "sklearn", "grain", "PIL"} & set(sys.modules))

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1e3

def by_blocks(source):
    before, most, total = anonymous(), 0, 0.0
    for batch in data.stream(source, key=key, batch_size=100, block=100, mixed=10):
        total += batch.x[0, 0]
        most = max(most, anonymous() - before)
    return most

def by_rows(source, steps):
    before, most = anonymous(), 0
    order = lambda steps: steps[:, None] * 100 % source.size + np.arange(100)
    with feed.feed(source, order, start=0, stop=steps) as batches:
        for batch in batches:
            batches.dispatched(batch)
            most = max(most, anonymous() - before)
    return most

key = jax.random.key(0)
by_blocks(np.zeros((1000, 256), np.float32))
print(by_blocks(sys.argv[1]))
by_rows(sources.open(sys.argv[1], "all[:1000]"), 50)
print(by_rows(sources.open(sys.argv[1], "all"), 400))
before, held = anonymous(), np.load(sys.argv[1])
print(anonymous() - before)
zeros = lambda steps: np.zeros((len(steps), 4), int)
left = feed.feed(sources.open(sys.argv[1]), zeros, start=0, stop=10**9)
next(left)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="left out: no /proc")
def test_streams_hold_a_few_rows_and_a_program_ends_though_its_feed_is_open(tmp_path):
    """40 MB are read by `stream` and by `feed`; held whole, as numpy's load does, they would show.

    Importing what streams loads none of the packages that it may need later.
    """
    np.save(tmp_path / "rows.npy", np.ones((40_000, 256), np.float32))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "rows.npy")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    light, *megabytes = out.stdout.splitlines()
    by_blocks, by_rows, held = map(float, megabytes)
    assert light == "set()"
    assert by_blocks < 15
    assert by_rows < 15
    assert held > 38
    assert "Error" not in out.stderr
