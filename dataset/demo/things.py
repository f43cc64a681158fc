"""Objects of a procedural street: houses, enclosures, trees, cars, people, anomalies.

Every `paint_*` draws one object that stands on the ground at (x, z), in metres.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from dataset.demo.painter import (
    Array,
    Material,
    Noise,
    Painter,
    Point,
    blob,
    ellipse,
    jitter,
    mix,
    polygon,
    rectangle,
    rgb,
)

FACADES = (
    rgb(0.70, 0.32, 0.25),
    rgb(0.84, 0.70, 0.48),
    rgb(0.89, 0.80, 0.62),
    rgb(0.78, 0.46, 0.38),
    rgb(0.84, 0.60, 0.50),
)
ROOFS = (rgb(0.50, 0.22, 0.17), rgb(0.38, 0.24, 0.22), rgb(0.57, 0.30, 0.21))
WOODS = (rgb(0.58, 0.40, 0.16), rgb(0.64, 0.45, 0.19), rgb(0.52, 0.35, 0.12))
STONES = (rgb(0.50, 0.54, 0.65), rgb(0.58, 0.61, 0.71), rgb(0.45, 0.49, 0.61))
LEAVES = (rgb(0.17, 0.41, 0.10), rgb(0.25, 0.46, 0.12), rgb(0.33, 0.50, 0.14))
IRONS = (rgb(0.20, 0.24, 0.28), rgb(0.26, 0.29, 0.33), rgb(0.16, 0.20, 0.22))
PAINTS = (
    rgb(0.08, 0.16, 0.52),
    rgb(0.10, 0.24, 0.64),
    rgb(0.20, 0.38, 0.74),
    rgb(0.07, 0.10, 0.26),
    rgb(0.82, 0.84, 0.88),
    rgb(0.55, 0.06, 0.10),
)
SKINS = (rgb(0.90, 0.70, 0.56), rgb(0.62, 0.42, 0.30), rgb(0.40, 0.26, 0.18))
HAIRS = (rgb(0.12, 0.08, 0.06), rgb(0.36, 0.22, 0.10), rgb(0.62, 0.46, 0.24))
SHIRTS = (rgb(0.85, 0.13, 0.17), rgb(0.70, 0.10, 0.16), rgb(0.93, 0.28, 0.22))
TROUSERS = (rgb(0.10, 0.12, 0.26), rgb(0.14, 0.14, 0.16), rgb(0.18, 0.24, 0.42))
ORANGES = (rgb(0.96, 0.50, 0.06), rgb(0.92, 0.44, 0.05), rgb(0.98, 0.58, 0.12))
WHITE, YELLOW, RED = rgb(0.97, 0.96, 0.94), rgb(0.99, 0.81, 0.08), rgb(0.86, 0.08, 0.10)
BLACK, GLASS = rgb(0.10, 0.09, 0.09), rgb(0.11, 0.15, 0.20)
LAMPLIGHT = rgb(0.99, 0.85, 0.50)


# -- Materials -------------------------------------------------------------------------------


def crispness(pixel: Array, size: float) -> Array:
    """How visible a pattern of this size is where pixels are `pixel` metres wide."""
    return np.clip(1.5 - 2 * pixel / size, 0, 1)


def grime(v: Array) -> Array:
    """Darkening towards the ground."""
    return 1 - 0.28 * np.exp(-2 * np.maximum(v, 0))


def plain(colour: Array, noise: Noise, grain: float = 0.2) -> Material:
    return lambda u, v, _: colour * (1 + grain * (noise(u, v, 25) - 0.5))[:, None]


def striped(first: Array, second: Array, pitch: float) -> Material:
    return lambda u, v, _: mix(first, second, v % pitch < pitch / 2)


def tube(colour: Array, x: float, radius: float) -> Material:
    """A cylinder's shading, lit from the left."""

    def material(u: Array, v: Array, pixel: Array) -> Array:
        across = np.clip((u - x) / radius, -1, 1)
        return colour * (0.45 + 0.75 * np.exp(-((across + 0.3) ** 2) * 5))[:, None]

    return material


