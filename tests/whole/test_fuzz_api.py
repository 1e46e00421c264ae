"""Random wrong uses of the public functions: each is refused in the library's own words, or works.

Each call is a small right one in which one or two arguments were exchanged for what people put
there. A call is *clear* where the library's own error says where, what it got and what it expected;
*raw* where JAX, numpy, flax or Python speaks; *silent* where what cannot be meant was taken;
*crashed* where the process died; *hung* where it took five minutes. What was refused though it is
the right value in another form is marked so. By hand, with all rows in a file:

    python -m tests.whole.test_fuzz_api 2000 found.jsonl
"""

import collections
import json
import pathlib
import re
import signal
import subprocess
import sys
import traceback
import warnings

import jax
import numpy as np
import pytest

SEED, IN_CI, MOST_RAW = 18, 300, 0.05
LIBRARY = str(pathlib.Path(__file__).resolve().parents[2] / "vaejax")
# Words that only JAX, numpy, flax and Python use.
FOREIGN = re.compile(
    r"Tracer|ScopeParam|flax\.linen|flax\.errors|__(?!pycache)\w+__|numpy\.|ufunc|(?<!np.)concatenate|broadcast"
    r"|abstract array|has no attribute|not subscriptable|not iterable|unsupported operand"
    r"|positional argument|object at 0x|NoneType|chex|setting an array element|dot_general"
)
WHERE = re.compile(r"^[A-Za-z_][\w .:,/<>\[\]'\"()=-]*?: ")


def mutated(number):
    """The call of a number, its arguments, what was exchanged, and whether that is surely wrong.

    That is True, False, or "right" where all that was exchanged is the right value in another form.
    """
    from tests.whole.calls import CALLS
    from tests.whole.mistakes import KINDS, Right
    from tests.whole.more_calls import MORE_CALLS

    random = np.random.default_rng((SEED, number))
    calls = CALLS + MORE_CALLS
    call = calls[random.integers(len(calls))]
    arguments = {name: value for name, (_, value) in call.arguments.items()}
    names = random.permutation(list(arguments))
    if len(names) > 1 and random.random() < 0.08:
        one, other = names[:2]
        arguments[one], arguments[other] = arguments[other], arguments[one]
        kinds = {call.arguments[name][0] for name in (one, other)}
        same = len(kinds) == 1 or kinds < {"shape", "some widths", "count"}
        return call, arguments, [f"{one} and {other} swapped"], not same
    labels, sure = [], "right"
    for name in names[: 1 + (random.random() < 0.2)]:
        kind = KINDS[call.arguments[name][0]]
        wrong = kind[random.integers(len(kind))]
        labels.append(f"{name}: {wrong.label}")
        if isinstance(wrong, Right):
            arguments[name] = wrong.form(arguments[name])
        else:
            arguments[name], sure = wrong.value, wrong.sure or sure is True
    return call, arguments, labels, sure


def is_clear(error):
    """Whether an error is the library's own, in its form and its words."""
    frames = traceback.extract_tb(error.__traceback__)
    own = frames[-1].filename.startswith(LIBRARY) and "raise" in (frames[-1].line or "")
    text = str(error)
    return own and bool(WHERE.match(text)) and not FOREIGN.search(text)


class Hung(BaseException):
    """A call took five minutes."""


def stop(*_):
    raise Hung


def tried(number):
    """What came of one call, as a row."""
    import matplotlib.pyplot as plt

    call, arguments, labels, sure = mutated(number)
    row = {"number": number, "call": call.name, "exchanged": labels, "sure": sure}
    arguments = {
        name: jax.random.clone(value)
        if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
        else value
        for name, value in arguments.items()
    }
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            jax.block_until_ready(jax.tree.leaves(call.function(**arguments)))
        warned = any(issubclass(one.category, UserWarning) for one in said)
        row["kind"] = "silent" if sure is True and not warned else "ran"
    except Hung:
        row["kind"] = "hung"
    except BaseException as error:
        row["kind"] = "clear" if is_clear(error) else "raw"
        row["error"] = f"{type(error).__name__}: {error}"[:400]
        last = traceback.extract_tb(error.__traceback__)[-1]
        row["at"] = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        if sure == "right":
            row["kind"] += " though right"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        plt.close("all")
    return row


@pytest.fixture(scope="module")
def rows():
    return [tried(number) for number in range(IN_CI)]


def test_wrong_uses_are_refused_in_the_librarys_words(rows):
    raw = [row for row in rows if row["kind"] == "raw"]
    assert len(raw) <= MOST_RAW * len(rows), json.dumps(raw, indent=1)


def test_right_uses_are_taken(rows):
    assert [row for row in rows if "right" in row["kind"]] == []


def test_no_wrong_use_hangs(rows):
    assert [row for row in rows if row["kind"] == "hung"] == []


def by_hand(count, path):
    """All calls, in processes of their own, so that one that dies is counted."""
    found, first = [], 0
    with path.open("w") as file:
        while first < count:
            command = [
                sys.executable,
                "-m",
                "tests.whole.test_fuzz_api",
                "rows",
                str(first),
                str(count),
            ]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            for line in child.stdout:
                found.append(json.loads(line))
                file.write(line)
                first = found[-1]["number"] + 1
            if child.wait() and first < count:
                found.append({"number": first, "kind": "crashed"})
                file.write(json.dumps(found[-1]) + "\n")
                first += 1
    print(dict(collections.Counter(row["kind"] for row in found)))


if __name__ == "__main__":
    if sys.argv[1] == "rows":
        jax.config.update("jax_numpy_rank_promotion", "raise")
        for number in range(int(sys.argv[2]), int(sys.argv[3])):
            print(json.dumps(tried(number)), flush=True)
            if number % 300 == 299:
                jax.clear_caches()
    else:
        by_hand(int(sys.argv[1]), pathlib.Path(sys.argv[2]))
