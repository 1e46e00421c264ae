"""The explorer: what its page decodes in a real browser is what JAX decodes."""

import base64
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from experiments.explorer import __main__ as explorer
from experiments.explorer.opened import Opened, opened
from experiments.explorer.page import page, program_of
from experiments.explorer.program import Unsupported, traced
from experiments.explorer.server import server
from tests.experiments.conftest import config_of
from vaejax import autoencoder, conditional, heads, networks

BROWSERS = "chromium", "google-chrome", "chromium-browser"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--virtual-time-budget=20000",
]
SAME = 1 / 255


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """`browser(html, fragment) -> the DOM` that a page from the disk becomes."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("left out: no chromium on this machine")

    def dom(html, fragment=""):
        folder = tmp_path_factory.mktemp("page")
        (folder / "page.html").write_text(html, encoding="utf-8")
        call = [found, *FLAGS, f"--user-data-dir={folder / 'user'}", "--dump-dom"]
        address = f"{(folder / 'page.html').as_uri()}#{fragment}"
        done = subprocess.run([*call, address], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return dom


def shown(model, params, shape, latent, classes=0):
    """What is opened of a run, of a model that was not trained."""
    rng = np.random.default_rng(0)
    conditions = np.eye(classes, dtype=np.float32) if classes else None
    codes = rng.normal(size=(30, latent)).astype(np.float32)
    labels, sizes = np.arange(30) % 3, np.arange(1.0, latent + 1)
    return Opened("a test", model, params, codes, labels, conditions, shape, sizes, "rate, nats")


def as_base64(array):
    return base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()


def images_of(dom, count):
    """The images in a page's element `decoded`."""
    text = re.search(r'<pre id="decoded"[^>]*>([^<]*)</pre>', dom)[1]
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(count, -1)


class Mixed(nn.Module):
    """A decoder of transposed convolutions, a residual block, attention and other activations."""

    @nn.compact
    def __call__(self, z, c=()):
        h = nn.gelu(nn.Dense(4 * 4 * 8)(networks.join(z, c))).reshape(4, 4, 8)
        h = nn.GroupNorm(num_groups=4)(h[None])[0]
        rows = nn.LayerNorm()(h.reshape(16, 8))
        weights = nn.softmax(nn.Dense(8)(rows) @ nn.Dense(8)(rows).T)
        h = nn.swish(h + (weights @ rows).reshape(4, 4, 8))
        h = nn.elu(nn.ConvTranspose(6, (4, 4), (2, 2))(h))
        return jnp.maximum(nn.ConvTranspose(5, (3, 2), (1, 1), padding="VALID")(h), -0.1)