def facade(rng: np.random.Generator, noise: Noise, lit_windows: float) -> Material:
    """Plaster or brick with rows of windows, some of them lit."""
    wall, trim = jitter(rng, FACADES, 0.05), jitter(rng, (WHITE, rgb(0.42, 0.31, 0.26)), 0.05)
    glass = jitter(rng, (rgb(0.22, 0.28, 0.37), rgb(0.36, 0.44, 0.52)))
    colours = np.stack((wall, trim, glass, LAMPLIGHT))
    storey, bay = rng.uniform(2.7, 3.3), rng.uniform(1.8, 2.8)
    half_width, half_height = rng.uniform(0.22, 0.32), rng.uniform(0.26, 0.34)
    of_brick = rng.random() < 0.5

    def material(u: Array, v: Array, pixel: Array) -> Array:
        column, row = u / bay, v / storey
        across, up = np.abs(column % 1 - 0.5), np.abs(row % 1 - 0.52)
        framed = (across < half_width + 0.05) & (up < half_height + 0.05)
        glazed = (across > 0.02) & (across < half_width) & (up < half_height)
        chance = noise.of_cell(column, row)
        tone = 0.86 + 0.28 * noise(u, v, 20)
        if of_brick:
            course = v / 0.3
            joint = (course % 1 < 0.2) | ((u / 0.7 + 0.5 * np.floor(course)) % 1 < 0.1)
            tone = tone * (1 - joint * crispness(pixel, 0.3) * 0.3)
        tone = np.where(framed, np.where(glazed, 0.9 + 0.5 * chance - 0.5 * up, 1), tone)
        kind = framed * 1 + (framed & glazed) * (1 + (chance < lit_windows))
        return colours[kind] * (tone * grime(v))[:, None]

    return material


def planks(rng: np.random.Generator, noise: Noise) -> Material:
    """Upright wooden slats on two rails."""
    wood, pitch = jitter(rng, WOODS), rng.uniform(0.30, 0.42)

    def material(u: Array, v: Array, pixel: Array) -> Array:
        slat = u / pitch
        tone = 0.80 + 0.45 * noise.of_cell(slat, slat * 0) + 0.25 * (noise(u * 4, v, 20) - 0.5)
        railed = (v % 1.1 > 0.3) & (v % 1.1 < 0.5)
        gap = (slat % 1 > 0.74) & ~railed
        return wood * (tone * (1 - gap * crispness(pixel, pitch) * 0.75) * grime(v))[:, None]

    return material


def masonry(rng: np.random.Generator, noise: Noise) -> Material:
    """Large hewn blocks."""
    stone = jitter(rng, STONES, 0.02)
    tall, wide = rng.uniform(0.35, 0.5), rng.uniform(0.8, 1.2)

    def material(u: Array, v: Array, pixel: Array) -> Array:
        course = v / tall
        block = u / wide + 0.5 * (np.floor(course) % 2)
        tone = 0.78 + 0.26 * noise.of_cell(block, course) + 0.24 * (noise(u, v, 25) - 0.3)
        joint = (course % 1 < 0.12) | (block % 1 < 0.06)
        return stone * (tone * (1 - joint * crispness(pixel, tall) * 0.4) * grime(v))[:, None]

    return material


def leaves(rng: np.random.Generator, noise: Noise, bottom: float, top: float) -> Material:
    """Foliage in clumps, brighter towards the top."""
    green = jitter(rng, LEAVES)

    def material(u: Array, v: Array, pixel: Array) -> Array:
        clump = 0.6 * noise(u, v, 9) + 0.4 * noise(u, v, 31)
        height = np.clip((v - bottom) / (top - bottom), 0, 1)
        tone = np.clip(0.45 + 0.55 * height + 1.4 * (clump - 0.5), 0.25, 1.6)
        return green * tone[:, None] + rgb(0.07, 0.06, 0) * (clump > 0.6)[:, None]

    return material


# -- Along the street ------------------------------------------------------------------------


def paint_house(
    painter: Painter, rng: np.random.Generator, x: float, near: float, far: float, height: float
) -> None:
    """A house whose front runs along the street at x; low ones have a pitched roof."""
    side = 1 if x > 0 else -1
    back = x + side * rng.uniform(6, 10)
    material = facade(rng, painter.noise, painter.light.lit_windows)
    if height < 8:
        ridge, top = (x + back) / 2, height + rng.uniform(2, 3)
        tiles = jitter(rng, ROOFS) * painter.light.on_plane(side)
        slope = [(x, height, near), (ridge, top, near), (ridge, top, far), (x, height, far)]
        painter.flat(slope, "building", tiles)
        painter.upright([(x, height), (ridge, top), (back, height)], near, "building", material)
    painter.along(x, near, far, height, "building", material)
    painter.upright(rectangle(min(x, back), 0, max(x, back), height), near, "building", material)


