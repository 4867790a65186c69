"""Linear bijections: the contract, exact orthogonality, fits on odd data, single and mixed precision."""

import pytest
import torch
from torch import nn

from fluvial.bases import Normal, VonMisesFisherMixture
from fluvial.codecs import (
    LU,
    ActNorm,
    Chain,
    Hadamard,
    Isometry,
    Permutation,
    PrincipalAxes,
    Rotation,
    Standardize,
    TrainableRotation,
    Whiten,
    fit_codec_,
)
from fluvial.flow import Flow
from fluvial.io import load, save
from fluvial.manifolds import Euclidean, Sphere
from fluvial.testing import check_bijection


def vectors(*event):
    return lambda n: 1.5 * torch.randn(n, *event, dtype=torch.float64) + 0.5


def circle_points(n):
    return Sphere(1).random_uniform(n, dtype=torch.float64)


def sphere_points(n):
    return Sphere(2).random_uniform(n, dtype=torch.float64)


def mixed(n, d):
    """Correlated data with coordinates in very different units."""
    x = torch.randn(n, d, dtype=torch.float64) @ (torch.eye(d, dtype=torch.float64) + 0.3 * torch.randn(d, d, dtype=torch.float64))
    return x * torch.logspace(-3, 3, d, dtype=torch.float64).add(0.5) + 10.0


def fitted(codec, weight=None):
    codec = codec.double()
    codec.fit_(mixed(60, codec.domain.dim).view(60, *codec.event_shape), None, weight)
    return codec


def moved(codec):
    """Away from its start, so that no derivative vanishes by symmetry."""
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return codec


def stretched(codec):
    """Behind an uneven scale, because a lone rotation leaves |z|², and with it the normal log-density, as it is."""
    scale = Standardize(codec.domain.event_shape)
    scale.scale.copy_(torch.linspace(0.5, 2.0, codec.domain.dim))
    return Chain([scale, codec, scale])


# A uniform density stays as it is when the sphere is turned.
BUMPS = {"base": lambda: VonMisesFisherMixture(Sphere(2), components=2)}

BIJECTIONS = {
    "permutation": (lambda: Permutation([2, 0, 1]), vectors(3), {}),
    "reversal": (lambda: Permutation.reversed(4), vectors(4), {}),
    "permutation of one": (lambda: Permutation([0]), vectors(1), {}),
    "permutation on the sphere": (lambda: Permutation.random(3, seed=1, manifold=Sphere(2)), sphere_points, BUMPS),
    "rotation": (lambda: Rotation(4), vectors(4), {}),
    "rotation of one": (lambda: Rotation(1), vectors(1), {}),
    "rotation on the circle": (
        lambda: Rotation(2, manifold=Sphere(1)),
        circle_points,
        {"base": lambda: VonMisesFisherMixture(Sphere(1), components=2)},
    ),
    "rotation on the sphere": (lambda: Rotation(3, manifold=Sphere(2)), sphere_points, BUMPS),
    "exponential": (lambda: stretched(TrainableRotation(3)), vectors(3), {}),
    "exponential moved": (lambda: stretched(moved(TrainableRotation(4, start="random"))), vectors(4), {}),
    "exponential of two": (lambda: stretched(TrainableRotation(2)), vectors(2), {}),
    "trainable rotation of one": (lambda: TrainableRotation(1), vectors(1), {}),
    "householder": (lambda: stretched(TrainableRotation(3, method="householder")), vectors(3), {}),
    "householder moved": (lambda: stretched(moved(TrainableRotation(4, method="householder", reflections=2))), vectors(4), {}),
    "householder random": (lambda: stretched(TrainableRotation(3, method="householder", start="random")), vectors(3), {}),
    "trainable rotation on the sphere": (
        lambda: moved(TrainableRotation(3, manifold=Sphere(2))),
        sphere_points,
        BUMPS,
    ),
    "lu": (lambda: moved(LU(3)), vectors(3), {}),
    "lu permuted": (lambda: moved(LU(4, order=[2, 3, 1, 0])), vectors(4), {}),
    "lu of one": (lambda: moved(LU(1)), vectors(1), {}),
    "act norm": (lambda: moved(ActNorm(3)), vectors(3), {}),
    "act norm fitted": (lambda: moved(fitted(ActNorm(3))), vectors(3), {}),
    "act norm on images": (lambda: moved(ActNorm((1, 2, 2))), vectors(1, 2, 2), {}),
    "hadamard of one": (lambda: Hadamard(1), vectors(1), {}),
    "hadamard of a power of two": (lambda: Hadamard(8), vectors(8), {}),
    "hadamard of seven": (lambda: Hadamard(7, seed=3), vectors(7), {}),
    "hadamard on the sphere": (lambda: Hadamard(3, manifold=Sphere(2)), sphere_points, BUMPS),
    "whiten": (lambda: Whiten(3), vectors(3), {}),
    "whiten pca": (lambda: fitted(Whiten(3)), vectors(3), {}),
    "whiten zca": (lambda: fitted(Whiten(3, method="zca")), vectors(3), {}),
    "whiten cholesky": (lambda: fitted(Whiten(3, method="cholesky")), vectors(3), {}),
    "whiten images": (lambda: fitted(Whiten((1, 2, 2), ridge=0.1)), vectors(1, 2, 2), {}),
    "whiten one": (lambda: fitted(Whiten(1)), vectors(1), {}),
    "principal axes": (lambda: PrincipalAxes(3), vectors(3), {}),
    "principal axes fitted": (lambda: fitted(PrincipalAxes(3)), vectors(3), {}),
    "principal axes of images": (lambda: fitted(PrincipalAxes((1, 2, 2))), vectors(1, 2, 2), {}),
    "chain": (lambda: Chain([ActNorm(4), moved(LU(4)), Hadamard(4), Rotation(4), Permutation.reversed(4)]), vectors(4), {}),
}