DECODERS = {
    "mlp, one latent": (networks.MLP((12,)), (8, 8, 1), heads.Bernoulli, 1, 0),
    "conv, odd size": (
        networks.ConvDecoder((13, 11), (8, 6, 5)), (13, 11, 1), heads.Bernoulli, 4, 0,
    ),
    "colours, fifty latents": (
        networks.ConvDecoder((16, 16), (8, 6, 5)), (16, 16, 3), heads.DiscretizedLogistic, 50, 0,
    ),
    "mixed": (Mixed(), (9, 9, 3), heads.Normal, 3, 0),
    "classes": (networks.MLP((12,)), (6, 5, 1), heads.SharedNormal, 3, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_the_page_decodes_what_jax_decodes(browser, name):
    net, shape, head, latent, classes = DECODERS[name]
    encoder = nn.Sequential([networks.MLP((4,)), heads.Normal(latent)])
    model = autoencoder(encoder, nn.Sequential([net, head(shape)]))
    c = jnp.eye(classes)[0] if classes else ()
    params = model.init(jax.random.key(0), jnp.full(shape, 0.5), c)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # no bias is left at zero
    run = shown(model, params, shape, latent, classes)
    z = np.random.default_rng(1).normal(size=(50, latent)).astype(np.float32)
    rows = np.eye(classes, dtype=np.float32)[np.arange(50) % classes] if classes else ()
    want = jax.vmap(run.decode)(z, rows) if classes else jax.vmap(run.decode)(z)
    asked = np.concatenate([z, rows], axis=1) if classes else z
    dom = browser(page(run, program_of(run)), f"decode={as_base64(asked)}")
    got = images_of(dom, 50)
    assert np.ptp(want) > 0.01
    np.testing.assert_allclose(got, np.reshape(want, (50, -1)), atol=SAME, rtol=0)


def operations(x, y):
    """Each of the page's operations on numbers, side by side; x `[3, 4]`, y `[4]`."""
    row, y = y, jnp.broadcast_to(y, (3, 4))
    near = jnp.clip(x, -0.9, 0.9)
    image = x.reshape(1, 3, 4, 1)
    kernel = jnp.arange(12.0).reshape(2, 3, 1, 2) / 10
    conv = lax.conv_general_dilated(
        image, kernel, (2, 1), [(1, 0), (2, 1)], (2, 1), (1, 2), ("NHWC", "HWIO", "NCHW")
    )
    grouped = lax.conv_general_dilated(
        jnp.concatenate([image, image * 2], 3), kernel.reshape(2, 3, 1, 2), (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2,
    )  # fmt: skip
    parts = [
        *(f(x) for f in (jnp.exp, jnp.tanh, jnp.abs, jnp.sign, jnp.floor, jnp.ceil, jnp.round)),
        *(f(x) for f in (nn.sigmoid, nn.softplus, nn.relu, nn.gelu, nn.elu, jnp.sin, jnp.cos)),
        *(f(x) for f in (lax.erf, lax.erfc, jnp.expm1, jnp.exp2, jnp.square, jnp.cbrt)),
        jnp.isfinite(x),
        *(f(jnp.abs(x) + 0.1) for f in (jnp.log, jnp.log1p, jnp.sqrt, lax.rsqrt)),
        *(f(near) for f in (jnp.arcsin, jnp.arccos, jnp.arctan, jnp.arctanh, jnp.sinh, jnp.cosh)),
        lax.sub(x, row[None]), x - y, x / (y + 3), x**3, jnp.abs(x) ** y,
        jnp.fmod(x, y + 3), jnp.arctan2(x, y), jnp.stack([x, y], 1), jnp.tile(x, (2, 3)),
        *(f(x, y) for f in (jnp.minimum, jnp.maximum, jnp.less, jnp.greater_equal, jnp.not_equal)),
        jnp.where((x > 0) & ~(x > 1) | (x < -1), x, 2 * y), jnp.clip(x, -0.5, 0.5),
        *(f(x, axis=0) for f in (jnp.sum, jnp.max, jnp.min, jnp.prod, jnp.any, jnp.all, jnp.mean)),
        x.sum(axis=1), x.T, x[::-1, 1:], x[::2, ::3], jnp.cumsum(x, 1), jnp.concatenate([x, x], 1),
        jnp.pad(x, ((1, 2), (0, 1)), constant_values=3), lax.pad(x, 0.5, ((-1, 1, 1), (0, 0, 2))),
        jnp.repeat(x[:, None], 2, 1), jnp.arange(5.0) + x[0, 0], *jnp.split(x, 2, axis=1),
        lax.dynamic_slice(x, (jnp.int32(row[0]), 1), (2, 2)), jnp.einsum("ij,kj->ki", x, x),
        jnp.einsum("bi,bij->bj", x, jnp.stack([jnp.outer(row, row)] * 3)),
        lax.cumsum(x, 0, reverse=True),
        conv, grouped, jnp.floor_divide((3 * x).astype(int), 2), (3 * x).astype(int),
    ]  # fmt: skip
    return jnp.concatenate([jnp.ravel(part).astype(jnp.float32) for part in parts])


def test_each_operation_is_that_of_jax(browser):
    x = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
    x[0, :3] = 0.5, -2.5, 3.5
    y = np.array([1.2, 2.0, 0.3, 1.0], np.float32)
    both = np.concatenate([x.ravel(), y])
    flat = lambda v: operations(v[:12].reshape(3, 4), v[12:])  # noqa: E731
    want = np.asarray(flat(jnp.asarray(both)))
    run = shown(None, None, (1, len(want), 1), 16)
    dom = browser(page(run, traced(flat, both)), f"decode={as_base64(both)}")
    (got,) = images_of(dom, 1)
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda z: jnp.sort(z), "sort"),
        (lambda z: lax.while_loop(lambda v: v[0] < 1, lambda v: v + 1, z), "while"),
        (lambda z: z[jnp.argmax(z)] * jnp.ones(3), "argmax"),
        (lambda z: lax.cond(z[0] > 0, jnp.sin, jnp.cos, z), "cond"),
        (lambda z: jax.random.normal(jax.random.key(0), (3,)) + z, "random"),
    ],
)
def test_what_the_page_cannot_do_is_refused_by_name(function, name):
    with pytest.raises(Unsupported, match=f"got .*{name}.*--serve"):
        traced(function, np.zeros(3, np.float32))


