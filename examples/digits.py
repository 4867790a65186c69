"""Handwritten digits through a bottleneck, beside principal components of the same dimension.

python examples/digits.py --steps 5000 --latent 8
"""

import argparse

import torch

import fluvial as fl


def drawing(image: torch.Tensor) -> list[str]:
    """Eight lines of text for 64 pixels with values 0 … 16."""
    shades = " .:-=+*#%@"
    level = (image.view(8, 8) / 17 * len(shades)).long().clamp(0, len(shades) - 1)
    return ["".join(2 * shades[k] for k in row) for row in level.tolist()]


def main() -> None:
    """Fit, compare, and draw samples as text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="optimisation steps; a minute or two")
    parser.add_argument("--latent", type=int, default=8, help="dimensions of the bottleneck")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    train, validation, test = fl.data.digits().split()
    # One common scale, so that distances between images keep their meaning.
    flow = fl.flows.free_form(64, latent=arguments.latent, width=128, standardize="isotropic")
    history = fl.fit(flow, train, validation=validation, max_steps=arguments.steps, batch_size=128, validate_every=max(1, arguments.steps // 20))
    print(history)

    # Pixels are integers: both models see them with the uniform noise that makes them continuous.
    x_train, x = (part.spec.perturb(part.x, torch.Generator().manual_seed(0)) for part in (train, test))
    pca = fl.metrics.pca_gaussian(x_train, arguments.latent)
    with torch.no_grad():
        samples = flow.sample(len(x), generator=torch.Generator().manual_seed(0))
        rows = {"flow": (flow.reconstruct(x), samples), "PCA + Gaussian": (pca.reconstruct(x), pca.sample(len(x)))}
    for name, (reconstructed, drawn) in rows.items():
        error = (x - reconstructed).square().sum(1).mean().sqrt()
        print(f"{name}: reconstruction {error:.3f}, samples told from digits with accuracy {fl.metrics.c2st(drawn, x).accuracy}")
    print("three samples of the flow:")
    for lines in zip(*(drawing(sample) for sample in samples[:3])):
        print("   ".join(lines))


if __name__ == "__main__":
    main()
