"""Sprites: what each factor moves, and that an image is drawn from the factors that it names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import sprites

SIZE = 48
UPRIGHT = np.array([0, 1, 0, 0.5, 0.5])
GRID = sprites.grid(scales=2, rotations=3, positions=4)


@pytest.fixture(scope="module")
def draw():
    """Many sprites in one compiled program: factors `[n, 5]` -> images `[n, size, size]`."""
    compiled = jax.jit(jax.vmap(partial(sprites.draw, size=SIZE)))

    def many(factors):
        padded = np.zeros((64, 5))
        padded[: len(factors)] = factors
        return np.asarray(compiled(jnp.asarray(padded, jnp.float32)), float)[: len(factors), ..., 0]

    return many


def factors_of(**changes):
    """Upright squares in the middle but for what is given: `[n, 5]`."""
    names = [np.atleast_1d(changes.get(name, UPRIGHT[j])) for j, name in enumerate(sprites.FACTORS)]
    return np.stack([one.ravel() for one in np.meshgrid(*names, indexing="ij")], axis=-1)


def centroid(images):
    """To the right and down, in pixels: `[n, 2]`."""
    place = np.arange(SIZE)
    total = images.sum(axis=(1, 2))
    return (
        np.stack([images.sum(axis=1) @ place, images.sum(axis=2) @ place], axis=1) / total[:, None]
    )


def test_the_area_is_that_of_the_scale_whatever_the_shape(draw):
    factors = factors_of(shape=range(3), scale=[0.5, 0.8, 1.0], rotation=[0.0, 0.4])
    area = draw(factors).mean(axis=(1, 2))
    np.testing.assert_allclose(area, 0.09 * factors[:, 1] ** 2, rtol=0.02)


def test_the_centre_of_area_is_where_x_and_y_say(draw):
    factors = factors_of(shape=range(3), rotation=[0.0, 2.0], x=[0.0, 0.3, 1.0], y=[0.2, 0.9])
    expected = (SIZE - 1) / 2 + SIZE / 2 * (factors[:, 3:] - 0.5)
    np.testing.assert_allclose(centroid(draw(factors)), expected, atol=0.05)


def test_no_sprite_is_cut_off_at_the_border(draw):
    angles = np.linspace(0, 2, 5)
    middle = draw(factors_of(shape=range(3), rotation=angles))
    shift = SIZE // 4  # in whole pixels: the image is the same, rolled, if none of it is lost
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        corner = draw(factors_of(shape=range(3), rotation=angles, x=x, y=y))
        rolled = np.roll(middle, ((2 * y - 1) * shift, (2 * x - 1) * shift), axis=(1, 2))
        np.testing.assert_allclose(corner, rolled, atol=1e-4)


def test_the_long_axis_of_the_ellipse_turns_from_x_towards_y(draw):
    angles = np.linspace(0.2, 2.8, 7)
    images = draw(factors_of(shape=1, rotation=angles))
    place = np.arange(SIZE) - (SIZE - 1) / 2
    xx, yy = images.sum(axis=1) @ place**2, images.sum(axis=2) @ place**2
    xy = np.einsum("nyx,x,y->n", images, place, place)
    found = 0.5 * np.arctan2(2 * xy, xx - yy) % np.pi
    np.testing.assert_allclose(found, angles, atol=0.01)
    # Axes 2 to 1: the second moments are as 4 to 1.
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    np.testing.assert_allclose((xx + yy + spread) / (xx + yy - spread), 4, rtol=0.05)


@pytest.mark.parametrize("shape, turns", [(0, 4), (1, 2), (2, 1)])
def test_a_turn_leaves_a_shape_as_symmetric_as_it_is(shape, turns, draw):
    angles = 2 * np.pi * np.arange(1, 9) / 8
    first, *others = draw(factors_of(shape=shape, rotation=[0, *angles]))
    far = np.array([np.abs(one - first).sum() for one in others]) / first.sum()
    same = np.isclose((angles * turns / (2 * np.pi)) % 1, 0)
    assert (far[same] < 1e-3).all() and (far[~same] > 0.1).all()


def test_a_quarter_turn_of_the_heart_is_a_quarter_turn_of_its_image(draw):
    upright, turned = draw(factors_of(shape=2, rotation=[0, np.pi / 2]))
    # x towards y is clockwise where y points down; rot90 turns the other way. The pixels' centres
    # are symmetric about the middle, so that both are the same to rounding.
    np.testing.assert_allclose(np.rot90(upright, -1), turned, atol=1e-4)
    assert upright[: SIZE // 2].any(axis=0).sum() > upright[-SIZE // 2 + 6 :].any(axis=0).sum()


def test_edges_are_smooth_and_a_small_move_moves_the_image(draw):
    images = draw(factors_of(shape=range(3), rotation=0.3, x=[0.5, 0.505]))
    assert images.min() == 0 and images.max() == 1
    assert ((images > 0.05) & (images < 0.95)).any(axis=(1, 2)).all()
    still, moved = images[::2], images[1::2]
    assert (np.abs(moved - still).sum(axis=(1, 2)) > 0.5).all()  # of a move of 0.12 pixels


def test_a_sample_is_drawn_from_the_grid_by_key_and_index_alone(key):
    few = sprites.sample(key, 40, grid=GRID, size=6, batch_size=7)
    many = sprites.sample(jax.random.clone(key), 3000, grid=GRID, size=6)
    assert few.x.shape == (40, 6, 6, 1) and few.y.dtype == jnp.int32 and few.c == ()
    np.testing.assert_array_equal(few.y, many.y[:40])
    # Drawn 7 and 1000 at a time, by two programs: the images agree to the rounding of float32.
    np.testing.assert_allclose(few.x, many.x[:40], atol=1e-5)
    index, sizes = np.asarray(many.y), [len(one) for one in GRID]
    for j, size in enumerate(sizes):
        counts = np.bincount(index[:, j], minlength=size)
        expected = 3000 / size
        assert ((counts - expected) ** 2 / expected).sum() < 20  # chi-squared, at most 3 degrees
    assert np.abs(np.corrcoef(index.T) - np.eye(5)).max() < 4 / 3000**0.5
    drawn = jax.jit(partial(sprites.draw, size=6))(sprites.values(many.y[5], GRID))
    np.testing.assert_allclose(many.x[5], drawn, atol=1e-6)


def test_every_sprite_of_the_grid_comes_once():
    whole = sprites.every(grid=GRID, size=6, batch_size=50)
    assert whole.x.shape == (3 * 2 * 3 * 4 * 4, 6, 6, 1)
    assert len(np.unique(whole.y, axis=0)) == len(whole.y)
    np.testing.assert_array_equal(whole.y[:5, 4], [0, 1, 2, 3, 0])
    np.testing.assert_allclose(
        sprites.values(whole.y[-1], GRID), [2, 1, 4 * np.pi / 3, 1, 1], rtol=1e-6
    )


def test_within_a_quarter_turn_no_two_images_are_the_same():
    grid = sprites.grid(scales=2, rotations=3, positions=2, turn=np.pi / 2)
    x = np.asarray(sprites.every(grid=grid, size=24).x)
    assert len(np.unique(np.round(x.reshape(len(x), -1), 3), axis=0)) == len(x)


def test_bad_input_is_refused(key):
    for call, message in (
        (lambda: sprites.draw(jnp.zeros((3, 5))), r"draw: factors: got shape \(3, 5\).*vmap"),
        (lambda: sprites.draw(jnp.zeros(5), size=0), "draw: expected size >= 1"),
        (lambda: sprites.draw([3, 1, 0, 0.5, 0.5]), "draw: shape: got 3.0, expected 0 to 2"),
        (lambda: sprites.draw([-1, 1, 0, 0.5, 0.5]), "draw: shape: got -1.0, expected 0 to 2"),
        (lambda: sprites.grid(shapes=4), "grid: shapes: got 4, expected 1 to 3"),
        (lambda: sprites.grid(positions=0), "grid: expected positions >= 1"),
        (lambda: sprites.sample(key, 0), "sample: expected n >= 1"),
        (lambda: sprites.sample(key, 3, grid=GRID[:4]), r"sample: grid: got arrays .*sprites.grid"),
        (lambda: sprites.every(grid=(*GRID[:4], [])), "every: grid: got arrays"),
        (lambda: sprites.values([0, 0, 0, 0]), r"values: index: got shape \(4,\)"),
        (lambda: sprites.values([3, 0, 0, 0, 0], GRID), "values: index: got places .*count from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    unseen = jax.jit(partial(sprites.draw, size=4))(jnp.array([3, 1, 0, 0.5, 0.5]))
    assert np.isnan(unseen).all()
    assert sprites.values(np.zeros((0, 5), int)).shape == (0, 5)
