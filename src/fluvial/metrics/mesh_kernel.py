"""The kernel of density estimates on meshes."""

import math

import numpy as np
import torch
from torch import Tensor

from fluvial.manifolds import Mesh
from fluvial.metrics.kernel import Kernel

# Beyond so many widths a kernel is nothing (e⁻²⁰); the search for what is nearer pays where the pairs are more than this.
REACH = 6.3
PAIRS = 2**27
PAIRS_AT_A_TIME = 2**19
# Faces are cut no finer than into so many cells in all.
MOST_CELLS = 2**18


class ChordGaussian(Kernel):
    r"""A Gaussian of the chord, in units of the root of the mesh's area.

    .. math:: k(x, y) = \frac{e^{-|x - y|^2 / 2h^2}}{\int_M e^{-|x' - y|^2 / 2h^2}\, \mathrm{d}A(x')}

    For a width h far below the radii of curvature that is the heat kernel at time h²/2; where two sheets of the surface come near each other,
    the chord does not know how far apart they are along the surface. The integral is a quadrature of degree 2 over cells of at most the size h
    into which the faces are cut; that is right to about 10⁻³, unless the cells would be more than 2¹⁸.
    """

    is_relative = True

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.size = math.sqrt(mesh.total_volume)
        self.centre = torch.as_tensor(mesh.vertex_array.mean(0))
        self._corners = torch.as_tensor(mesh.vertex_array[mesh.face_array])

    def features(self, x: Tensor) -> Tensor:
        """φ, shape (n, features)."""
        return (x - self.centre) / self.size

    def log_height(self, tau: float, points: Tensor) -> Tensor:
        """Log h, shape (m,) or (1,)."""
        corners, areas = self._cells(self.size / math.sqrt(tau))
        # Halfway from the middle of a cell to its corners: a rule that is exact for quadratic functions.
        nodes = (corners / 2 + corners.mean(1, keepdim=True) / 2).flatten(0, 1)
        nodes, weights = self.features(nodes), areas.repeat_interleave(3) / 3
        at = self.features(points)
        if len(at) * len(nodes) > PAIRS:
            return -torch.log(_near_sums(at, nodes, weights, tau))
        square = nodes.square().sum(1)
        sums = []
        for rows in at.split(max(1, PAIRS_AT_A_TIME // len(nodes))):
            exponent = torch.addmm(-(square + rows.square().sum(1, keepdim=True)) / 2, rows, nodes.T).clamp_max_(0).mul_(tau)
            sums.append(exponent.exp_() @ weights)
        return -torch.log(torch.cat(sums))

    def draw(self, points: Tensor, tau: float, generator: torch.Generator | None) -> Tensor:
        """One draw around each of the points, same shape."""
        corners, areas = self._cells(self.size / math.sqrt(tau))
        middle = corners.mean(1)
        around = (corners - middle.unsqueeze(1)).norm(dim=2).amax(1)
        scale = tau / self.size**2
        out = torch.empty_like(points)
        left = torch.arange(len(points))
        while len(left):
            again = []
            for rows in left.split(max(1, PAIRS_AT_A_TIME // len(areas))):
                # A cell by a bound on its mass, a place in it, and acceptance by the ratio of the density to the bound.
                nearest = (torch.cdist(points[rows], middle) - around).clamp_min(0)
                exponent = -scale / 2 * nearest.square()
                mass = (areas * (exponent - exponent.amax(1, keepdim=True)).exp()).cumsum(1)
                u = torch.rand(len(rows), 4, generator=generator, dtype=torch.float64)
                cell = torch.searchsorted(mass, u[:, 3:] * mass[:, -1:], right=True).clamp_max(len(areas) - 1)
                root = u[:, :1].sqrt()
                at = torch.cat([1 - root, root * (1 - u[:, 1:2]), root * u[:, 1:2]], 1)
                y = (at.unsqueeze(2) * corners[cell.squeeze(1)]).sum(1)
                excess = (y - points[rows]).square().sum(1) - nearest.gather(1, cell).squeeze(1).square()
                accepted = u[:, 2] < torch.exp(-scale / 2 * excess)
                out[rows[accepted]] = y[accepted]
                again.append(rows[~accepted])
            left = torch.cat(again)
        return out

    def _cells(self, longest: float) -> tuple[Tensor, Tensor]:
        """Corners (n, 3, 3) and areas (n,) of congruent parts of the faces, whose edges are at most so long."""
        edges = (self._corners - self._corners.roll(1, 1)).norm(dim=2).amax(1)
        fineness = (edges / longest).ceil().long().clamp_min(1)
        while int(fineness.square().sum()) > max(MOST_CELLS, len(edges)):
            fineness = (fineness * 0.9).long().clamp_min(1)
        pieces, areas, whole = [], [], torch.as_tensor(self.mesh.areas)
        for k in fineness.unique().tolist():
            chosen = fineness == k
            at = torch.as_tensor(_barycentric(k))
            pieces.append(torch.einsum("pcb,fbx->fpcx", at, self._corners[chosen]).flatten(0, 1))
            areas.append((whole[chosen] / k**2).repeat_interleave(k**2))
        return torch.cat(pieces), torch.cat(areas)


def _barycentric(k: int) -> np.ndarray:
    """Corners of the k² congruent parts of a triangle, shape (k², 3, 3), as weights of the triangle's corners."""
    i, j = (a.ravel() for a in np.meshgrid(np.arange(k), np.arange(k), indexing="ij"))
    upright, turned = i + j < k, i + j < k - 1
    corners = [np.stack([np.stack([i + a, j + b], -1) for a, b in ((0, 0), (1, 0), (0, 1))], 1)[upright]]
    corners.append(np.stack([np.stack([i + a, j + b], -1) for a, b in ((1, 0), (1, 1), (0, 1))], 1)[turned])
    first = np.concatenate(corners) / k
    return np.concatenate([1 - first.sum(-1, keepdims=True), first], -1)


def _near_sums(at: Tensor, nodes: Tensor, weights: Tensor, tau: float) -> Tensor:
    """Sums of weights · exp(−τ/2 distance²) over the nodes within reach."""
    from scipy.spatial import cKDTree

    tree = cKDTree(nodes.numpy())
    sums = []
    for rows in at.split(512):
        near = cKDTree(rows.numpy()).sparse_distance_matrix(tree, REACH / math.sqrt(tau), output_type="coo_matrix")
        mass = np.exp(-tau / 2 * near.data**2) * weights.numpy()[near.col]
        sums.append(torch.from_numpy(np.bincount(near.row, mass, minlength=len(rows))))
    return torch.cat(sums)