@pytest.mark.parametrize(("make", "points", "options"), BIJECTIONS.values(), ids=BIJECTIONS.keys())
def test_bijection(make, points, options):
    check_bijection(make, points, **options)


ISOMETRIES = {
    "permutation": lambda n: Permutation.random(n),
    "rotation": lambda n: Rotation(n),
    "exponential": lambda n: moved(TrainableRotation(n, start="random")),
    "far exponential": lambda n: _with(TrainableRotation(n), 5.0),
    "householder": lambda n: TrainableRotation(n, method="householder", start="random"),
    "householder in pairs": lambda n: TrainableRotation(n, method="householder"),
    "hadamard": lambda n: Hadamard(n),
}


def _with(codec, size):
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
    return codec


@pytest.mark.parametrize("n", [1, 2, 3, 33, 64])
@pytest.mark.parametrize("make", ISOMETRIES.values(), ids=ISOMETRIES.keys())
def test_isometries_are_orthogonal_in_single_and_double_precision(make, n):
    codec = make(n)
    for dtype, tolerance in ((torch.float32, 5e-6), (torch.float64, 1e-12)):
        # Double precision after single: what was rounded in storage must not stay in the map.
        matrix = codec.to(dtype).encode(torch.eye(n, dtype=dtype))
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(n, dtype=dtype), rtol=0, atol=tolerance)
        torch.testing.assert_close(codec.decode(matrix), torch.eye(n, dtype=dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("name", ["rotation", "exponential", "far exponential", "householder"])
def test_rotations_do_not_reflect(name, n):
    matrix = ISOMETRIES[name](n).double().encode(torch.eye(n, dtype=torch.float64)).T
    assert torch.linalg.det(matrix).item() == pytest.approx(1)


def test_an_isometry_is_refused_where_it_is_none():
    for make in (Rotation, TrainableRotation, Hadamard):
        with pytest.raises(ValueError, match=r"3 features can be turned on Euclidean\(3\) or Sphere\(2\), got Sphere\(3\)"):
            make(3, manifold=Sphere(3))
        with pytest.raises(ValueError, match="got Euclidean"):
            make(4, manifold=Euclidean((2, 2)))
        with pytest.raises(ValueError, match="features must be positive, got 0"):
            make(0)
        assert isinstance(make(3, manifold=Sphere(2)), Isometry)


# ---------------------------------------------------------------------------------------------------------------- permutations


@pytest.mark.parametrize(
    ("order", "message"),
    [([], "got none"), ([0, 0], "got 0 twice"), ([1, 2], "0 … 1 once, got 2"), ([-1, 0], "got -1"), ([0, 2, 1, 2], "got 2 twice")],
)
def test_what_is_no_permutation_is_named(order, message):
    with pytest.raises(ValueError, match=message):
        Permutation(order)
    with pytest.raises(ValueError, match=message):
        LU(max(1, len(order)), order=order)


def test_random_orders_follow_their_seed():
    assert Permutation.random(20, seed=3).order == Permutation.random(20, seed=3).order != Permutation.random(20, seed=4).order
    assert Permutation.reversed(3).encode(torch.arange(3.0)[None]).tolist() == [[2.0, 1.0, 0.0]]
    with pytest.raises(ValueError, match="got none"):
        Permutation.random(0)


# ------------------------------------------------------------------------------------------------------------------- rotations


def test_rotations_are_uniform():
    """Haar: E Q = 0, E Q_ij² = 1/n, and in two dimensions an angle uniform on the whole circle."""
    many = torch.stack([Rotation(3, seed=k).matrix for k in range(2000)]).double()
    assert many.mean(0).abs().max() < 5 / (3 * 2000) ** 0.5
    torch.testing.assert_close(many.square().mean(0), torch.full((3, 3), 1 / 3, dtype=torch.float64), rtol=0, atol=5 * (4 / 45 / 2000) ** 0.5)
    angles = torch.stack([torch.atan2(q[1, 0], q[0, 0]) for q in (Rotation(2, seed=k).matrix for k in range(2000))])
    for k in (1, 2):
        assert torch.exp(1j * k * angles).mean().abs() < 5 / 2000**0.5


def test_a_rotation_is_stored_with_the_weights(tmp_path):
    flow = Flow(Rotation(5, seed=7), Normal(5))
    with torch.no_grad():
        flow.codec.matrix.copy_(Rotation(5, seed=8).matrix)
    save(flow, tmp_path / "flow.safetensors")
    torch.testing.assert_close(load(tmp_path / "flow.safetensors").codec.matrix, Rotation(5, seed=8).matrix, rtol=0, atol=0)
    assert not torch.equal(Rotation(5, seed=7).matrix, Rotation(5, seed=8).matrix)


def test_the_reflections_multiplied_at_once_are_their_product(double):
    codec = moved(TrainableRotation(5, method="householder", reflections=4, start="random"))
    product = torch.eye(5)
    for v in codec.weight:
        product = product @ (torch.eye(5) - 2 * torch.outer(v, v) / v.dot(v))
    torch.testing.assert_close(codec.matrix(), product)
    x = torch.randn(3, 5)
    torch.testing.assert_close(codec.encode(x), x @ product.T)


def test_the_exponential_turns_by_its_angle(double):
    codec = TrainableRotation(2)
    with torch.no_grad():
        codec.weight.fill_(0.3)
    angle = torch.tensor(0.3)
    torch.testing.assert_close(codec.matrix(), torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()]).view(2, 2))


