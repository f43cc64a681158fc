"""Composition of a procedural street scene: camera, light, ground, plots and objects."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dataset.demo.painter import (
    RAW,
    SUPERSAMPLING,
    Array,
    Light,
    Material,
    Noise,
    Painter,
    Pixels,
    Point,
    View,
    ellipse,
    fractal,
    jitter,
    mix,
    rectangle,
    rgb,
)
from dataset.demo.things import (
    LEAVES,
    WHITE,
    crispness,
    facade,
    leaves,
    paint_anomaly,
    paint_barrel,
    paint_bench,
    paint_bin,
    paint_car,
    paint_enclosure,
    paint_house,
    paint_hydrant,
    paint_lamp_post,
    paint_pedestrian,
    paint_shelter,
    paint_sign,
    paint_tree,
)

Paint = Callable[[Painter, np.random.Generator, float, float], None]
ASPHALTS = (rgb(0.27, 0.27, 0.28), rgb(0.33, 0.32, 0.32), rgb(0.22, 0.22, 0.24))
SLABS = (rgb(0.74, 0.73, 0.71), rgb(0.70, 0.70, 0.69), rgb(0.78, 0.76, 0.73))
DAY = Light(
    zenith=rgb(0.24, 0.50, 0.90),
    horizon=rgb(0.76, 0.87, 0.96),
    cloud=rgb(0.98, 0.98, 0.99),
    tint=rgb(1.04, 1.02, 0.97),
    haze_range=140,
    shadow=0.28,
    lit_windows=0,
)
DUSK = Light(
    zenith=rgb(0.36, 0.42, 0.74),
    horizon=rgb(0.98, 0.78, 0.62),
    cloud=rgb(0.97, 0.68, 0.62),
    tint=rgb(0.96, 0.87, 0.82),
    haze_range=110,
    shadow=0.32,
    lit_windows=0.35,
)
OVERCAST = Light(
    zenith=rgb(0.60, 0.67, 0.76),
    horizon=rgb(0.84, 0.88, 0.92),
    cloud=rgb(0.93, 0.94, 0.96),
    tint=rgb(0.93, 0.95, 0.98),
    haze_range=80,
    shadow=0.08,
    lit_windows=0.08,
)


@dataclass(frozen=True)
class Street:
    """Cross-section and surroundings of a street, the same on both sides."""

    road: float  # half the width of the road
    edge: float  # from the road's middle to the plots
    house_height: float
    greenery: float  # share of the plots with a garden

    @property
    def kerb(self) -> float:
        return self.road + 0.4


def random_view(rng: np.random.Generator, columns: int, rows: int) -> View:
    return View(
        focal=columns * rng.uniform(0.56, 0.72),
        x=rng.uniform(-1.6, 1.6),
        height=rng.uniform(1.5, 2.4),
        column=columns * rng.uniform(0.36, 0.64),
        row=rows * rng.uniform(0.38, 0.50),
    )


def random_light(rng: np.random.Generator) -> Light:
    light = (DAY, DUSK, OVERCAST)[rng.choice(3, p=(0.5, 0.2, 0.3))]
    return replace(light, sunny_side=int(rng.choice((-1, 1))))


# -- Background ------------------------------------------------------------------------------


def paint_sky(painter: Painter, rng: np.random.Generator) -> None:
    light, rows = painter.light, int(painter.view.row) + 2
    clouds = fractal(rng, (rows, painter.columns), (4, 3))
    fade = np.linspace(0, 1, rows, dtype=np.float32)[:, None] ** 1.3
    sky = mix(light.zenith, light.horizon, np.broadcast_to(fade, clouds.shape))
    density = np.clip((clouds - rng.uniform(0.42, 0.62)) * 4.5, 0, 1) * (1 - 0.6 * fade)
    painter.image[:rows] = mix(sky, light.cloud * (0.92 + 0.1 * clouds)[..., None], density)
    painter.label[:rows] = RAW["unlabeled"]


def paint_skyline(painter: Painter, rng: np.random.Generator, street: Street) -> None:
    """Distant blocks of houses behind a row of trees."""
    noise, x = painter.noise, painter.view.x
    for left in range(-120, 120, 20):
        height = street.house_height * rng.uniform(0.6, 2)
        block = rectangle(left, 0, left + rng.uniform(12, 19), height)
        painter.upright(block, 150, "building", facade(rng, noise, 0))
    crest = 3 + 5 * rng.random(45)
    ridge = list(zip(np.linspace(x - 110, x + 110, 45), crest, strict=True))
    outline = [(x - 110, 0.0), *ridge, (x + 110, 0.0)]
    painter.upright(outline, 110, "vegetation", leaves(rng, noise, -4, 8))


def paint_ground(painter: Painter, rng: np.random.Generator, street: Street) -> None:
    top, x, z = painter.ground()
    pixel, aside = z / painter.view.focal, np.abs(x)
    lines = road_lines(rng, street, x, z)
    areas = {
        "road": (aside < street.road) & ~lines,
        "road line": lines,
        "sidewalk": (aside >= street.road) & (aside < street.edge),
        "vegetation": aside >= street.edge,
    }
    surfaces = {
        "road": asphalt(rng, painter.noise, street),
        "road line": road_paint(rng, painter.noise),
        "sidewalk": paving(rng, painter.noise, street),
        "vegetation": lawn(rng, painter.noise),
    }
    shade = cast_shadows(painter, rng, street, x, z)
    for name, area in areas.items():
        colours = surfaces[name](x[area], z[area], pixel[area]) * shade[area][:, None]
        painter.image[top:][area] = painter.hazed(colours, z[area])
        painter.label[top:][area] = RAW[name]


def cast_shadows(
    painter: Painter, rng: np.random.Generator, street: Street, x: Array, z: Array
) -> Array:
    """Brightness of the ground under the shadows of the houses on the sunny side."""
    reach = street.edge - painter.light.sunny_side * x
    ragged = 0.6 + 0.7 * painter.noise.of_cell(z / 9, z * 0)
    longest = rng.uniform(0.3, 0.9) * street.edge * ragged
    return 1 - 1.2 * painter.light.shadow * np.clip((longest - reach) * 3, 0, 1)


def asphalt(rng: np.random.Generator, noise: Noise, street: Street) -> Material:
    colour = jitter(rng, ASPHALTS, 0.02)

    def material(u: Array, v: Array, pixel: Array) -> Array:
        ruts = 0.05 * np.cos(u * (4 * np.pi / street.road))
        grain = 0.35 * (noise(u, v, 40) - 0.5) * crispness(pixel, 0.1)
        return colour * (1 + ruts + grain + 0.25 * (noise(u, v, 4) - 0.5))[:, None]

    return material


def road_paint(rng: np.random.Generator, noise: Noise) -> Material:
    colour = jitter(rng, (rgb(0.97, 0.97, 0.95), rgb(0.97, 0.95, 0.88)), 0.02)
    return lambda u, v, _: colour * (0.92 + 0.12 * noise(u, v, 30))[:, None]


def paving(rng: np.random.Generator, noise: Noise, street: Street) -> Material:
    """Slabs behind a bright kerb."""
    colour, tile = jitter(rng, SLABS, 0.02), rng.uniform(0.7, 1.1)

    def material(u: Array, v: Array, pixel: Array) -> Array:
        across, ahead = (np.abs(u) - street.road) / tile, v / tile
        tone = 0.86 + 0.14 * noise.of_cell(across, ahead) + 0.14 * noise(u, v, 40)
        joint = ((across % 1 < 0.09) | (ahead % 1 < 0.09)) * crispness(pixel, 0.3)
        slabs = colour * (tone * (1 - 0.4 * joint))[:, None]
        return np.where((across * tile < 0.22)[:, None], rgb(0.88, 0.86, 0.82), slabs)

    return material


def lawn(rng: np.random.Generator, noise: Noise) -> Material:
    colour = jitter(rng, LEAVES) * 1.15
    return lambda u, v, _: colour * (0.6 + 0.8 * noise(u, v, 30))[:, None]


def road_lines(rng: np.random.Generator, street: Street, x: Array, z: Array) -> NDArray[np.bool_]:
    """Mask of the painted lines: edges, middle, and often a zebra crossing or a stop line."""
    edges = np.abs(np.abs(x) - (street.road - 0.45)) < 0.2
    if rng.random() < 0.3:
        middle = np.abs(np.abs(x) - 0.3) < 0.15
    else:
        dash = rng.uniform(3.5, 6)
        middle = (np.abs(x) < 0.2) & ((z + rng.uniform(0, 6)) % (1.6 * dash) < dash)
    lines = edges | middle
    near = rng.uniform(6, 11)
    kind = rng.random()
    if kind < 0.6:
        stripes = (x % 1.2 < 0.68) & (z > near) & (z < near + rng.uniform(2.6, 3.6))
        lines = np.where((z > near - 1.2) & (z < near + 4.5), stripes, lines)
    elif kind < 0.8:
        lines |= (z > near) & (z < near + 0.9) & (x > 0.2)
    return lines & (np.abs(x) < street.road)


# -- Plots beside the street -----------------------------------------------------------------


def paint_plots(
    painter: Painter, rng: np.random.Generator, street: Street, side: int, first: str
) -> None:
    """One side of the street from far to near; `first` encloses the nearest visible plot."""
    x, view = side * street.edge, painter.view
    room = view.column if side < 0 else painter.columns - view.column
    in_sight = abs(x - view.x) * view.focal / room
    bounds, plots = [1.0, in_sight + rng.uniform(4, 8)], [first]
    if rng.random() < 0.3:
        bounds = [1.0, in_sight + rng.uniform(0.5, 2), in_sight + rng.uniform(8, 12)]
        plots = ["building", first]
    while bounds[-1] < 75:
        bounds.append(bounds[-1] + rng.uniform(8, 16))
        garden = str(rng.choice(("fence", "wall", "vegetation")))
        plots.append(garden if rng.random() < street.greenery else "building")
    for (near, far), kind in reversed(list(zip(pairwise(bounds), plots, strict=True))):
        height = street.house_height * rng.uniform(0.7, 1.4)
        if kind == "building":
            paint_house(painter, rng, x, near, far, height)
        else:
            paint_garden(painter, rng, (x, near, far), kind, height * (rng.random() < 0.8))


def paint_garden(
    painter: Painter,
    rng: np.random.Generator,
    plot: tuple[float, float, float],
    kind: str,
    house_height: float,
) -> None:
    """Trees behind an enclosure, and a house unless its height is 0.

    `plot`: x of its front, then z of its near and its far end.
    """
    x, near, far = plot
    side = 1 if x > 0 else -1
    if house_height:
        paint_house(painter, rng, x + side * rng.uniform(2, 5), near + 1, far - 1, house_height)
    for depth in sorted(rng.uniform(near + 1, far, rng.integers(1, 4)), reverse=True):
        paint_tree(painter, rng, x + side * rng.uniform(1, 2.5), float(depth))
    paint_enclosure(painter, rng, x, near, far, kind)


# -- Objects on the street -------------------------------------------------------------------


@dataclass(frozen=True)
class Extent:
    """Extent of an object in metres: half its width, its lowest and its highest point."""

    half_width: float
    bottom: float
    top: float


OTHERS = (
    (paint_barrel, Extent(0.6, 0, 1.3)),
    (paint_hydrant, Extent(0.6, 0, 1.3)),
    (paint_bin, Extent(0.6, 0, 1.3)),
    (paint_bench, Extent(0.9, 0, 1.2)),
    (paint_shelter, Extent(1.0, 0, 2.5)),
)


class Stage:
    """Places objects where they are visible, near enough and hardly occlude each other."""

    def __init__(self, painter: Painter) -> None:
        self.painter = painter
        self.taken: list[tuple[float, float, float, float]] = []
        self.cast: list[tuple[float, float, Paint]] = []

    def place(
        self,
        rng: np.random.Generator,
        paint: Paint,
        extent: Extent,
        aside: Point,
        nearness: Point,
    ) -> None:
        """Find a place for an object, or drop it if there is none.

        Args:
            aside: range of its distance from the road's middle, on either side.
            nearness: range of its depth, in units of the smallest depth at which it is visible.
        """
        view, half = self.painter.view, extent.half_width
        spots = []
        for _ in range(14):
            x = float(rng.uniform(*aside) * rng.choice((-1, 1)))
            room = view.column if x < view.x else self.painter.columns - view.column
            in_sight = max((abs(x - view.x) + half) * view.focal / room, 5.0)
            z = float(in_sight * rng.uniform(*nearness))
            left, bottom = view.project(x - half, extent.bottom, z)
            right, top = view.project(x + half, extent.top, z)
            box = left, top, right, bottom
            spots.append((self.hidden(box), x, z, box))
        hidden, x, z, box = min(spots, key=lambda spot: spot[0])
        if hidden < 0.3:
            self.taken.append(box)
            self.cast.append((z, x, paint))

    def hidden(self, box: tuple[float, float, float, float]) -> float:
        """The largest share of overlap between a pixel box and any box already placed."""
        left, top, right, bottom = box
        largest = 0.0
        for x0, y0, x1, y1 in self.taken:
            across, down = min(right, x1) - max(left, x0), min(bottom, y1) - max(top, y0)
            if across > 0 and down > 0:
                smaller = min((right - left) * (bottom - top), (x1 - x0) * (y1 - y0))
                largest = max(largest, across * down / smaller)
        return largest

    def perform(self, rng: np.random.Generator) -> None:
        """Paint everything from far to near."""
        for z, x, paint in sorted(self.cast, key=lambda part: -part[0]):
            paint(self.painter, rng, x, z)


def place_anomalies(stage: Stage, rng: np.random.Generator, street: Street) -> None:
    """One or two anomalies that together cover 1 to 4 % of the picture."""
    painter, count = stage.painter, 1 if rng.random() < 0.6 else 2
    for share in rng.uniform(0.018, 0.032, count) / (1 if count == 1 else 1.5):
        reach = float(share * painter.columns * painter.rows / 3) ** 0.5

        def paint(
            painter: Painter, rng: np.random.Generator, x: float, z: float, reach: float = reach
        ) -> None:
            paint_anomaly(painter, rng, x, z, reach * z / painter.view.focal)

        beside = (street.road - 0.8, street.edge - 0.8)
        stage.place(rng, paint, Extent(1, 0, 2), beside, (1.0, 1.5))


def place_things(stage: Stage, rng: np.random.Generator, street: Street) -> None:
    kerb, inner = street.kerb, street.edge - 0.5
    for _ in range(rng.integers(2, 4)):
        stage.place(rng, paint_sign, Extent(0.75, 1.6, 3.4), (kerb, kerb + 0.3), (1.0, 1.6))
    for _ in range(rng.integers(2, 4)):
        other, extent = OTHERS[rng.integers(len(OTHERS))]
        stage.place(rng, other, extent, (kerb, inner), (1.0, 1.6))
    for _ in range(rng.integers(2, 5)):
        beside = (street.road - 0.8, inner)
        stage.place(rng, paint_pedestrian, Extent(0.4, 0, 1.8), beside, (1.0, 1.6))
    for _ in range(rng.integers(2, 4)):
        stage.place(rng, paint_lamp_post, Extent(0.3, 0, 6), (kerb, kerb), (1.05, 1.8))
    for _ in range(rng.integers(2, 5)):
        lane = street.road / 2 if rng.random() < 0.5 else street.road - 1.1
        stage.place(rng, paint_car, Extent(1, 0, 1.6), (lane, lane), (1.3, 2.6))
    for _ in range(rng.integers(1, 3)):
        stage.place(rng, paint_tree, Extent(1.2, 2, 5), (kerb + 0.3, kerb + 0.5), (1.8, 3.5))


def paint_bonnet(painter: Painter, rng: np.random.Generator) -> None:
    """The camera car's own bonnet, labelled 0."""
    rise = painter.rows * float(rng.uniform(0.02, 0.05))
    crest = ellipse(painter.columns / 2, painter.rows + rise, painter.columns * 0.55, 2 * rise)
    colour = jitter(rng, (rgb(0.10, 0.11, 0.13), rgb(0.24, 0.05, 0.06), WHITE * 0.7), 0.02)

    def shader(columns: Array, rows: Array) -> tuple[Array, float]:
        gloss = np.clip((painter.rows - rows) / rise, 0, 1)
        return mix(colour, colour + 0.3, gloss), 0.0

    painter.fill(crest, "nothing", shader)


