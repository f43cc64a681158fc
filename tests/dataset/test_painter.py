from dataclasses import replace

import numpy as np
import pytest

from dataset.demo.painter import Array, Noise, Painter, View, rgb
from dataset.demo.scene import DAY

WHITE = rgb(1, 1, 1)


@pytest.fixture
def painter() -> Painter:
    """128 x 80 fine pixels; 80 of them make a metre at a depth of one."""
    view = View(focal=80, x=0, height=2, column=64, row=40)
    light = replace(DAY, tint=WHITE, haze_range=1e9)
    return Painter((128, 80), view, light, Noise(np.random.default_rng(0)))


def white(u: Array, v: Array, pixel: Array) -> Array:
    return np.ones((*u.shape, 3), np.float32)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_a_square_is_projected_by_the_pinhole_camera(painter: Painter) -> None:
    """2 m at a depth of 10 m are 16 fine pixels, from the horizon (y = 2) down to the ground."""
    painter.upright([(-1, 0), (1, 0), (1, 2), (-1, 2)], 10, "car", white)
    image, label = painter.develop(np.random.default_rng(0))
    assert image.shape == (40, 64, 4)
    assert label.shape == (40, 64)
    assert extent(label == 11) == (28, 20, 35, 27)
    assert image[20:28, 28:36, :3].min() > 230
    assert image[:, :, :3][label == 0].max() < 160


def test_image_and_label_have_the_same_edge(painter: Painter) -> None:
    painter.fill([(20.3, 9.1), (101.7, 30.2), (55.5, 70.9)], "pole", lambda *_: (WHITE, 0.0))
    image, label = painter.develop(np.random.default_rng(0))
    coverage = image[..., 0] / 255
    assert (label[coverage > 0.9] == 6).all()
    assert (label[coverage < 0.1] == 0).all()
    assert 0.02 < ((coverage > 0.1) & (coverage < 0.9)).mean() < 0.1


def test_a_wall_along_the_street_shrinks_with_depth(painter: Painter) -> None:
    """At x = 4 m, 3 m high, z = 8..16 m: columns 64 + 320 / z, rows 40 - 80 (y - 2) / z."""
    depths = []

    def record(u: Array, v: Array, pixel: Array) -> Array:
        depths.append((u, v, pixel))
        return white(u, v, pixel)

    painter.along(4, 8, 16, 3, "wall", record)
    wall = painter.label == 12
    assert extent(wall) == (84, 30, 104, 60)
    assert np.flatnonzero(wall[:, 84])[[0, -1]].tolist() == [35, 50]
    (u, v, pixel), *_ = depths
    assert (u.min(), u.max()) == pytest.approx((8, 16))
    assert np.allclose(pixel, u / 80)
    assert -0.2 < v.min() < v.max() < 3.2


def test_the_ground_is_where_the_rays_meet_it(painter: Painter) -> None:
    top, x, z = painter.ground()
    assert top == 41
    assert x.shape == z.shape == (39, 128)
    assert np.allclose(z[:, 0], 160 / np.arange(1, 40))
    assert np.allclose(x, (np.arange(128) - 64) * z / 80)


def test_a_shadow_darkens_the_ground_and_does_not_change_the_label(painter: Painter) -> None:
    painter.image[:] = 1
    painter.label[:] = 8
    painter.shadow(0, 8, 2, 1)
    assert (painter.label == 8).all()
    assert painter.image[60, 64].max() == pytest.approx(0.35)
    assert extent(painter.image[..., 0] < 1)[0] > 40
    assert (painter.image[:50] == 1).all()


def test_haze_hides_what_is_far(painter: Painter) -> None:
    painter.light = replace(painter.light, haze_range=50)
    black = rgb(0, 0, 0)
    assert np.allclose(painter.hazed(black, 0), 0)
    assert np.allclose(painter.hazed(black, 50), DAY.horizon * (1 - np.exp(-1)))
    assert np.allclose(painter.hazed(black, 1e6), DAY.horizon)


def test_polygons_are_clipped_to_the_canvas(painter: Painter) -> None:
    painter.upright([(30, 0), (31, 0), (31, 2)], 10, "car", white)
    painter.shadow(30, 10, 1, 1)
    assert not painter.label.any()
    assert not painter.image.any()


def test_noise_is_fixed_to_the_surface() -> None:
    noise = Noise(np.random.default_rng(0))
    u, v = rgb(-3.2, -0.01, 0.0, 0.5), rgb(1.0, 1.0, 1.0, -7.0)
    assert np.array_equal(noise(u, v, 20), noise(u + 0.001, v + 0.001, 20))
    assert np.array_equal(noise.of_cell(u, v), noise.of_cell(np.floor(u), np.floor(v)))
    assert noise.of_cell(u, v)[1] != noise.of_cell(u, v)[2]
    assert 0 <= noise.grain.min() < 0.3 < 0.7 < noise.grain.max() <= 1
