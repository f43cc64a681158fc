"""A perspective painter that draws image and label together, from far to near.

World coordinates are metres: x to the right of the road's middle, y up from the ground, z ahead of
the camera. Surfaces are polygons, coloured by a material: a function of the position on the
surface, so that bricks, slats and windows recede with the street.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dataset.readers.streethazards import STREETHAZARDS

SUPERSAMPLING = 2
RAW = {name: index + 1 for index, name in enumerate(STREETHAZARDS.class_names)}
RAW |= {"anomaly": STREETHAZARDS.anomaly_index + 1, "nothing": 0}

Array = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]
Point = tuple[float, float]
# Takes the positions (u, v) of N pixels on a surface and the pixels' size there, each (N,) in
# metres: u along the surface, v up (or ahead, on the ground). Returns RGB in 0..1, (N, 3).
Material = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class View:
    """A pinhole camera that looks along the street, in pixels of the supersampled canvas."""

    focal: float
    x: float
    height: float
    column: float
    row: float

    def project(self, x: float, y: float, z: float) -> Point:
        scale = self.focal / z
        return self.column + (x - self.x) * scale, self.row - (y - self.height) * scale


@dataclass(frozen=True)
class Light:
    """Colours at a time of day; the sun is on the side `sunny_side` (-1 left, 1 right)."""

    zenith: Array
    horizon: Array
    cloud: Array
    tint: Array
    haze_range: float
    shadow: float
    lit_windows: float
    sunny_side: int = 1

    def on_plane(self, side: int) -> float:
        """Brightness of a wall on this side of the street, facing the other side."""
        return 1 - self.shadow * (side == self.sunny_side)


def rgb(*values: float) -> Array:
    return np.array(values, np.float32)


def mix(first: Array, second: Array, amount: NDArray[np.generic] | float) -> Array:
    """Linear blend; an amount per pixel is broadcast over the colour channels."""
    weight = np.asarray(amount, np.float32)[..., None]
    return first + (second - first) * weight


def jitter(rng: np.random.Generator, colours: Sequence[Array], spread: float = 0.03) -> Array:
    """One of the colours, with small random changes of brightness and hue."""
    off = rng.uniform(-spread, spread) + rng.uniform(-spread, spread, 3) / 3
    chosen = colours[int(rng.integers(len(colours)))]
    return np.clip(chosen + off, 0.02, 1).astype(np.float32)


def fractal(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> Array:
    """Smooth noise in 0..1: five octaves of random grids, the coarsest of `cells`."""
    total = np.zeros(shape, np.float32)
    for octave in range(5):
        grid = rng.random((cells[0] << octave, cells[1] << octave), np.float32)
        smooth = Image.fromarray(grid).resize(shape[::-1], Image.Resampling.BICUBIC)
        total += np.asarray(smooth) / 2**octave
    return (total - total.min()) / (total.max() - total.min())


class Noise:
    """Noise that is fixed to surfaces."""

    SIZE = 256

    def __init__(self, rng: np.random.Generator) -> None:
        self.cells = rng.random(self.SIZE**2, np.float32)
        smooth = fractal(rng, (self.SIZE, self.SIZE), (12, 12))
        self.grain = 0.45 * self.cells + 0.55 * smooth.ravel()

    def index(self, u: Array, v: Array) -> NDArray[np.int32]:
        # The offset makes truncation a floor; a power of two keeps it out of the remainder.
        columns, rows = ((axis + 2**16).astype(np.int32) & (self.SIZE - 1) for axis in (u, v))
        return rows * self.SIZE + columns

    def __call__(self, u: Array, v: Array, texels_per_metre: float) -> Array:
        return self.grain[self.index(u * texels_per_metre, v * texels_per_metre)]

    def of_cell(self, u: Array, v: Array) -> Array:
        """An independent value in 0..1 per cell of side 1."""
        return self.cells[self.index(np.floor(u) * 31, np.floor(v) * 57)]


class Painter:
    """Paints image and label; later things cover earlier ones."""

    def __init__(self, size: tuple[int, int], view: View, light: Light, noise: Noise) -> None:
        """`size`: columns and rows of the supersampled canvas."""
        self.columns, self.rows = size
        self.view, self.light, self.noise = view, light, noise
        self.image = np.zeros((self.rows, self.columns, 3), np.float32)
        self.label = np.zeros((self.rows, self.columns), np.uint8)

    def bounds(self, outline: NDArray[np.float64]) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a pixel polygon, clipped to the canvas."""
        left, top = np.floor(outline.min(0)).astype(int).tolist()
        right, bottom = np.ceil(outline.max(0)).astype(int).tolist()
        return max(left, 0), max(top, 0), min(right + 1, self.columns), min(bottom + 1, self.rows)

    def hazed(self, colours: Array, depth: Array | float) -> Array:
        amount = 1 - np.exp(-np.asarray(depth, np.float32) / self.light.haze_range)
        return mix(colours, self.light.horizon, amount)

    def fill(
        self,
        outline: Sequence[Point],
        name: str,
        shader: Callable[[Array, Array], tuple[Array, Array | float]],
    ) -> None:
        """Fill a pixel polygon; `shader(columns, rows)` returns the N pixels' RGB and depth."""
        corners = np.asarray(outline)
        left, top, right, bottom = self.bounds(corners)
        if left >= right or top >= bottom:
            return
        stencil = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(stencil).polygon(list(map(tuple, corners - (left, top))), fill=1)
        inside = np.asarray(stencil) > 0
        rows, columns = (axis.astype(np.float32) for axis in np.nonzero(inside))
        box = np.s_[top:bottom, left:right]
        self.image[box][inside] = self.hazed(*shader(columns + left, rows + top))
        self.label[box][inside] = RAW[name]

    def flat(self, corners: Sequence[tuple[float, float, float]], name: str, colour: Array) -> None:
        """A polygon of one colour, anywhere in space."""
        depth = min(z for _, _, z in corners)
        self.fill([self.view.project(*c) for c in corners], name, lambda *_: (colour, depth))

    def upright(self, outline: Sequence[Point], z: float, name: str, material: Material) -> None:
        """A polygon of (x, y) metres at depth `z` that faces the camera."""
        view, pixel = self.view, z / self.view.focal

        def shader(columns: Array, rows: Array) -> tuple[Array, float]:
            x = view.x + (columns - view.column) * pixel
            y = view.height - (rows - view.row) * pixel
            return material(x, y, np.full_like(x, pixel)), z

        self.fill([view.project(x, y, z) for x, y in outline], name, shader)

    def along(
        self, x: float, near: float, far: float, top: float, name: str, material: Material
    ) -> None:
        """A wall that runs with the street at `x` from depth `near` to `far`, u being z."""
        view, side = self.view, 1 if x > self.view.x else -1
        brightness = self.light.on_plane(side)

        def shader(columns: Array, rows: Array) -> tuple[Array, Array]:
            offset = side * np.maximum(side * (columns - view.column), 0.5)
            z = np.clip(view.focal * (x - view.x) / offset, near, far)
            y = view.height - (rows - view.row) * z / view.focal
            return material(z, y, z / view.focal) * brightness, z

        ends = [(near, 0.0), (far, 0.0), (far, top), (near, top)]
        self.fill([view.project(x, y, z) for z, y in ends], name, shader)

    def ground(self) -> tuple[int, Array, Array]:
        """The first row below the horizon, and x and z of the ground seen from there on."""
        view, top = self.view, int(self.view.row) + 1
        rows = np.arange(top, self.rows, dtype=np.float32)[:, None]
        z = view.focal * view.height / np.maximum(rows - view.row, 0.5)
        across = np.arange(self.columns, dtype=np.float32) - view.column
        x = view.x + across * z / view.focal
        return top, x, np.ascontiguousarray(np.broadcast_to(z, x.shape))

    def shadow(self, x: float, z: float, half_width: float, half_length: float) -> None:
        """A soft contact shadow on the ground; does not change the label."""
        view, near, far = self.view, max(z - half_length, 0.5), z + half_length
        ends = ((-1, near), (1, near), (1, far), (-1, far))
        outline = np.array([view.project(x + side * half_width, 0, end) for side, end in ends])
        left, top, right, bottom = self.bounds(outline)
        if left >= right or top >= bottom:
            return
        rows = np.arange(top, bottom, dtype=np.float32)[:, None]
        depth = view.focal * view.height / np.maximum(rows - view.row, 0.5)
        across = view.x + (np.arange(left, right) - view.column) * depth / view.focal - x
        radius = np.hypot(across / half_width, (depth - z) / half_length)
        darkness = np.clip(1.1 * (1 - radius), 0, 0.65).astype(np.float32)
        self.image[top:bottom, left:right] *= 1 - darkness[..., None]

    def develop(self, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        """RGBA image (H, W, 4), averaged, and raw label (H, W), sampled, at the final size."""
        step = SUPERSAMPLING
        picks = [self.image[i::step, j::step] for i, j in product(range(step), repeat=2)]
        image = np.mean(picks, axis=0) * self.light.tint
        image += 0.012 * rng.standard_normal(image.shape, np.float32)
        pixels = np.full((*image.shape[:2], 4), 255, np.uint8)
        pixels[..., :3] = np.round(np.clip(image, 0, 1) * 255)
        return pixels, np.ascontiguousarray(self.label[step // 2 :: step, step // 2 :: step])


def rectangle(left: float, bottom: float, right: float, top: float) -> list[Point]:
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def ellipse(x: float, y: float, half_width: float, half_height: float) -> list[Point]:
    turns = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return list(zip(x + half_width * np.cos(turns), y + half_height * np.sin(turns), strict=True))


def blob(
    rng: np.random.Generator, x: float, y: float, half_width: float, half_height: float
) -> list[Point]:
    """An ellipse with an uneven rim."""
    rim = rng.uniform(0.86, 1.14, 32)
    turns = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    columns = x + half_width * rim * np.cos(turns)
    return list(zip(columns, y + half_height * rim * np.sin(turns), strict=True))


def polygon(x: float, y: float, radii: Sequence[float], turn: float = 0.25) -> list[Point]:
    """A corner per radius, evenly spaced around (x, y) from `turn` full turns on."""
    turns = (np.arange(len(radii)) / len(radii) + turn) * 2 * np.pi
    return list(zip(x + radii * np.cos(turns), y + radii * np.sin(turns), strict=True))