def draw_scene(
    rng: np.random.Generator, width: int, height: int, with_anomaly: bool
) -> tuple[Pixels, Pixels]:
    """Draw one street.

    Returns:
        An RGBA image, uint8 (height, width, 4), and its raw label, uint8 (height, width): class
        index + 1, 14 on anomalies, 0 on the camera car's bonnet.
    """
    size = width * SUPERSAMPLING, height * SUPERSAMPLING
    painter = Painter(size, random_view(rng, *size), random_light(rng), Noise(rng))
    road = float(rng.uniform(3.2, 4.3))
    street = Street(
        road=road,
        edge=road + float(rng.uniform(2.4, 3.3)),
        house_height=float(rng.uniform(5, 12)),
        greenery=float(rng.uniform(0.2, 0.7)),
    )
    paint_sky(painter, rng)
    paint_skyline(painter, rng, street)
    paint_ground(painter, rng, street)
    for side, enclosure in zip((-1, 1), rng.permutation(["fence", "wall"]), strict=True):
        paint_plots(painter, rng, street, side, str(enclosure))
    stage = Stage(painter)
    if with_anomaly:
        place_anomalies(stage, rng, street)
    place_things(stage, rng, street)
    stage.perform(rng)
    if rng.random() < 0.4:
        paint_bonnet(painter, rng)
    return painter.develop(rng)