def paint_enclosure(
    painter: Painter, rng: np.random.Generator, x: float, near: float, far: float, name: str
) -> None:
    """A "fence", a "wall" or a hedge ("vegetation") along a plot."""
    noise, height = painter.noise, rng.uniform(1.9, 2.7)
    if name == "fence":
        material = planks(rng, noise)
    elif name == "wall":
        material = masonry(rng, noise)
    else:
        height *= 0.6
        material = leaves(rng, noise, 0, height)
    painter.along(x, near, far, height, name, material)
    outer = x + (0.4 if x > 0 else -0.4)
    painter.upright(rectangle(min(x, outer), 0, max(x, outer), height), near, name, material)


def paint_tree(painter: Painter, rng: np.random.Generator, x: float, z: float) -> None:
    height = rng.uniform(3.8, 6.2)
    crown = height * rng.uniform(0.28, 0.36)
    middle = height - crown
    painter.shadow(x, z, crown * 1.2, crown * 0.8)
    bark = tube(rgb(0.33, 0.27, 0.15), x, 0.18)
    painter.upright(rectangle(x - 0.18, 0, x + 0.18, middle), z, "vegetation", bark)
    material = leaves(rng, painter.noise, middle - crown, middle + crown)
    for _ in range(4):
        dx, dy = rng.uniform(-0.45, 0.45, 2) * crown
        outline = blob(rng, x + dx, middle + dy, crown * 0.78, crown * 0.7)
        painter.upright(outline, z, "vegetation", material)


# -- On the sidewalk -------------------------------------------------------------------------


def paint_lamp_post(painter: Painter, rng: np.random.Generator, x: float, z: float) -> None:
    radius, top, inward = rng.uniform(0.17, 0.23), rng.uniform(4.5, 6.5), -1 if x > 0 else 1
    iron, end = jitter(rng, IRONS, 0.02), x + inward * 1.6
    painter.shadow(x, z, 0.6, 0.5)
    for half, height in ((radius, top), (1.5 * radius, 0.7)):
        painter.upright(rectangle(x - half, 0, x + half, height), z, "pole", tube(iron, x, half))
    arm = [(x, top - 0.35), (end, top + 0.1), (end, top + 0.32), (x, top)]
    painter.upright(arm, z, "pole", plain(iron, painter.noise))
    painter.upright(ellipse(end, top + 0.1, 0.5, 0.2), z, "pole", plain(iron * 1.3, painter.noise))


# Corners, turn of the first one, face and rim of a sign
SIGNS = (
    (4, 0.25, YELLOW, BLACK),
    (4, 0.125, YELLOW, BLACK),
    (24, 0.0, WHITE, RED),
    (3, 0.25, YELLOW, RED),
    (8, 0.0625, RED, WHITE),
    (24, 0.0, YELLOW, RED),
)


def paint_sign(painter: Painter, rng: np.random.Generator, x: float, z: float) -> None:
    """A traffic sign on its post."""
    corners, turn, face, rim = SIGNS[rng.integers(len(SIGNS))]
    radius, y, post = rng.uniform(0.6, 0.8), rng.uniform(2.2, 2.7), 0.14
    painter.shadow(x, z, 0.4, 0.3)
    iron = tube(jitter(rng, IRONS, 0.02), x, post)
    painter.upright(rectangle(x - post, 0, x + post, y), z, "pole", iron)
    for size, colour in ((radius, rim), (0.76 * radius, face)):
        outline = polygon(x, y, [size] * corners, turn)
        painter.upright(outline, z, "traffic sign", plain(colour, painter.noise, 0.08))
    marks = (
        rectangle(x - 0.4 * radius, y - 0.12 * radius, x + 0.4 * radius, y + 0.12 * radius),
        rectangle(x - 0.1 * radius, y - 0.35 * radius, x + 0.1 * radius, y + 0.4 * radius),
        polygon(x, y, [0.34 * radius] * 3),
        ellipse(x, y, 0.2 * radius, 0.2 * radius),
    )
    mark = marks[rng.integers(len(marks))]
    painter.upright(mark, z, "traffic sign", plain(rim, painter.noise, 0.08))