@pytest.mark.parametrize("options", [{}, {"start": "random"}, {"method": "householder"}, {"method": "householder", "start": "random"}])
def test_a_trainable_rotation_learns_any_rotation(double, options):
    codec, target, x = TrainableRotation(4, **options), Rotation(4, seed=5).matrix, torch.randn(50, 4)
    if options.get("start") != "random":
        torch.testing.assert_close(codec.encode(x), x)
    optimizer = torch.optim.LBFGS(codec.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (codec.encode(x) - x @ target.T).square().mean()
        value.backward()
        assert all(bool((p.grad != 0).any()) for p in codec.parameters())
        return value

    optimizer.step(loss)
    torch.testing.assert_close(codec.matrix(), target, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cayley"}, "method is 'exponential' or 'householder'"),
        ({"start": "zero"}, "start 'identity' or 'random', got 'exponential' and 'zero'"),
        ({"reflections": 2}, "reflections=2 belongs to method='householder'"),
        ({"method": "householder", "reflections": 3}, "an even number of reflections"),
        ({"method": "householder", "reflections": 0}, "an even number of reflections"),
    ],
)
def test_trainable_rotation_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        TrainableRotation(3, **options)


# -------------------------------------------------------------------------------------------------------------------------- LU


def test_lu_is_the_product_of_its_factors(double):
    codec = moved(LU(4, order=[2, 3, 1, 0]))
    weight = codec.weight.detach()
    lower, upper, scale = weight.tril(-1) + torch.eye(4), weight.triu(1) + torch.eye(4), torch.diag(weight.diag().exp())
    x = torch.randn(5, 4)
    torch.testing.assert_close(codec.encode(x), x @ (torch.eye(4)[[2, 3, 1, 0]] @ scale @ lower @ upper).T + codec.bias)
    torch.testing.assert_close(LU(4).encode(x), x)


