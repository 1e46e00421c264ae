"""Makes docs/digits.png, the picture of README: `python docs/picture.py`.

It runs the example of README, for more epochs, and draws test digits, their reconstructions, and
digits that the model drew.
"""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from vaejax import data, generate, plot, reconstruct

HERE = Path(__file__).parent


def main() -> None:
    """Train, draw, save."""
    example = re.findall(r"```python\n(.*?)```", (HERE.parent / "README.md").read_text(), re.S)[0]
    names: dict = {}
    exec(example.replace("epochs=20", "epochs=200"), names)
    model, params = names["model"], names["fitted"].params
    x = jax.vmap(partial(data.scale, None))(names["test"][:12])
    rebuilt = jax.vmap(partial(reconstruct, model, params))(x)
    keys = jax.random.split(jax.random.key(1), 12)
    drawn = jax.vmap(partial(generate, model, params))(keys).mean
    rows = jnp.stack([x, rebuilt, drawn]).reshape(-1, 8, 8, 1)
    figure = plot.images(
        rows, columns=12, labels=["test images", "reconstructed", "drawn by the model"]
    )
    figure.savefig(HERE / "digits.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
