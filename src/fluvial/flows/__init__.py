"""Functions that return an ordinary `Flow`, one published architecture each."""

from fluvial.flows.free_form import free_form

__all__ = ["free_form"]
