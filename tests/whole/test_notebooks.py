"""Every notebook runs from top to bottom in a fresh kernel, and is stored as it ran."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LOCAL_PATH = re.compile(r"(?<![\w.])/(tmp|home|work|root|Users|usr|var|opt)\b|[A-Z]:\\\\")

# How many pictures a notebook shows, and what must hold of its variables at the end.
PICTURES = {"vae": 8, "bounds": 6, "from_ae_to_vae": 9, "zoo": 12}
CHECKS = {
    "vae": """
# The ELBO lies well above what independent Normals reach, no pixel being surer than s.
pixels = vj.over_examples(data.dequantize, jax.random.key(1), training.x)
independent = distributions.Normal(pixels.mean(0), jnp.maximum(pixels.std(0), s))
baseline = jax.vmap(independent.log_prob)(x_test).mean()
assert measured["elbo"].mean() > baseline + 10, (measured["elbo"].mean(), baseline)
# L_K rises with K; the gap is some nats.
assert bounds == sorted(bounds) and 0.5 < bounds[-1] - bounds[0] < 5, bounds
assert 1 <= ess.min() and ess.max() <= 1000 and np.median(ess) > 10, ess
assert abs(D_formula - terms.distortion(d)) < 1e-2 and abs(R_formula - terms.rate(d)) < 1e-4
# The second loss reaches the rate that it asks for, at a lower bound.
assert abs(measured_narrow["rate"].mean() - 4) < 0.5, measured_narrow["rate"].mean()
assert measured_narrow["elbo"].mean() < measured["elbo"].mean() - 1
# Reconstructions are closer to the images than the mean image is.
errors = jnp.mean((reconstruct_all(best, x_test) - x_test) ** 2)
assert errors < 0.4 * jnp.mean((pixels.mean(0)[None] - x_test) ** 2), errors
""",
    "bounds": """
# After an E step the bound is tight, after an M step it is not, and log p(x) never falls.
gaps = em_log_px - em_elbo
assert np.all(np.abs(gaps[1::2]) < 1e-3) and np.all(gaps[2::2] > 1e-3), gaps
assert np.all(np.diff(em_log_px) > -1e-4), em_log_px
# Thirty components beat independent pixels on the test images.
independent = distributions.Bernoulli(jnp.log(x.mean(0) + 1e-3) - jnp.log1p(1e-3 - x.mean(0)))
assert mixture_log_px.mean() > jax.vmap(independent.log_prob)(x_test).mean() + 3
# Both parts of a VAE's gap, and the ladder up to the exact value.
assert approximation.min() > 0 and amortisation.min() > 0.02
assert np.all(np.diff(ladder.log_px.mean(axis=1)) > 0)
assert -0.05 < truth.log_px.mean() - ladder.log_px[-1].mean() < 0.1
assert abs(elbo[-1] - ladder.log_px[0].mean()) < 0.2
# The encoder's signal drowns under IWAE (K = 2 to 128, by 8000 draws: 0.250 to 0.074), not under
# DReG (0.709 to 0.730); the decoder's rises. The notebook takes 1000 draws, whose ratio of two such
# numbers has a standard error of 0.07 (sqrt((1 + r^2 / 2) / 1000) / r for each): 1.03 - 3 * 0.07.
iwae, dreg, decoder = ratios.values()
assert iwae[-1] < 0.6 * iwae[0] and dreg[-1] > 0.8 * dreg[0], ratios
assert decoder[-1] > 3 * decoder[0], ratios
variance = {name: group["encoder"].variance for name, group in quality.items()}
assert variance["score function"] > 30 * variance["score function, leave-one-out"], variance
assert variance["pathwise"] < variance["score function"] / 30, variance
# The sandwich.
assert interval.converged and interval.upper is not None, interval
for bound in (interval.lower, interval.upper):
    assert abs(bound.log_px.mean() - truth.log_px[:20].mean()) < 0.15, bound
""",
    "from_ae_to_vae": """
