"""How the pixels of a plane are dealt out to the lanes of vectors.

A plane is cut into `rows` x `columns` blocks of `height` x `width` pixels, one block a lane; `images` images share
a vector. Lane (image * rows + block row) * columns + block column of vector (y, x) holds pixel (y, x) of its block.
A pixel's neighbour is then the neighbouring vector in every lane at once: a convolution needs no unaligned access,
and no copy of its input but for the blocks' borders, the halo, which is filled from the neighbouring lanes.
Blocks may reach past the image; what stands there is no pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

# Share of a convolution kernel's speed that is left when its tile is so many vectors wide (measured).
_TILE_SPEED = {1: 0.4, 2: 0.6, 3: 0.72, 4: 0.82, 5: 0.9, 6: 0.95, 7: 1.0, 8: 1.0}
# The same of wider ones. With the 16 registers of AVX2 (8 lanes) their sums leave no room for what a sum is added to.
_WIDE_SPEED = {8: 1.0}
WIDEST_TILE = 14

Pixels = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Layout:
    """The division of planes of `plane` (H, W) pixels into lanes."""

    plane: tuple[int, int]
    images: int
    rows: int
    columns: int

    @property
    def lanes(self) -> int:
        return self.images * self.rows * self.columns

    @property
    def height(self) -> int:
        return -(-self.plane[0] // self.rows)

    @property
    def width(self) -> int:
        return -(-self.plane[1] // self.columns)

    def pixels(self, y: NDArray[np.int64], x: NDArray[np.int64]) -> Pixels:
        """Image, row and column of the pixel in each lane of the vectors (y, x); arrays [len(y), len(x), lanes].

        y and x may lie outside the block: the pixel is then a neighbour's, or outside the image.
        """
        lane = np.arange(self.lanes)
        image = lane // (self.rows * self.columns)
        row = lane // self.columns % self.rows * self.height + y[:, None, None]
        column = lane % self.columns * self.width + x[None, :, None]
        shape = (len(y), len(x), self.lanes)
        return np.broadcast_to(image, shape), np.broadcast_to(row, shape), np.broadcast_to(column, shape)

    def places(self, image: NDArray[np.int64], row: NDArray[np.int64], column: NDArray[np.int64]) -> Pixels:
        """Vector (y, x) and lane of pixels inside the image."""
        lane = (image * self.rows + row // self.height) * self.columns + column // self.width
        return row % self.height, column % self.width, lane


def tiles(width: int, widest: int = WIDEST_TILE) -> int:
    """Tiles of at most `widest` vectors that a row of `width` is cut into."""
    return -(-width // widest)


def _cost(layout: Layout) -> float:
    """Time per pixel, in units of that of a plane that fills every lane of tiles of full width."""
    pixels = layout.plane[0] * layout.plane[1] * layout.images
    vectors = layout.height * layout.width
    tile = layout.width // tiles(layout.width)
    halo = (layout.height + 2) * (layout.width + 2) / vectors - 1
    speed = _TILE_SPEED.get(tile) or _WIDE_SPEED.get(layout.lanes, 1.05)
    return vectors * layout.lanes / pixels / speed + 0.02 * halo


def sharing(plane: tuple[int, int], images: int, lanes: int) -> int:
    """Images that share a vector, never fewer for a smaller plane: large planes fill the lanes and the cache alone."""
    pixels = plane[0] * plane[1]
    wanted = lanes if pixels < 100 else lanes // 4 if pixels < 400 else 1
    shared = 1
    while shared * 2 <= max(wanted, 1) and images % (shared * 2) == 0:
        shared *= 2
    return shared


@cache
def choose(plane: tuple[int, int], shared: int, lanes: int) -> Layout:
    """The cheapest division of planes of this size, so many images sharing a vector of `lanes` (a power of two)."""
    found = [
        Layout(plane, shared, rows, lanes // shared // rows) for rows in (1, 2, 4, 8, 16) if rows * shared <= lanes
    ]
    return min(found, key=lambda layout: (_cost(layout), abs(layout.rows - layout.columns)))
