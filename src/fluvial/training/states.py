"""Copies of everything that changes while training, to come back to."""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def clone(state: Any, device: torch.device | None = None) -> Any:
    """A deep copy of nested dicts and lists, tensors detached and, if asked, on another device."""
    if isinstance(state, Tensor):
        return state.detach().to(device=device, copy=True)
    if isinstance(state, dict):
        return {name: clone(value, device) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(clone(value, device) for value in state)
    return copy.deepcopy(state)


def capture(flow: nn.Module, objective: nn.Module) -> dict[str, Any]:
    """Weights and buffers of both, copied."""
    return {"flow": clone(dict(flow.state_dict())), "objective": clone(dict(objective.state_dict()))}


def restore(state: dict[str, Any], flow: nn.Module, objective: nn.Module) -> None:
    """Put captured weights and buffers back in place; nothing is aliased."""
    flow.load_state_dict(state["flow"])
    objective.load_state_dict(state["objective"])


@contextmanager
def swapped_in(state: dict[str, Any], flow: nn.Module, objective: nn.Module) -> Iterator[None]:
    """The captured weights inside, the present ones again afterwards."""
    present = capture(flow, objective)
    restore(state, flow, objective)
    try:
        yield
    finally:
        restore(present, flow, objective)


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A stream of random numbers of its own for each purpose of one seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    # 32 bits: not every device takes more.
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:4], "little"))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Torch's own streams, which dropout and the like draw from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put them back; a stream of a device that is not there is left out."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own streams seeded inside, and afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