# Between its codes the autoencoder decodes nonsense; the VAE's prior is covered by clouds.
assert distance["AE, box"] > 2 * distance["VAE, prior"], distance
assert distance["AE, Gaussian"] > 1.2 * distance["VAE, prior"], distance
assert distance["AE, halfway"] > distance["VAE, halfway"], distance
# Two clouds overlap and are decoded alike, then part and are decoded rightly.
assert overlap[0] > 0.9 and overlap[50] > 0.5 and overlap[-1] < 0.01, overlap[::50]
apart = jnp.sum((means[:, 0] - means[:, 1]) ** 2, axis=(1, 2, 3))
apart = apart / jnp.sum((pair[0] - pair[1]) ** 2)
assert apart[50] < 0.3 and 0.8 < apart[-1] < 1.2, apart[::50]
assert jnp.sum((means[-1] - pair) ** 2) < 1
assert same > 0.9 and close_by < 0.5 * far_apart, (same, close_by, far_apart)
# One answer and many.
assert jnp.all(by_ae == by_ae[:1]) and jnp.ptp(by_vae, axis=0).max() > 0.1
assert off < 0.1 and off_blob > 0.3, (off, off_blob)
# Nothing to find in independent inputs, and what PCA finds in correlated ones.
for (name, q), share in explained.items():
    assert abs(share - pca[name][q - 1]) < 0.015, (name, q, share)
assert np.allclose(pca["independent"], np.arange(1, 17) / 16)
assert ratio["digits"] < 0.7 and min(v for k, v in ratio.items() if k != "digits") > 3, ratio
""",
    "zoo": """
# Every family draws images, and all but the one without a likelihood have learned something.
assert len(samples) == 11 and all(x.shape[1:] == shape for x in samples.values())
assert all(0 <= x.min() and x.max() <= 1 and x.std(0).mean() > 0.02 for x in samples.values())
nats = {name: number for name, (number, _) in numbers.items()}
for name in set(nats) - {"data", "adversarial AE", "VQ-VAE"}:
    assert 15 < nats[name] < nats["data"] - 2, nats
assert 15 < nats["VQ-VAE"] < nats["data"] + 3, nats
# What the class says need not be said by z; pressure on the codes costs nats.
assert nats["class-conditional"] < nats["VAE"] - 1 < nats["beta-TCVAE"], nats
""",
}


def read(path):
    return nbformat.read(path, as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def noise(notebook):
    """Warnings, progress bars and errors among the outputs."""
    kinds = {output.output_type for output in outputs(notebook)}
    streams = [o.text for o in outputs(notebook) if o.get("name") == "stderr"]
    return streams + sorted(kinds - {"stream", "execute_result"})


def test_there_are_notebooks():
    assert NOTEBOOKS and {path.stem for path in NOTEBOOKS} == set(PICTURES) == set(CHECKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_as_it_ran(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 15
    assert path.stat().st_size < 400_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(cell.outputs for cell in code)
    assert pictures(notebook) >= PICTURES[path.stem]
    assert noise(notebook) == []
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.get("language_info", {"name": "python"}) == {"name": "python"}
    assert not any(cell.metadata for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_local_path_is_stored(path):
    notebook = read(path)
    for output in outputs(notebook):  # a picture in base64 may hold any letters
        output.get("data", {}).pop("image/png", None)
    found = LOCAL_PATH.search(json.dumps(notebook))
    assert found is None, found


def test_local_paths_are_recognised():
    for text in ('"/tmp/x"', "in /opt/main", "(/usr/a)", json.dumps("C:\\Users")):
        assert LOCAL_PATH.search(text), text
    assert not LOCAL_PATH.search("https://arxiv.org/abs/1804.03599 and 1/work, a/tmp")


@pytest.mark.parametrize("stem", sorted(PICTURES))
def test_runs_in_a_fresh_kernel(stem):
    path = ROOT / "notebooks" / f"{stem}.ipynb"
    stored, notebook = read(path), read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS[path.stem]))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])]),
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
        "JAX_DEBUG_KEY_REUSE": "1",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute(env=environment)  # raises CellExecutionError, with the traceback, at an error
    notebook.cells.pop()
    assert noise(notebook) == []
    assert [len(c.get("outputs", [])) > 0 for c in notebook.cells] == [
        len(c.get("outputs", [])) > 0 for c in stored.cells
    ]
    assert pictures(notebook) == pictures(stored)
