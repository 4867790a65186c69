"""Functions that return an ordinary `Flow`, one published architecture each."""

from fluvial.flows.circular import circular, on_torus
from fluvial.flows.coupling import coupling
from fluvial.flows.free_form import free_form
from fluvial.flows.on_sphere import on_sphere

__all__ = ["circular", "coupling", "free_form", "on_sphere", "on_torus"]