def test_the_page_needs_nothing_else():
    model = autoencoder(heads.Normal(2), heads.FixedNormal((4, 4, 1), 1.0))
    run = shown(model, model.init(jax.random.key(0), jnp.zeros((4, 4, 1))), (4, 4, 1), 2)
    run = run._replace(title="</script><b>", labels=np.array(["<i>"] * 30))
    text = page(run, program_of(run))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "connect-src" not in policy and "<b>" not in text and "<i>" not in text
    assert not re.search(r"""(src|href)=|@import|url\(|https?://""", text)


def test_a_local_page_lets_python_decode():
    model = autoencoder(heads.Normal(2), heads.FixedNormal((4, 4, 1), 1.0))
    run = shown(model, model.init(jax.random.key(0), jnp.zeros((4, 4, 1))), (4, 4, 1), 2)
    with server(run, page(run, None), 0) as local:
        thread = threading.Thread(target=local.serve_forever)
        thread.start()
        home = f"http://127.0.0.1:{local.server_port}/"
        ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        try:
            with ask(home) as answer:
                assert b"connect-src 'self'" in answer.read()
            with ask(home + "decode", json.dumps([[0.5, -1.0]]).encode()) as answer:
                got = np.frombuffer(answer.read(), "<f4").reshape(4, 4, 1)
            with pytest.raises(urllib.error.HTTPError, match="400") as refused:
                ask(home + "decode", b"[[1.0]]")
            refused.value.close()
        finally:
            local.shutdown()
            thread.join()
    want = run.decode(jnp.array([0.5, -1.0]))
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_run_is_opened_and_written(tmp_path, capsys):
    from experiments import vae

    vae.main(config_of("vae", "digits", tmp_path / "run", hidden=(8,), latent=2, seeds=2, epochs=1))
    with pytest.raises(ValueError, match=r"2 runs at once.*--member \(0: seed=0; 1: seed=1\)"):
        opened(tmp_path / "run")
    first, second = (opened(tmp_path / "run", member=i) for i in (0, 1))
    assert first.shape == (8, 8, 1) and first.measure == "rate, nats" and first.codes.ndim == 2
    assert not np.array_equal(first.decode(np.zeros(2)), second.decode(np.zeros(2)))
    path = explorer.main([str(tmp_path / "run"), "--member", "1"])
    assert path == tmp_path / "run" / "explorer.html" and "vae digits" in path.read_text()
    assert "open it in a browser" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--part"):
        opened(tmp_path / "run", member=0, part="other")


def test_no_run_is_said_in_a_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"without config.json.*experiments\.vae --out"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        opened(tmp_path)


def test_data_that_are_no_images_are_refused():
    from experiments.explorer import opened as rooms

    with pytest.raises(ValueError, match=r"data \[9, 5\], expected images; .*plot\.latent"):
        rooms._image_shape("run", np.zeros((9, 5)))
    block = np.zeros((2, 3)), np.zeros((2, 3))
    with pytest.raises(ValueError, match="no class.*--condition class"):
        rooms._conditions("run", block)
    assert rooms._conditions("run", conditional.one_hot(np.array([0, 2]), 3)).shape == (3, 3)
    with pytest.raises(ValueError, match="without test images"):
        rooms._test_of(SimpleNamespace())
