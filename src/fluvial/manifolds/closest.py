"""The nearest face of a triangle surface, found through a tree of boxes."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_FAN = 8  # children of a node
_TOP = 6  # the tree starts with at most 2**_TOP nodes, which are compared with every point
_FARTHEST = 1e7  # points beyond this many radii are searched for along their ray, where rounding would leave nothing of the differences

# Which part of a face is nearest: 0 the inside, 1 to 3 its edges AB, BC, CA, 4 to 6 its corners A, B, C; and a corner that lies on each.
CORNER = 4
_CORNER_OF_PART = (0, 0, 1, 2, 0, 1, 2)


class Tables(NamedTuple):
    """A surface on one device.

    Attributes:
        search: What `nearest_point` takes.
        corners: Corners A, B, C of every face, shape (m, 3, 3).
        frames: Orthonormal tangents of every face, of its three edges, and none (zeros) for its corners, shape (m, 7, 3, 2).
        shapes: Length of AB and the plane coordinates of C, for every face, shape (m, 3).
        rolled: How far the corners of every face are rotated against their given order, shape (m,).
    """

    search: list[Tensor]
    corners: Tensor
    frames: Tensor
    shapes: Tensor
    rolled: Tensor


class Surface:
    """Triangles with everything that is computed from them once: areas, local frames, the tree, and tensors of these on every device used.

    Args:
        vertices: Shape (n, 3), float64.
        faces: Rows of vertices, shape (m, 3).
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        self.vertices, self.faces = vertices, faces
        triangles = vertices[faces]
        sides = np.linalg.norm(np.roll(triangles, -1, 1) - triangles, axis=-1)
        # The longest edge comes first: the frame of a needle would lose its digits in a short one.
        self.rolled = sides.argmax(1)
        self.longest = sides.max(1)
        self.triangles = np.take_along_axis(triangles, ((np.arange(3) + self.rolled[:, None]) % 3)[..., None], 1)
        a, b, c = self.triangles[:, 0], self.triangles[:, 1], self.triangles[:, 2]
        with np.errstate(invalid="ignore", divide="ignore"):
            first = (b - a) / self.longest[:, None]
            along = ((c - a) * first).sum(1)
            across = (c - a) - along[:, None] * first
            height = np.linalg.norm(across, axis=1)
            second = across / height[:, None]
        self.areas = self.longest * height / 2
        self.area = float(self.areas.sum())
        self.shapes = np.stack([self.longest, along, height], 1)
        self.axes = np.stack([first, second, np.cross(first, second)], 1)
        self._made: dict[torch.device, Tables] = {}

    def tables(self, device: torch.device) -> Tables:
        """The surface as tensors, in float64 where the device has it."""
        self.prepare(device)
        return self._made[device]

    @torch.compiler.assume_constant_result
    def prepare(self, device: torch.device) -> bool:
        """Make the tensors for a device. The compiler is to run this, not to trace it."""
        if device not in self._made:
            self._made[device] = self._tables(device, torch.float32 if device.type == "mps" else torch.float64)
        return True

    def _tables(self, device: torch.device, dtype: torch.dtype) -> Tables:
        m = len(self.triangles)
        low, high = self.vertices[self.faces].min((0, 1)), self.vertices[self.faces].max((0, 1))
        centre = (low + high) / 2
        triangles = self.triangles - centre
        a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
        length, along, height = self.shapes.T
        offsets = -np.einsum("mij,mj->mi", self.axes, a)
        squares = length**2, (along - length) ** 2 + height**2, along**2 + height**2
        exact = np.stack(
            [*np.concatenate([self.axes, offsets[..., None]], 2).reshape(m, 12).T, length, along, height, 1 / length, *(1 / s for s in squares[1:])]
        )

        second_edge = (c - b) / np.sqrt(squares[1])[:, None]
        third_edge = (a - c) / np.sqrt(squares[2])[:, None]
        frames = np.zeros((m, 7, 3, 2))
        frames[:, 0] = self.axes[:, :2].transpose(0, 2, 1)
        frames[:, 1:CORNER, :, 0] = np.stack([self.axes[:, 0], second_edge, third_edge], 1)

        def tensor(array: np.ndarray, kind: torch.dtype = dtype) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=kind, device=device)

        levels, slots = _levels(triangles)
        boxes = [tensor(levels[0].T)]
        for level in levels[1:]:
            siblings = level.reshape(-1, _FAN, 2, 3).transpose(0, 2, 3, 1)
            boxes += [tensor(siblings[:, half].reshape(-1, 3 * _FAN)) for half in (0, 1)]
        around = tensor(np.append(centre, np.linalg.norm(high - low) / 2))
        corners, directions = tensor(triangles), tensor(frames)
        search = [around, tensor(exact), tensor(slots, torch.int64), corners, directions, *boxes]
        return Tables(search, tensor(self.triangles), directions, tensor(self.shapes), tensor(self.rolled, torch.int64))