def test_lu_keeps_its_digits_where_scales_are_far_apart():
    for sign in (1, -1):
        codec = LU(16)
        with torch.no_grad():
            codec.weight.copy_(0.3 * torch.randn(16, 16) + sign * torch.diag(torch.linspace(-10, 10, 16)))
        x = torch.randn(200, 16)
        torch.testing.assert_close(codec.decode(codec.encode(x)), x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("make", [lambda: LU(3), lambda: ActNorm(3)])
def test_at_the_identity_every_parameter_is_learned(double, make):
    codec, x = make(), torch.randn(20, 3) + 1
    torch.testing.assert_close(codec.encode(x), x)
    Flow(codec, Normal(3)).log_prob(x).mean().backward()
    assert all(bool((p.grad != 0).all()) for p in codec.parameters())


def test_lu_refusals():
    with pytest.raises(ValueError, match="features must be positive"):
        LU(0)
    with pytest.raises(ValueError, match="order must hold 3 numbers, one for each feature, got 2"):
        LU(3, order=[1, 0])


# -------------------------------------------------------------------------------------------------------------------- Hadamard


@pytest.mark.parametrize("n", [4, 64, 128, 1024, 8192])
def test_hadamard_is_the_transform_of_walsh(double, n):
    """For a power of two every entry of the matrix is ±1/√n, and rows are Walsh functions up to signs: products of two are one again."""
    codec = Hadamard(n)
    points = torch.eye(n)[:: max(1, n // 8)]
    z = codec.encode(points) * n**0.5
    torch.testing.assert_close(z.abs(), torch.ones_like(z))
    torch.testing.assert_close(codec.decode(z / n**0.5), points)
    assert codec.signs.abs().eq(1).all()


@pytest.mark.parametrize("n", [3, 5, 12, 63, 65, 100, 127, 129])
def test_hadamard_mixes_all_coordinates_of_any_number(double, n):
    matrix = Hadamard(n).encode(torch.eye(n)).T
    # Every output depends on many inputs, none mainly on one (were it a random direction, Σ Q⁴ would be about 3/n).
    assert (matrix != 0).double().mean() > 0.5
    assert (matrix**4).sum(1).max() < 13 / n or n < 12
    assert (matrix.abs().max(1).values < 1).all()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n))


def test_hadamard_follows_its_seed_and_is_stored(tmp_path):
    x = torch.randn(2, 12)
    assert torch.equal(Hadamard(12, seed=1).encode(x), Hadamard(12, seed=1).encode(x))
    assert not torch.equal(Hadamard(12, seed=1).encode(x), Hadamard(12, seed=2).encode(x))
    flow = Flow(Hadamard(12, seed=1), Normal(12))
    flow.load_state_dict({**flow.state_dict(), **{f"codec.{k}": v for k, v in Hadamard(12, seed=2).state_dict().items()}})
    save(flow, tmp_path / "flow.safetensors")
    again = load(tmp_path / "flow.safetensors")
    assert torch.equal(again.encode(x), Hadamard(12, seed=2).encode(x))
    torch.testing.assert_close(again.decode(again.encode(x)), x)


# ------------------------------------------------------------------------------------------------------------------- precision

EVERY = {
    "permutation": lambda: Permutation.random(8),
    "rotation": lambda: Rotation(8),
    "exponential": lambda: moved(TrainableRotation(8)),
    "householder": lambda: moved(TrainableRotation(8, method="householder")),
    "lu": lambda: moved(LU(8)),
    "act norm": lambda: _fit(ActNorm(8)),
    "hadamard": lambda: Hadamard(8),
    "hadamard of eleven": lambda: Hadamard(11),
    "pca": lambda: _fit(Whiten(8)),
    "zca": lambda: _fit(Whiten(8, method="zca")),
    "cholesky": lambda: _fit(Whiten(8, method="cholesky")),
    "principal axes": lambda: _fit(PrincipalAxes(8)),
}


def _fit(codec):
    codec.fit_(3 * torch.randn(100, 8) @ (torch.eye(8) + 0.2 * torch.randn(8, 8)) + 5)
    return codec


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
def test_mixed_precision_loses_no_digits(make):
    codec = make()
    x = 3 * torch.randn(50, codec.domain.dim) + 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, ladj = codec.encode_ladj(x)
        back, _ = codec.decode_ladj(z)
        rough = codec.encode(x.bfloat16())
    assert z.dtype == back.dtype == ladj.dtype == torch.float32
    torch.testing.assert_close(z, codec.encode(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back, x, rtol=0, atol=2e-4)
    assert rough.dtype == (torch.bfloat16 if isinstance(codec, Permutation) else torch.float32)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
def test_single_precision_then_double(make):
    """A flow trained in single precision and evaluated in double is an exact bijection there."""
    codec = make().double()
    x = 3 * torch.randn(50, codec.domain.dim, dtype=torch.float64) + 5
    torch.testing.assert_close(codec.decode(codec.encode(x)), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_extremes(make, scale):
    codec = make()
    x = (scale * torch.randn(100, codec.domain.dim)).requires_grad_()
    z, ladj = codec.encode_ladj(x)
    (z.square().sum() + ladj.sum()).backward()
    assert all(bool(torch.isfinite(value).all()) for value in (z, ladj, x.grad, *(p.grad for p in codec.parameters())))
    torch.testing.assert_close(codec.decode(z), x, rtol=0, atol=1e-4 * scale)
    broken = x.detach().clone()
    broken[3, 0] = torch.nan
    z = codec.encode(broken)
    assert torch.isnan(z[3]).any()
    assert torch.isfinite(z[:3]).all()


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
def test_batches_of_any_shape(make):
    codec = make().double()
    x = torch.randn(2, 3, codec.domain.dim, dtype=torch.float64)
    z, ladj = codec.encode_ladj(x)
    back, inverse = codec.decode_ladj(z)
    assert ladj.shape == inverse.shape == (2, 3)
    torch.testing.assert_close(z[1], codec.encode(x[1]))
    torch.testing.assert_close(back, x)
    assert codec.encode_ladj(x[0, :0])[1].shape == (0,)


def test_the_whole_chain_is_one_graph():
    """torch.compile sees no Python and no tensor read on the host: one graph, equal values and gradients."""
    codec = Chain([make().double() for name, make in EVERY.items() if name != "hadamard of eleven"])
    x = torch.randn(6, 8, dtype=torch.float64)

    def loss(x):
        z, ladj = codec.encode_ladj(x)
        back, _ = codec.decode_ladj(z + 1)
        return (z.square().sum(-1) - ladj + back.sin().sum(-1)).mean()

    torch._dynamo.reset()
    found = []
    for fn in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        codec.zero_grad()
        value = fn(x)
        value.backward()
        found.append((value.detach(), *(p.grad.clone() for p in codec.parameters())))
    torch.testing.assert_close(found[1], found[0])


def test_parameters_can_be_vmapped(double):
    """Ensembles of equal shape run as one: each module is a pure function of its tensors."""
    for make in (lambda: moved(LU(3)), lambda: moved(TrainableRotation(3)), lambda: moved(TrainableRotation(3, method="householder"))):
        members = [make() for _ in range(3)]
        stacked, _ = torch.func.stack_module_state(members)
        x = torch.randn(5, 3)
        one = _Encode(members[0])
        found = torch.func.vmap(lambda p: torch.func.functional_call(one, {f"codec.{k}": v for k, v in p.items()}, (x,)))(stacked)  # noqa: B023
        torch.testing.assert_close(found, torch.stack([member.encode(x) for member in members]))


class _Encode(nn.Module):
    def __init__(self, codec):
        super().__init__()
        self.codec = codec

    def forward(self, x):
        return self.codec.encode(x)


def test_a_flow_of_linear_maps_learns_a_correlated_normal():
    """Truth: the entropy of the normal distribution that the data are drawn from."""
    import fluvial

    torch.manual_seed(3)
    mix = torch.eye(3) + 0.7 * torch.randn(3, 3)
    x = torch.randn(4000, 3) @ mix.T + 4
    entropy = 1.5 * (1 + torch.log(torch.tensor(2 * torch.pi))) + torch.linalg.slogdet(mix)[1]
    flow = Flow(Chain([ActNorm(3), TrainableRotation(3, method="householder"), LU(3)]), Normal(3))
    fluvial.fit(flow, x, max_steps=600, learning_rate=2e-2, batch_size=500, progress=False)
    test = torch.randn(20_000, 3) @ mix.T + 4
    nll = -flow.log_prob(test)
    assert nll.mean().item() == pytest.approx(entropy.item(), abs=0.02 + 3 * (nll.std() / 20_000**0.5).item())
    exact = Flow(Whiten(3), Normal(3))
    fit_codec_(exact.codec, x)
    assert -exact.log_prob(test).mean().item() == pytest.approx(entropy.item(), abs=0.02 + 3 * (nll.std() / 20_000**0.5).item())


def test_a_rotation_of_one_coordinate_follows_the_model():
    rotation = TrainableRotation(1).double()
    assert rotation.matrix().dtype == torch.float64
    assert rotation.to("meta").matrix().device.type == "meta"
