"""Weights from files, without running code: safetensors, or a state dict that ``torch.save`` wrote."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from spaces.errors import SpecError

State = dict[str, torch.Tensor]

_MOST_LISTED = 10
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")  # of DataParallel and torch.compile, at any depth
_NESTED = ("state_dict", "model_state_dict", "model", "network", "net", "module", "weights")
_SAVE_STATE = "save the state dict alone: torch.save(model.state_dict(), FILE)"


def load_weights(model: nn.Module, path: Path, num_classes: int | None = None) -> frozenset[str]:
    """Load a safetensors or state-dict file in place, converting to the model's own types.

    Names may carry what DataParallel, torch.compile or a trainer put before them, and of tensors that the model shares
    between several names one is enough.

    Args:
        model: what they are for.
        path: the file.
        num_classes: of the model, where a file that was made for another number of them may be given: what has one row
            for each class then stays as it is in the model.

    Returns:
        The names of what stayed so; none where the file fits.

    Raises:
        SpecError: the file is missing, broken, does not fit, or holds values that are no numbers; says which keys.
    """
    own = model.state_dict()
    state = _completed(_renamed(read_state(path), own), own)
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    # Old files lack BatchNorm's batch counter, which nothing in eval mode reads.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    shared = sorted(set(own) & set(state))
    fresh = _of_other_classes(state, own, num_classes)
    shared = [key for key in shared if key not in fresh]
    wrong = [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in shared if state[k].shape != own[k].shape]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)]
    if not any(keys for _, keys in problems):
        problems = [("that differ and are one tensor in the model", _torn(state, own))]
    found = "; ".join(f"{len(keys)} {what}: {_listed(keys)}" for what, keys in problems if keys)
    if found:
        raise SpecError("model.weights", str(path), f"these weights do not fit the model, {found}")
    kept = {key: value for key, value in state.items() if key not in fresh}
    loaded = {key: kept.get(key, value).to(value.dtype) for key, value in own.items()}
    if broken := [key for key in shared if _broken(loaded[key], own[key])]:
        raise SpecError("model.weights", str(path), f"nan or infinite values in {_listed(broken)}; give other weights")
    model.load_state_dict(loaded)
    return fresh


def _of_other_classes(state: State, own: State, num_classes: int | None) -> frozenset[str]:
    """Names of tensors that have a row for each of the model's classes, and in the file for each of other classes."""
    pairs = {key: (state[key].shape, own[key].shape) for key in set(own) & set(state)}
    wrong = {key: (theirs, ours) for key, (theirs, ours) in pairs.items() if theirs != ours}
    rows = {(theirs[:1], ours[:1]) for theirs, ours in wrong.values()}
    by_class = len(rows) == 1 and all(
        ours[:1] == (num_classes,) and len(theirs) == len(ours) and theirs[1:] == ours[1:]
        for theirs, ours in wrong.values()
    )
    return frozenset(wrong) if by_class else frozenset()


def load_what_fits(model: nn.Module, state: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """Load the tensors that fit, such as all but the last layer of a network made for other classes.

    Returns:
        The names of the model's own that were not there.
    """
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    fitting = _completed(fitting, own)
    model.load_state_dict({**own, **{key: value.to(own[key].dtype) for key, value in fitting.items()}})
    return frozenset(set(own) - set(fitting))


def save_state(what: nn.Module | Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a state dict as safetensors. Tensors that share memory are written once under each of their names."""
    state = what.state_dict() if isinstance(what, nn.Module) else what
    seen: set[int] = set()
    tensors: State = {}
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if place in seen else tensor.contiguous()
        seen.add(place)
    save_file(tensors, path)


def read_state(path: Path) -> State:
    """Tensors by name from a ``.safetensors`` file or a ``torch.save`` state dict (loaded without running code).

    A state dict inside a checkpoint, under ``state_dict``, ``model`` and the like, is found.

    Raises:
        SpecError: missing, unreadable, or something else than a state dict.
    """
    if not path.is_file():
        raise SpecError("model.weights", str(path), "no such file; leave weights out to train from scratch")
    if path.stat().st_size == 0:
        raise SpecError("model.weights", str(path), "the file is empty (0 bytes); copy or fetch it again")
    if _is_torchscript(path):
        needs = "a TorchScript archive, which holds a program; "
        raise SpecError("model.weights", str(path), needs + "save torch.jit.load(FILE).state_dict() with torch.save")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise SpecError("model.weights", str(path), f"not readable as weights: {str(error).splitlines()[0]}") from None
    except Exception:  # torch.load raises pickle.UnpicklingError with advice to turn its safety off
        needs = "refused: it holds more than tensors, or is no such file at all, and loading it could run code; "
        raise SpecError("model.weights", str(path), needs + _SAVE_STATE) from None
    found = _state_in(state)
    if found is None:
        raise SpecError("model.weights", str(path), f"a file with a plain state dict is needed; {_SAVE_STATE}")
    return found


def _state_in(loaded: Any) -> State | None:
    """A mapping of names to tensors, itself or one level down."""
    if not isinstance(loaded, Mapping):
        return None
    candidates = [loaded, *(loaded[key] for key in _NESTED if isinstance(loaded.get(key), Mapping))]
    plain = (each for each in candidates if each and all(isinstance(value, torch.Tensor) for value in each.values()))
    return next((dict(each) for each in plain), None)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _renamed(state: State, own: Iterable[str]) -> State:
    """The tensors under the model's own names, freed from what was put before them."""
    known = set(own)
    state = {key if key in known else _bare(key, known): value for key, value in state.items()}
    while state and not known & set(state) and len(firsts := {key.partition(".")[0] for key in state}) == 1:
        (first,) = firsts
        if not all(key.startswith(f"{first}.") for key in state):
            break
        state = {key.removeprefix(f"{first}."): value for key, value in state.items()}
    return state


def _bare(key: str, known: set[str]) -> str:
    """A name without wrappers, where that makes it one of the model's."""
    bare = _WRAPPERS.sub("", key)
    return bare if bare in known else key


def _completed(state: State, own: State) -> State:
    """With the values of tensors that stand under another name of the same tensor of the model."""
    first: dict[tuple[Any, ...], str] = {}
    for key in own:
        if key in state:
            first.setdefault(_identity(own[key]), key)
    absent = [key for key in own if key not in state and _identity(own[key]) in first]
    return {**state, **{key: state[first[_identity(own[key])]] for key in absent}}


def _torn(state: State, own: State) -> list[str]:
    """Names of one tensor of the model that have different values in a file."""
    first: dict[tuple[Any, ...], str] = {}
    pairs = [(key, first.setdefault(_identity(own[key]), key)) for key in own if key in state]
    return [f"{key} and {other}" for key, other in pairs if key != other and not torch.equal(state[key], state[other])]


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    place = tensor.data_ptr() if tensor.numel() else id(tensor)
    return place, tensor.shape, tensor.stride(), tensor.dtype


def _broken(given: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether values are no numbers where the model, as it was made, has numbers; masks hold infinite ones."""
    return given.is_floating_point() and bool((~given.isfinite() & own.isfinite()).any())


def _listed(keys: list[str]) -> str:
    more = len(keys) - _MOST_LISTED
    return ", ".join(keys[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