def _levels(triangles: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Boxes (nodes, 6) of every third level of a balanced binary tree, as centres and half widths, and the faces of its leaves."""
    m = len(triangles)
    depth = max(0, math.ceil(math.log2(m)))
    order = np.arange(m)
    centroids = triangles.mean(1)
    for level in range(depth):
        starts, filled = _nodes(level, m)
        own = centroids[order]
        width = np.zeros((2**level, 3))
        width[filled] = np.maximum.reduceat(own, starts[:-1][filled]) - np.minimum.reduceat(own, starts[:-1][filled])
        node = np.repeat(np.arange(2**level), np.diff(starts))
        order = order[np.lexsort((own[np.arange(m), width.argmax(1)[node]], node))]
    low, high = triangles.min(1)[order], triangles.max(1)[order]
    levels = []
    for level in range(depth, -1, -3):
        starts, filled = _nodes(level, m)
        least, most = np.minimum.reduceat(low, starts[:-1][filled]), np.maximum.reduceat(high, starts[:-1][filled])
        # Leaves without a face are infinitely far away.
        boxes = np.full((2**level, 6), np.inf)
        boxes[:, 3:] = 0
        boxes[filled] = np.concatenate([(least + most) / 2, (most - least) / 2], 1)
        levels.insert(0, boxes)
        if level <= _TOP:
            break
    return levels, order[np.minimum(_nodes(depth, m)[0][:-1], m - 1)]


def _nodes(level: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the faces of every node of a level begin in the order of the tree, and which nodes have any."""
    starts = (np.arange(2**level + 1) * m) >> level
    return starts, np.diff(starts) > 0


# An operator of its own, because the number of candidates depends on the points: neither vmap nor the compiler could see through that.
@torch.library.custom_op("fluvial::nearest_point", mutates_args=())
def nearest_point(x: Tensor, search: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    r"""The nearest point of a surface, without a derivative, and the face and part of it that it lies on.

    Exact up to rounding; of faces equally near, the one of the lowest number. Nothing of size points × faces is made: boxes farther away than a
    face already found are left out with all that is in them.

    Args:
        x: Points, shape (\*batch, 3).
        search: `Tables.search` of a surface.

    Returns:
        Nearest points, shape (\*batch, 3); face and part (0 inside, 1 to 3 an edge, 4 to 6 a corner), int64 of shape (\*batch,).
    """
    flat = x.reshape(-1, 3).to(search[0].dtype) - search[0][:3]
    rows = 2048 if x.device.type == "cpu" else 131_072
    found = [_search(chunk, search) for chunk in flat.split(rows)]
    y, face, part = (torch.cat(parts) for parts in zip(*found))
    y = torch.where(flat.isfinite().all(-1, keepdim=True), y + search[0][:3], torch.nan)
    return y.to(x.dtype).view(x.shape), face.view(x.shape[:-1]), part.view(x.shape[:-1])


@nearest_point.register_fake
def _(x: Tensor, search: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    index = x.new_empty(x.shape[:-1], dtype=torch.int64)
    return x.new_empty(x.shape), index, torch.empty_like(index)


@nearest_point.register_vmap
def _(info: object, in_dims: tuple[int, object], x: Tensor, search: list[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return nearest_point(x.movedim(in_dims[0], 0), search), (0, 0, 0)


def _search(x: Tensor, search: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    around, exact, slots, corners, frames, *boxes = search
    # The squares of very large numbers are infinite; of numbers divided by the largest, not.
    largest = x.abs().amax(1).clamp_min(around[3])
    away = largest * torch.linalg.vector_norm(x / largest[:, None], dim=1)
    limit = _FARTHEST * around[3]
    x = torch.where((away > limit)[:, None], x / away[:, None] * limit, x)
    rounding = 16 * torch.finfo(x.dtype).eps * (away.clamp_max(limit) + around[3])
    face = _candidates(x, exact, slots, boxes, rounding)
    part = _part(x.T, exact, face, rounding)
    corner = corners[face, torch.tensor(_CORNER_OF_PART, device=x.device)[part]]
    return corner + along(frames[face, part], x - corner), face, part


def rows(table: Tensor, index: Tensor) -> Tensor:
    r"""table[index], shape (\*index, …), also where vmap has left an index without axes."""
    return table.index_select(0, index.reshape(-1)).view(*index.shape, *table.shape[1:])


def along(frame: Tensor, v: Tensor) -> Tensor:
    r"""The part of vectors v (\*batch, 3) along orthonormal columns (\*batch, 3, 2)."""
    # Written out: sums over two or three numbers are slow.
    x, y, z = v.unsqueeze(-1).unbind(-2)
    inner = frame[..., 0, :] * x + frame[..., 1, :] * y + frame[..., 2, :] * z
    return frame[..., 0] * inner[..., :1] + frame[..., 1] * inner[..., 1:]


def _candidates(x: Tensor, exact: Tensor, slots: Tensor, boxes: list[Tensor], rounding: Tensor) -> Tensor:
    """Nearest faces of points (N, 3): level by level, the pairs of point and node that may still hold one."""
    n, last = len(x), len(boxes) // 2
    columns = x.T.contiguous()
    tiled = x.unsqueeze(-1).expand(n, 3, _FAN).reshape(n, 3 * _FAN)

    def descend(node: Tensor, level: int) -> Tensor:
        """Squared distance of the face that lies at the end of the way through the nearest boxes."""
        for below in range(level, last):
            node = node * _FAN + _children(tiled, boxes, below, node).min(1)[1]
        return _plane(columns, exact, slots[node])[0]

    gaps = [(columns[k] - boxes[0][k, :, None]).abs_().sub_(boxes[0][k + 3, :, None]).clamp_min_(0).square_() for k in range(3)]
    low = gaps[0].add_(gaps[1]).add_(gaps[2])
    best = descend(low.min(0)[1], 0)
    reach = _widened(best, rounding)
    kept = (low <= reach).view(-1).nonzero().squeeze(1)
    low = low.view(-1).gather(0, kept)
    node = torch.div(kept, n, rounding_mode="floor")
    point = kept - node * n
    for level in range(last + 1):
        if level > 0:
            found = _children(tiled.index_select(0, point), boxes, level - 1, node)
            kept = (found <= reach.gather(0, point)[:, None]).view(-1).nonzero().squeeze(1)
            low = found.view(-1).gather(0, kept)
            parent = torch.div(kept, _FAN, rounding_mode="floor")
            node = (node * _FAN).gather(0, parent) + (kept - parent * _FAN)
            point = point.gather(0, parent)
        if len(point) > _most_pairs(x) and n > 1:
            # Points as far from everything as from anything, such as the centre of a ball: fewer at a time.
            return torch.cat([_candidates(half, exact, slots, boxes, own) for half, own in zip(x.tensor_split(2), rounding.tensor_split(2))])
        if len(point) > 3 * n:
            # Many candidates: a better face, below the nearest of them, rules more of them out.
            least = torch.full_like(best, torch.inf).scatter_reduce_(0, point, low, "amin")
            hit = (low <= least.gather(0, point)).nonzero().squeeze(1)
            nearest = node.new_zeros(n).scatter_(0, point.gather(0, hit), node.gather(0, hit))
            best = torch.minimum(best, descend(nearest, level))
            reach = _widened(best, rounding)
            kept = (low <= reach.gather(0, point)).nonzero().squeeze(1)
            point, node = point.gather(0, kept), node.gather(0, kept)
    face = slots.gather(0, node)
    square = _plane(columns.gather(1, point.expand(3, -1)), exact, face)[0]
    best = best.scatter_reduce(0, point, square, "amin")
    hit = (square <= _widened(best, rounding).gather(0, point)).nonzero().squeeze(1)
    # Points that are not finite have no candidates, and get face 0.
    nearest = torch.full_like(best, len(exact[0]), dtype=torch.int64).scatter_reduce_(0, point.gather(0, hit), face.gather(0, hit), "amin")
    return torch.where(nearest < len(exact[0]), nearest, 0)


def _most_pairs(x: Tensor) -> int:
    return 2**18 if x.device.type == "cpu" else 2**22


def _widened(square: Tensor, rounding: Tensor) -> Tensor:
    """Squared distances, enlarged by what rounding may have taken from them."""
    return (square.sqrt() + rounding).square()


def _children(tiled: Tensor, boxes: list[Tensor], level: int, node: Tensor) -> Tensor:
    """Squared distances (P, 8) of points, each coordinate repeated 8 times, to the boxes of the children of their nodes."""
    centres, halves = boxes[1 + 2 * level], boxes[2 + 2 * level]
    gaps = centres.index_select(0, node).sub_(tiled).abs_().sub_(halves.index_select(0, node)).clamp_min_(0).square_().view(-1, 3, _FAN)
    return (gaps[:, 0] + gaps[:, 1]).add_(gaps[:, 2])


def _plane(x: Tensor, exact: Tensor, face: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances of points (3, P) to faces; and in their planes, to the edges (3, P), with the place 0 … 1 of the foot on each."""
    table = exact.gather(1, face.expand(len(exact), -1))
    length, along, height, *inverse = table[12:]
    # Coordinates along AB, across it, and out of the plane.
    u, v, h = (table[k].mul_(x[0]).add_(table[k + 1].mul_(x[1])).add_(table[k + 2].mul_(x[2])).add_(table[k + 3]) for k in (0, 4, 8))
    slant, beyond = along - length, u - length
    feet = torch.stack([u * inverse[0], (beyond * slant + v * height) * inverse[1], (u * along + v * height) * inverse[2]]).clamp_(0, 1)
    edges = torch.stack(
        [
            (u - feet[0] * length).square_() + v.square(),
            (beyond - feet[1] * slant).square_() + (v - feet[1] * height).square_(),
            (u - feet[2] * along).square_() + (v - feet[2] * height).square_(),
        ]
    )
    inside = (v >= 0) & (slant * v >= height * beyond) & (u * height >= along * v)
    edges.masked_fill_(inside, 0)
    return h.square_() + edges.amin(0), edges, feet


def _part(x: Tensor, exact: Tensor, face: Tensor, rounding: Tensor) -> Tensor:
    """Which part of its face each point (3, N) is nearest to. What is outside by rounding only counts as inside."""
    _, edges, feet = _plane(x, exact, face)
    square, edge = edges.min(0)
    foot = feet.gather(0, edge[None])[0]
    # The foot on edge CA is measured from A.
    reversed_ = edge == 2
    first, second = torch.where(reversed_, 0, edge), torch.where(reversed_, 2, (edge + 1) % 3)
    outside = torch.where(foot <= 0, CORNER + first, torch.where(foot >= 1, CORNER + second, 1 + edge))
    return torch.where(square <= (4 * rounding).square(), 0, outside)
