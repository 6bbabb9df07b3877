"""Pixel frames: where they lie, what their entries mean, and what a search makes of them."""

import numpy as np
import pytest

from engine.errors import RecipeError, RefusedError
from engine.prompts import make_prompt
from engine.prompts.pixels import PixelFrame
from engine.protocols import BoxSpec


def spec(side: int = 16, accepts: frozenset = frozenset({"pixels", "context"})) -> BoxSpec:
    return BoxSpec(
        uri="test:",
        gives=frozenset({"features"}),
        accepts=accepts,
        classes=("a", "b"),
        template="a {}",
        image_size=side,
    )


def frame(side: int = 16, **settings) -> PixelFrame:
    subspace = settings.pop("subspace", "full")
    return make_prompt("pixels", spec(side), subspace=subspace, options=settings)


def border(side: int, width: int) -> np.ndarray:
    mask = np.ones((side, side), bool)
    mask[width : side - width, width : side - width] = False
    return mask


def test_the_default_is_tvps_border():
    made = frame(224)
    assert made.width == 30 and made.space.dim == 69_840  # Zhang et al. 2024
    assert frame(32).width == 4 and frame(2).width == 1


@pytest.mark.parametrize("grid", [None, 2, 3, 5, 16])
@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("subspace", ["full", "random:7"])
def test_only_the_border_moves_and_all_of_it(grid, width, subspace):
    made = frame(width=width, grid=grid, subspace=subspace)
    thetas = np.random.default_rng(0).normal(size=(40, made.space.dim)).astype(np.float32)
    pixels = made.decode(thetas).pixels
    assert pixels.shape == (40, 3, 16, 16) and pixels.dtype == np.float32
    moved = np.abs(pixels).max((0, 1)) > 0
    np.testing.assert_array_equal(moved, border(16, width))


@pytest.mark.parametrize("settings", [{}, {"grid": 3}, {"grid": 6}, {"subspace": "random:60"}])
def test_one_unit_of_theta_is_a_quarter_of_the_range(settings):
    made = frame(**settings, width=3)
    thetas = np.random.default_rng(0).normal(size=(300, made.space.dim)).astype(np.float32)
    pixels = made.decode(thetas).pixels[:, :, border(16, 3)]
    assert np.sqrt((pixels.astype(np.float64) ** 2).mean()) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("settings", [{}, {"grid": 4}, {"subspace": "random:5"}, {"grid": 4, "subspace": "random:5"}])
def test_decoding_is_linear(settings):
    made = frame(**settings)
    one, two = np.random.default_rng(0).normal(size=(2, 1, made.space.dim)).astype(np.float32)
    both = made.decode(2 * one + two).pixels
    np.testing.assert_allclose(both, 2 * made.decode(one).pixels + made.decode(two).pixels, atol=1e-5)


def test_a_grid_of_every_pixel_is_the_full_frame():
    full, fine = frame(width=2), frame(width=2, grid=16)
    theta = np.random.default_rng(0).normal(size=(1, full.space.dim)).astype(np.float32)
    assert fine.space.dim == full.space.dim
    np.testing.assert_allclose(fine.decode(theta).pixels, full.decode(theta).pixels, atol=1e-6)


def test_a_coarse_grid_is_smooth_and_small_and_wastes_no_entry():
    made = frame(32, grid=5, width=4)
    assert made.space.dim == 3 * 24  # the middle knot of 5 x 5 does not reach a border 4 wide
    for entry in range(made.space.dim):
        assert made.decode(np.eye(made.space.dim, dtype=np.float32)[entry : entry + 1]).pixels.any()
    theta = np.random.default_rng(0).normal(size=(1, made.space.dim)).astype(np.float32)
    row = made.decode(theta).pixels[0, 0, 0]
    assert np.abs(np.diff(row, 2))[np.abs(np.diff(row, 2)) > 1e-5].size <= 6  # bends at the knots alone


def test_impossible_settings_are_refused():
    for settings, message in (
        ({"width": 0}, "width=0"),
        ({"width": 9}, "1 to 8 wide"),
        ({"grid": 1}, "2 to 16 knots"),
        ({"grid": 17}, "grid=17"),
        ({"subspace": "random:0"}, "random:0"),
        ({"widht": 3}, "did you mean 'width'"),
    ):
        with pytest.raises(RecipeError, match=message):
            frame(**settings)
    with pytest.raises(RecipeError, match="'pixels' has no setting 'tokens'"):
        make_prompt("pixels", spec(), tokens=4)
    with pytest.raises(RecipeError, match="'text' has no setting 'width'"):
        make_prompt("text", spec(), options={"width": 4, "grid": None})
    with pytest.raises(RefusedError, match="accepts context, not pixels"):
        make_prompt("pixels", spec(accepts=frozenset({"context"})))
