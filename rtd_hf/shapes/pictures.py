"""Pictures of scenes: 48 x 48 pixels, drawn with Pillow once per sprite and put together with NumPy.

Two pictures of the same scene differ in position (jitter), in size (a few percent), in brightness and in noise. A
picture depends on its scene and its seed alone. One core draws several thousand a second.
"""

import math
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .scenes import BACKGROUNDS, COLOURS, Object, Scene


IMAGE_SIZE = 48
_RADIUS = {"small": 6.0, "large": 10.5}
_SCALES = (0.93, 1.0, 1.07)
_SUPERSAMPLE = 8
_SPRITE = 26  # pixels; holds the largest object
_JITTER = 1.5  # pixels
_NOISE = 9.0  # standard deviation in grey levels
_CENTRES = {"centre": (24, 24), "left": (12, 24), "right": (36, 24), "top": (24, 12), "bottom": (24, 36)}
_GRID = ((12, 12), (36, 36), (36, 12), (12, 36))  # places of two to four copies, in the order they are filled
_PAIRS = {"beside": ((12, 24), (36, 24)), "above": ((24, 12), (24, 36))}


def _polygon(corners: int, inner: float = 1.0, turn: float = 0.0) -> list[tuple[float, float]]:
    """Corner points on the unit circle; `inner < 1` pulls every second one in, which gives a star."""
    radii = [1.0, inner] * corners if inner < 1 else [1.0] * corners
    step = 2 * math.pi / len(radii)
    return [(r * math.sin(turn + i * step), -r * math.cos(turn + i * step)) for i, r in enumerate(radii)]


def _outline(shape: str) -> list[tuple[float, float]]:
    """The polygon of a shape in a box of -1..1, y downwards."""
    if shape == "triangle":
        return [(0, -0.95), (0.98, 0.8), (-0.98, 0.8)]
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "diamond":
        return [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)]
    if shape == "star":
        return _polygon(5, inner=0.42)
    if shape == "cross":
        a, b = 0.32, 0.95
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    if shape == "heart":
        turns = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        x = 16 * np.sin(turns) ** 3
        y = -(13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns))
        return list(zip(x / 17, (y - 2) / 16, strict=True))
    return _polygon(48)  # circle and ring


@cache
def _sprite(shape: str, size: str, texture: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and shade of an object, both `(26, 26, 1)` float32: colour x shade over what lies behind."""
    n = _SPRITE * _SUPERSAMPLE
    radius, centre = _RADIUS[size] * scale * _SUPERSAMPLE, n / 2
    cover = Image.new("L", (n, n))
    draw = ImageDraw.Draw(cover)
    draw.polygon([(centre + radius * x, centre + radius * y) for x, y in _outline(shape)], fill=255)
    if shape == "ring":
        hole = radius * 0.52
        draw.ellipse((centre - hole, centre - hole, centre + hole, centre + hole), fill=0)
    yy, xx = np.mgrid[0:n, 0:n] / _SUPERSAMPLE
    shade = np.ones((n, n), dtype=np.float32)
    if texture == "striped":
        shade[(xx + yy) % 5.0 < 2.2] = 0.35
    elif texture == "dotted":
        shade[((xx % 4.0) - 2.0) ** 2 + ((yy % 4.0) - 2.0) ** 2 < 1.45] = 0.25
    size_out = (_SPRITE, _SPRITE)
    cover = np.asarray(cover.resize(size_out, Image.Resampling.BOX), dtype=np.float32) / 255
    shade = np.asarray(Image.fromarray(shade).resize(size_out, Image.Resampling.BOX), dtype=np.float32)
    return cover[..., None], shade[..., None]


@lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    """Noise for 32 pictures; a picture takes one of them, rolled by a random offset."""
    rng = np.random.default_rng(0)
    return rng.normal(0, _NOISE, (32, IMAGE_SIZE * IMAGE_SIZE * 3)).astype(np.float32)


def _places(scene: Scene) -> list[tuple[Object, tuple[int, int]]]:
    if scene.kind == "pair":
        return list(zip(scene.objects, _PAIRS[scene.relation], strict=True))
    if scene.kind == "group":
        return [(scene.objects[0], place) for place in _GRID[: scene.count]]
    return [(scene.objects[0], _CENTRES[scene.position])]


def draw_scene(scene: Scene, seed: int) -> np.ndarray:
    """Draws a scene.

    Args:
        scene ([`Scene`]): What to draw.
        seed (`int`): Decides jitter, brightness and noise.

    Returns:
        `np.ndarray` of shape `(48, 48, 3)`, dtype `uint8`, RGB.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    draws = rng.random(16)
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    half = _SPRITE // 2
    for i, (item, (x, y)) in enumerate(_places(scene)):
        dx, dy, scale = draws[3 * i : 3 * i + 3]
        cover, shade = _sprite(item.shape, item.size, item.texture, _SCALES[int(scale * len(_SCALES))])
        left = round(x + (2 * dx - 1) * _JITTER) - half
        top = round(y + (2 * dy - 1) * _JITTER) - half
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + _SPRITE, IMAGE_SIZE), min(top + _SPRITE, IMAGE_SIZE)
        inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        part = canvas[y0:y1, x0:x1]
        part += cover[inner] * (shade[inner] * np.asarray(COLOURS[item.colour], dtype=np.float32) - part)
    canvas *= 0.88 + 0.24 * draws[12]
    bank = _noise_bank()
    canvas += np.roll(bank[int(draws[13] * len(bank))], int(draws[14] * bank.shape[1])).reshape(canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def picture(scene: Scene, seed: int) -> Image.Image:
    """The drawn scene as a PIL image (RGB, 48 x 48)."""
    return Image.fromarray(draw_scene(scene, seed))