def paint_pedestrian(painter: Painter, rng: np.random.Generator, x: float, z: float) -> None:
    height, stride = rng.uniform(1.6, 1.9), rng.uniform(0.06, 0.24)
    shirt, trousers = jitter(rng, SHIRTS), jitter(rng, TROUSERS)
    hip, shoulder, head = 0.48 * height, 0.82 * height, 0.92 * height

    def limb(outline: list[Point], colour: Array) -> None:
        painter.upright(outline, z, "pedestrian", plain(colour, painter.noise))

    painter.shadow(x, z, 0.5, 0.4)
    for foot in (x - stride, x + stride):
        limb([(x - 0.14, hip), (x + 0.14, hip), (foot + 0.12, 0.0), (foot - 0.12, 0.0)], trousers)
    for arm in (-1, 1):
        hand = x + arm * rng.uniform(0.32, 0.46)
        sleeve = [(x + arm * 0.14, shoulder), (x + arm * 0.30, shoulder - 0.05)]
        limb([*sleeve, (hand, hip), (hand - arm * 0.13, hip)], shirt * 0.8)
    waist = hip - 0.06
    torso = [(x - 0.21, waist), (x + 0.21, waist), (x + 0.28, shoulder), (x - 0.28, shoulder)]
    painter.upright(torso, z, "pedestrian", tube(shirt * 1.1, x, 0.4))
    limb(ellipse(x, head, 0.15, 0.18), jitter(rng, SKINS))
    hair = [point for point in ellipse(x, head + 0.02, 0.16, 0.18) if point[1] > head + 0.03]
    limb(hair, jitter(rng, HAIRS))


def paint_barrel(painter: Painter, rng: np.random.Generator, x: float, z: float) -> None:
    painter.shadow(x, z, 0.7, 0.45)
    outline = [(x - 0.44, 0.0), (x + 0.44, 0.0), (x + 0.36, 1.3), (x - 0.36, 1.3)]
    painter.upright(outline, z, "other", striped(jitter(rng, ORANGES, 0.02), WHITE, 0.65))


def paint_hydrant(painter: Painter, rng: np.random.Generator, x: float, z: float) -> None:
    painter.shadow(x, z, 0.6, 0.4)
    material = tube(jitter(rng, ORANGES, 0.02), x, 0.4)
    for half, bottom, top in ((0.42, 0, 0.18), (0.29, 0, 0.95), (0.46, 0.5, 0.75)):
        painter.upright(rectangle(x - half, bottom, x + half, top), z, "other", material)
    painter.upright(ellipse(x, 0.95, 0.31, 0.28), z, "other", material)


def paint_bin(painter: Painter, rng: np.random.Generator, x: float, z: float) -> None:
    colour = jitter(rng, ORANGES, 0.02)
    painter.shadow(x, z, 0.7, 0.45)
    body = [(x - 0.36, 0.0), (x + 0.36, 0.0), (x + 0.44, 1.1), (x - 0.44, 1.1)]
    painter.upright(body, z, "other", tube(colour, x, 0.5))
    lid = plain(colour * 0.5, painter.noise)
    painter.upright(rectangle(x - 0.48, 1.05, x + 0.48, 1.28), z, "other", lid)


def paint_bench(painter: Painter, rng: np.random.Generator, x: float, z: float) -> None:
    colour = jitter(rng, ORANGES, 0.02)
    painter.shadow(x, z, 1.1, 0.5)
    for leg in (x - 0.8, x + 0.62):
        iron = plain(BLACK, painter.noise)
        painter.upright(rectangle(leg, 0, leg + 0.18, 0.5), z, "other", iron)
    slats = striped(colour, colour * 0.6, 0.24)
    for bottom, top in ((0.42, 0.62), (0.68, 1.2)):
        painter.upright(rectangle(x - 0.95, bottom, x + 0.95, top), z, "other", slats)


