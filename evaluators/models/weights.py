"""Weights from files, without running code: safetensors, or a state dict that ``torch.save`` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from spaces.errors import SpecError

_MOST_LISTED = 10


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors or state-dict file in place, converting to the model's own types.

    Raises:
        SpecError: the file is missing, broken, or does not fit; says which keys.
    """
    state = read_state(path)
    own = model.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    # Old files lack BatchNorm's batch counter, which nothing in eval mode reads.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    shared = sorted(set(own) & set(state))
    wrong = [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in shared if state[k].shape != own[k].shape]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)]
    found = "; ".join(f"{len(keys)} {what}: {_listed(keys)}" for what, keys in problems if keys)
    if found:
        raise SpecError("model.weights", str(path), f"these weights do not fit the model, {found}")
    model.load_state_dict({key: state.get(key, value).to(value.dtype) for key, value in own.items()})


def load_what_fits(model: nn.Module, state: Mapping[str, torch.Tensor]) -> bool:
    """Load the tensors that fit, such as all but the last layer of a network made for other classes.

    Returns:
        Whether all of the model's own were there.
    """
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict({**own, **{key: value.to(own[key].dtype) for key, value in fitting.items()}})
    return set(fitting) == set(own)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a ``.safetensors`` file or a ``torch.save`` state dict (loaded without running code).

    Raises:
        SpecError: missing or unreadable.
    """
    if not path.is_file():
        raise SpecError("model.weights", str(path), "no such file; leave weights out to train from scratch")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise SpecError("model.weights", str(path), f"not readable as weights: {str(error).splitlines()[0]}") from None
    except Exception as error:  # torch.load raises pickle.UnpicklingError with advice to turn its safety off
        raise SpecError("model.weights", str(path), f"refused as weights: {type(error).__name__}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SpecError("model.weights", str(path), "a file with a plain state dict is needed")
    return state


def _listed(keys: list[str]) -> str:
    more = len(keys) - _MOST_LISTED
    return ", ".join(keys[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
