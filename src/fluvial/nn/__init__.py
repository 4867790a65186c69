"""Networks that take (x, c)."""

from fluvial.nn.activations import ACTIVATIONS, activation, push_activation
from fluvial.nn.convolutional import ConvolutionalDecoder, ConvolutionalEncoder, Flatten
from fluvial.nn.mlp import MLP
from fluvial.nn.residual import Residual
from fluvial.nn.scaling import ConditionScaling

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "ConditionScaling",
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "Flatten",
    "Residual",
    "activation",
    "push_activation",
]