def paint_shelter(painter: Painter, rng: np.random.Generator, x: float, z: float) -> None:
    """A bus shelter: two panes in orange frames under a roof."""
    side, colour, length = 1 if x > 0 else -1, jitter(rng, ORANGES, 0.02), rng.uniform(2.6, 3.4)
    back, front = x + side * 0.55, x - side * 0.55
    pitch = length / 3

    def panes(u: Array, v: Array, pixel: Array) -> Array:
        framed = ((u - z) % pitch < 0.22) | (v < 0.5) | (v > 1.9)
        return mix(rgb(0.92, 0.72, 0.48) * (0.7 + 0.15 * v)[:, None], colour, framed)

    painter.shadow(x, z + length / 2, 0.9, 2.2)
    far_pane = rectangle(min(back, front), 0, max(back, front), 2.2)
    painter.upright(far_pane, z + length, "other", plain(rgb(0.80, 0.60, 0.38), painter.noise))
    painter.along(back, z, z + length, 2.3, "other", panes)
    roof = [(back, 2.3, z), (front, 2.3, z), (front, 2.3, z + length), (back, 2.3, z + length)]
    painter.flat(roof, "other", colour * 0.6)
    beam = rectangle(min(back, front), 2.2, max(back, front), 2.55)
    painter.upright(beam, z, "other", plain(colour, painter.noise))


# -- On the road -----------------------------------------------------------------------------

# (z, y) of a saloon car from tail over roof to nose, as shares of its length and height
SALOON = (
    (0, 0.2),
    (0, 0.6),
    (0.12, 0.64),
    (0.22, 1),
    (0.55, 1),
    (0.72, 0.62),
    (0.98, 0.52),
    (1, 0.2),
)
GLAZED = (2, 4)


def paint_car(painter: Painter, rng: np.random.Generator, x: float, z: float) -> None:
    """A car whose near end, at z, is its tail on the right half of the road, else its nose."""
    colour, oncoming = jitter(rng, PAINTS), x < 0
    length, height, half = rng.uniform(4.0, 4.6), rng.uniform(1.45, 1.75), rng.uniform(0.85, 0.98)
    ends = [(length * (1 - share if oncoming else share), y * height) for share, y in SALOON]
    profile = [(z + ahead, y) for ahead, y in ends]
    painter.shadow(x, z + length / 2, half * 1.35, length * 0.62)
    for side in (-1, 1):
        tyre = ellipse(x + side * half * 0.78, 0.3, half * 0.2, 0.3)
        painter.upright(tyre, z + 0.3, "car", plain(BLACK, painter.noise))
    panels = enumerate(pairwise(profile))
    for index, ((z0, y0), (z1, y1)) in sorted(panels, key=lambda p: -p[1][0][0] - p[1][1][0]):
        level = abs(z1 - z0) / (abs(z1 - z0) + abs(y1 - y0))
        spans = [(half, colour * (0.75 + 0.5 * level))]
        if index in GLAZED:
            spans.append((0.86 * half, GLASS))
        for reach, tone in spans:
            left, right = x - reach, x + reach
            quad = [(left, y0, z0), (right, y0, z0), (right, y1, z1), (left, y1, z1)]
            painter.flat(quad, "car", tone)
    paint_lamps(painter, x, z, half, height, oncoming)
    if abs(x - painter.view.x) > half:
        paint_flank(painter, x - half if painter.view.x < x else x + half, profile, colour)


def paint_lamps(
    painter: Painter, x: float, z: float, half: float, height: float, oncoming: bool
) -> None:
    """Lamps and number plate on the near end of a car."""
    colour, y = (WHITE, 0.38 * height) if oncoming else (RED, 0.48 * height)
    for lamp in (x - 0.76 * half, x + 0.76 * half):
        outline = ellipse(lamp, y, 0.17 * half, 0.07 * height)
        painter.upright(outline, z, "car", plain(colour, painter.noise, 0.05))
    plate = rectangle(x - 0.26, 0.26 * height, x + 0.26, 0.34 * height)
    painter.upright(plate, z, "car", plain(WHITE, painter.noise, 0.05))


def paint_flank(painter: Painter, x: float, profile: list[Point], colour: Array) -> None:
    """The visible side of a car: body, windows and wheels."""
    tone = painter.light.on_plane(1 if x > painter.view.x else -1)
    painter.flat([(x, y, z) for z, y in profile], "car", colour * tone)
    cabin = np.array(profile[2:6])
    windows = cabin.mean(0) + 0.78 * (cabin - cabin.mean(0))
    painter.flat([(x, y, z) for z, y in windows.tolist()], "car", GLASS * 1.2)
    tail, nose = profile[0][0], profile[-1][0]
    for axle in (0.8 * tail + 0.2 * nose, 0.2 * tail + 0.8 * nose):
        for radius, metal in ((0.35, BLACK * 0.6), (0.20, rgb(0.62, 0.63, 0.66))):
            wheel = [(x, y, z) for z, y in ellipse(axle, 0.35, radius, radius)]
            painter.flat(wheel, "car", metal)


