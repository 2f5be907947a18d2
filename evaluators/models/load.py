"""A model by name, with weights from a file."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from evaluators.settings import ModelSettings
from spaces.errors import SpecError, nearest


def build(settings: ModelSettings) -> nn.Module:
    """The named network in eval mode, float32, with the given weights, or freshly initialised from seed 0.

    Raises:
        SpecError: an unknown name, or weights that do not fit.
    """
    library, _, name = settings.name.partition("/")
    if library != "torchvision":
        raise SpecError("model.name", settings.name, "names look like torchvision/resnet50")
    # Classification models only: the listing also holds detection, segmentation, video and optical flow.
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = nearest(settings.name, [f"torchvision/{each}" for each in known])
        raise SpecError("model.name", settings.name, f"no such model; {near}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, num_classes=settings.num_classes)
    if settings.weights is not None:
        load_weights(model, settings.weights)
    return model.eval()


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
    found = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:10])}" for what, keys in problems if keys)
    if found:
        raise SpecError("model.weights", str(path), f"these weights do not fit the model, {found}")
    model.load_state_dict({key: state.get(key, value).to(value.dtype) for key, value in own.items()})


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
