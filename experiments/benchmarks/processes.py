"""Starts the processes of the variants and talks to them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Failed(RuntimeError):
    """A process that could not do its work, and why."""


def environment(*, accelerator: bool = False, cache: Path | None = None) -> dict[str, str]:
    """The environment of a process: this one's, with what the variants need.

    Args:
      accelerator: whether there is a GPU or TPU. Then JAX leaves memory to the other processes, and
        products of float32 are in TF32.
      cache: a folder where JAX keeps all that it compiles, as the experiments let it.
    """
    extra = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(":")
    }
    if accelerator:
        extra |= {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_DEFAULT_MATMUL_PRECISION": "tensorfloat32",
        }
    if cache is not None:
        extra |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    return os.environ | extra


class Worker:
    """The process of one variant, ready after its first burst.

    `facts` is what the variant said of itself. The constructor raises Failed, with the reason,
    where the variant cannot run.
    """

    def __init__(
        self, request: dict[str, Any], *, accelerator: bool = False, cache: Path | None = None
    ):
        began = perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmarks.worker"],
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(accelerator=accelerator, cache=cache),
            cwd=ROOT,
        )
        self.facts = self.ask(request)
        if "left_out" in self.facts:
            self.stop()
            raise Failed(self.facts["left_out"])
        self.facts["ready_seconds"] = perf_counter() - began

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises Failed where the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise Failed(f"the process ended with code {self.process.wait()}")
        return json.loads(answer)

    def burst(self) -> dict[str, float]:
        """Seconds of one burst, and its last loss."""
        return self.ask({})

    def processor_seconds(self) -> float:
        """What the process has used of all cores so far, 0 where the kernel does not say."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        if not stat.exists():
            return 0.0
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End the process: it stops when its input is closed, and is killed after 10 seconds."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def probe(library: str, *size: str) -> dict[str, Any]:
    """What `probe.py` finds."""
    return json.loads(_output("probe", library, *size))


def epoch(
    library: str, path: Path, batch: int, cache: Path | None
) -> tuple[float, dict[str, float]]:
    """Seconds of a whole process of `epoch.py`, and what it prints: its loss and memory."""
    began = perf_counter()
    output = _output("epoch", library, str(path), str(batch), cache=cache)
    return perf_counter() - began, json.loads(output)


def _output(module: str, *arguments: str, cache: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.benchmarks.{module}", *arguments],
        cwd=ROOT,
        env=environment(cache=cache),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["no message"])[-1])
    return done.stdout.strip().splitlines()[-1]