# -- Anomalies -------------------------------------------------------------------------------

MAGENTA, CYAN, VIOLET = rgb(1.0, 0.05, 0.85), rgb(0.08, 0.95, 1.0), rgb(0.50, 0.05, 1.0)
LIME = rgb(0.60, 1.0, 0.05)
NEONS = (
    (MAGENTA, CYAN),
    (VIOLET, LIME),
    (CYAN, BLACK),
    (VIOLET, WHITE),
    (LIME, CYAN),
    (MAGENTA, LIME),
)
# Where the second colour is, by (right, up) from the middle in half widths
PATTERNS: tuple[Callable[[Array, Array], Array], ...] = (
    lambda s, t: np.sin(9 * np.hypot(s, t) + 3 * np.arctan2(t, s)),  # spirals
    lambda s, t: (np.floor(s * 3) + np.floor(t * 3)) % 2 - 0.5,  # checks
    lambda s, t: np.sin(8 * s + 2.5 * np.sin(3 * t)),  # zebra
    lambda s, t: 0.3 - np.hypot((s * 2.4) % 1 - 0.5, (t * 2.4) % 1 - 0.5),  # dots
    lambda s, t: np.sin(11 * np.hypot(s, t)),  # rings
    lambda s, t: (s * 1.8 + np.abs((t * 2) % 2 - 1)) % 1 - 0.5,  # zigzags
)


def anomaly_outlines(rng: np.random.Generator) -> tuple[list[Point], ...]:
    """The outlines of an object that no street has, in half widths, standing on y = 0."""
    rim, hole = ellipse(0, 1, 1, 1), ellipse(0, 1, 0.42, 0.42)
    dome = [point for point in ellipse(0, 0.9, 1.1, 1.0) if point[1] >= 0.85]
    spikes = int(rng.integers(5, 10))
    kinds = (
        (rim,),
        (polygon(0, 1.05, [1.3, 0.6] * spikes),),
        ([*rim, rim[0], hole[0], *reversed(hole)],),
        (
            rectangle(-1, 0, 0.7, 1.7),
            [(-1.0, 1.7), (-0.6, 2.05), (1.1, 2.05), (0.7, 1.7)],
            [(0.7, 0.0), (1.1, 0.35), (1.1, 2.05), (0.7, 1.7)],
        ),
        (
            [(-0.7, 0.8), (-1.3, 1.5), (-0.3, 1.1)],
            ellipse(0, 0.65, 1.1, 0.65),
            [(0.9, 1.75), (1.6, 1.5), (0.9, 1.35)],
            ellipse(0.6, 1.55, 0.5, 0.5),
        ),
        (blob(rng, 0, 0.9, 1.1, 0.95),),
        (rectangle(-0.35, 0, 0.35, 1.0), dome),
        ([(-1.1, 0.0), (1.1, 0.0), (0.0, 2.4)],),
        (ellipse(0, 0.7, 0.9, 0.7), ellipse(0, 1.7, 0.6, 0.55), ellipse(0, 2.4, 0.4, 0.35)),
        ([(-0.5, 0.0), (0.5, 0.0), (1.0, 1.1), (0.4, 2.3), (-0.4, 2.3), (-1.0, 1.1)],),
    )
    return kinds[rng.integers(len(kinds))]


def paint_anomaly(
    painter: Painter, rng: np.random.Generator, x: float, z: float, half: float
) -> None:
    """A random shape in a random pattern, about twice `half` metres wide and high."""
    first, second = NEONS[rng.integers(len(NEONS))]
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    outlines = anomaly_outlines(rng)

    def material(u: Array, v: Array, pixel: Array) -> Array:
        s, t = (u - x) / half, v / half - 1
        bulge = 1 + 0.5 * np.minimum(s**2 + t**2, 1)
        light = np.clip(1.1 - 0.2 * np.hypot(s + 0.4, t - 0.4) ** 2, 0.55, 1.05)
        return mix(first, second, pattern(s * bulge, t * bulge) > 0) * light[:, None]

    painter.shadow(x, z, half * 1.5, half * 0.8)
    for outline in outlines:
        painter.upright([(x + half * a, half * b) for a, b in outline], z, "anomaly", material)
