"""Damaged files of every kind: each is refused in one line that names it, or is made again.

More of them: VAEJAX_FUZZ=5000 python -m pytest -m whole -s tests/whole/test_fuzz_files.py
"""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

COUNT = int(os.environ.get("VAEJAX_FUZZ", "340"))
SECONDS = int(os.environ.get("VAEJAX_FUZZ_SECONDS", "20"))
SCRIPT = Path(__file__).with_name("damaged_files.py")

# Nothing in these formats tells that a bit of their pixels, numbers or letters was another. (`open`
# maps an .npz without reading it whole; of a set of TFDS it is the description of its features.)
WITHOUT_CHECKSUM = {
    ("npy", "load"),
    ("npy", "open"),
    ("npy", "stream"),
    ("npz", "open"),
    ("arrays", "open"),
    ("archives", "open"),
    ("lossy", "open"),
    ("plain", "open"),
    ("text", "read"),
    ("tfds", "load"),
    ("tfds", "open"),
}
WITH_A_LIST = {"cache", "weights"}  # kinds that say which files there are, and of which content


def run(seed, count, folder):
    """The outcomes of so many damaged files, in processes that are started again where one ends."""
    log, found, first = folder / "log", {}, 0
    roots = str(SCRIPT.parents[2])
    environment = {**os.environ, "PYTHONPATH": roots, "PYTHONWARNINGS": "ignore"}
    while first < count:
        numbers = [str(number) for number in (seed, first, count - first)]
        command = [sys.executable, str(SCRIPT), *numbers, str(log), str(SECONDS), str(folder)]
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        while True:
            size = log.stat().st_size if log.exists() else 0
            try:
                error = process.communicate(timeout=3 * SECONDS)[1]
                break
            except subprocess.TimeoutExpired:
                if log.exists() and log.stat().st_size > size:
                    continue
                process.kill()
                error = process.communicate()[1]
                break
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        assert rows, error.decode()[-3000:]
        found |= {row["number"]: row for row in rows if "number" in row}
        # A process ends by a signal, or not at all: an error of Python's is the fuzzer's own.
        assert process.returncode <= 0, error.decode()[-3000:]
        last = rows[-1].get("begins")
        if last is not None:
            outcome = "hung" if process.returncode == -9 else "crashed"
            said = error.decode(errors="replace")[-300:]
            found[last] = {"number": last, "outcome": outcome, "said": said}
            log.write_text("".join(json.dumps(row) + "\n" for row in found.values()))
        first = max(found) + 1
    return [found[number] for number in sorted(found)]


def test_damaged_files_are_refused_by_name(tmp_path):
    rows = run(11, COUNT, tmp_path)
    counts = collections.Counter(row["outcome"] for row in rows)
    print(dict(counts))
    shown = {o: [row for row in rows if row["outcome"] == o] for o in counts}
    for outcome in ("crashed", "hung", "raw", "silent"):
        for row in shown.get(outcome, []):
            print(json.dumps(row))
    assert not counts["crashed"] and not counts["hung"]
    assert counts["raw"] <= 0.05 * len(rows)
    for row in shown.get("silent", []):
        if row["damage"] in ("gone", "swap"):  # another valid file, or one fewer
            assert row["kind"] not in WITH_A_LIST, row
        else:
            assert (row["kind"], row["way"]) in WITHOUT_CHECKSUM, row
    assert counts["clear"] > len(rows) / 2
