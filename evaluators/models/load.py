"""A model by name: from torchvision, timm or ultralytics, or made by a function of the user's own."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from evaluators import user_code
from evaluators.models.detector import prepare_detector
from evaluators.models.weights import State, load_weights, load_what_fits
from evaluators.settings import PRETRAINED, ModelSettings
from evaluators.store import cache_folder
from spaces.errors import SpecError, SplitsearchError, nearest


@dataclass(frozen=True)
class Loaded:
    """A network on the CPU in eval mode, float32.

    ``fresh`` are the names in its state dict whose values were not given: without weights all of them, from seed 0;
    with weights that were made for another number of classes, those of the last layer.
    """

    network: nn.Module
    fresh: frozenset[str]

    @property
    def trained(self) -> bool:
        """Whether all its weights were given."""
        return not self.fresh


def build(settings: ModelSettings, image_size: int | None = None) -> Loaded:
    """The named network with the weights that the settings name.

    Args:
        settings: name, classes, weights and options.
        image_size: side of its input in pixels, for layers that take their size from the first picture.

    Raises:
        SpecError: an unknown name, options that the model does not take, or weights that do not fit.
        SplitsearchError: pretrained weights that cannot be fetched.
    """
    make, pretrained = _find(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _complete(_plain(make(), settings), settings, image_size)
    if settings.weights == PRETRAINED:
        return Loaded(network, load_what_fits(network, _fetch(settings, pretrained)))
    if settings.weights is not None:
        return Loaded(network, load_weights(network, Path(settings.weights), settings.num_classes))
    return Loaded(network, frozenset(network.state_dict()))


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def _plain(made: Any, settings: ModelSettings) -> nn.Module:
    """The network itself, out of what makes it run on several GPUs or compiled."""
    if isinstance(made, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        needs = "it made a TorchScript program, which cannot be cut; return the torch.nn.Module that it was made from"
        raise SpecError("model.name", settings.name, needs)
    if not isinstance(made, nn.Module):
        raise SpecError("model.name", settings.name, f"a torch.nn.Module is needed, it made a {type(made).__name__}")
    network = _unwrapped(made)
    for module in list(network.modules()):
        for name, child in module._modules.items():
            module._modules[name] = _unwrapped(child) if child is not None else None
    return network


def _unwrapped(module: nn.Module) -> nn.Module:
    inner = module.module if isinstance(module, _WRAPPERS) else getattr(module, "_orig_mod", None)  # torch.compile's
    return _unwrapped(inner) if isinstance(inner, nn.Module) else module


def _complete(network: nn.Module, settings: ModelSettings, image_size: int | None) -> nn.Module:
    """In eval mode and float32, all its layers of a size."""
    network = network.cpu().float().eval()
    if lazy := [name for name, module in network.named_modules() if _is_lazy(module)]:
        if image_size is None:
            needs = f"{', '.join(lazy)} of it take their size from the first picture; give the sizes"
            raise SpecError("model.name", settings.name, needs)
        try:
            with torch.no_grad():
                network(torch.zeros(2, 3, image_size, image_size))
        except Exception as error:  # the user's own code, which may raise anything
            reason = f"its lazy layers cannot be sized at {image_size} px: {type(error).__name__}: {error}"
            raise SpecError("model.name", settings.name, reason) from error
    return network


def _is_lazy(module: nn.Module) -> bool:
    return isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()


_Found = tuple[Callable[[], Any], Callable[[], State] | None]


def _find(settings: ModelSettings) -> _Found:
    """How to make the network, and how to get pretrained weights where the library offers them."""
    if settings.name.startswith(user_code.PREFIX):
        return _own(settings)
    library, _, name = settings.name.partition("/")
    if library not in _LIBRARIES or not name:
        raise SpecError(
            "model.name",
            settings.name,
            f"names look like torchvision/resnet50; libraries: {', '.join(_LIBRARIES)}, and python: for your own",
        )
    return _LIBRARIES[library](settings, name)


def _torchvision(settings: ModelSettings, name: str) -> _Found:
    # Classification models only: the listing also holds detection, segmentation, video and optical flow.
    known = torchvision.models.list_models(module=torchvision.models)
    _check_known(settings, name, known)

    def make() -> nn.Module:
        # These two initialise themselves in a slow way of their own, and warn about it.
        own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return _call(settings, torchvision.models.get_model, name, weights=None, **own)

    return make, lambda: torchvision.models.get_model(name, weights="DEFAULT").state_dict()


def _timm(settings: ModelSettings, name: str) -> _Found:
    timm = _extra(settings, "timm")
    if not timm.is_model(name):
        _check_known(settings, name, timm.list_models())

    def make() -> nn.Module:
        return _call(settings, timm.create_model, name, pretrained=False)

    return make, lambda: timm.create_model(name, pretrained=True).state_dict()


def _ultralytics(settings: ModelSettings, name: str) -> _Found:
    library = import_ultralytics(settings)
    _check_known(settings, name, _yolo_names(Path(library.__file__).parent))

    def make() -> nn.Module:
        tasks = importlib.import_module("ultralytics.nn.tasks")
        if settings.options:
            raise SpecError("model.options", dict(settings.options), "ultralytics models take none")
        model: nn.Module = tasks.DetectionModel(f"{name}.yaml", nc=settings.num_classes, verbose=False)
        prepare_detector(model, importlib.import_module("ultralytics.cfg").get_cfg())
        return model

    return make, lambda: library.YOLO(f"{name}.pt").model.state_dict()


def _own(settings: ModelSettings) -> _Found:
    factory = user_code.load_factory(settings.name, "model.name")

    def make() -> Any:
        try:
            return user_code.call(functools.partial(factory, **settings.options), num_classes=settings.num_classes)
        except Exception as error:  # the user's own code, which may raise anything
            reason = f"calling it fails: {type(error).__name__}: {error}"
            raise SpecError("model.name", settings.name, reason) from error

    return make, None


_LIBRARIES: dict[str, Callable[[ModelSettings, str], _Found]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "ultralytics": _ultralytics,
}


def _call(settings: ModelSettings, make: Callable[..., Any], name: str, **options: Any) -> Any:
    """Make a library's model with the number of classes and the settings' options."""
    try:
        return make(name, num_classes=settings.num_classes, **{**options, **settings.options})
    except Exception as error:  # a library's own checks, which raise anything
        reason = str(error) or type(error).__name__
        if not settings.options:
            raise SpecError("model.name", settings.name, f"it cannot be made: {reason}") from error
        given = dict(settings.options)
        raise SpecError("model.options", given, f"{settings.name} does not take them: {reason}") from error


def _check_known(settings: ModelSettings, name: str, known: list[str]) -> None:
    if name not in known:
        library = settings.name.partition("/")[0]
        near = nearest(settings.name, [f"{library}/{each}" for each in known])
        raise SpecError("model.name", settings.name, f"no such model; {near}")


def _extra(settings: ModelSettings, library: str, extra: str | None = None) -> Any:
    if importlib.util.find_spec(library) is None:
        advice = f"{library} is not installed: pip install 'splitsearch[{extra or library}]'"
        raise SpecError("model.name", settings.name, advice)
    return importlib.import_module(library)


def _fetch(settings: ModelSettings, pretrained: Callable[[], State] | None) -> State:
    if pretrained is None:
        raise SpecError("model.weights", PRETRAINED, "a model of your own has none; give a file")
    try:
        return pretrained()
    except Exception as error:  # three libraries, and whatever their network code raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SplitsearchError(
            f"the pretrained weights of {settings.name} cannot be had ({type(error).__name__}: {reason}); check the "
            "network, or give model.weights a file, or leave it out to train from scratch"
        ) from error


_REPORTS = ("sync", "clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")


def import_ultralytics(settings: ModelSettings) -> Any:
    """ultralytics, kept from looking for the network, installing packages and writing outside our cache.

    It does the first at import, unless told so before. Only ``pretrained`` weights let it go online, and even then it
    reports nothing to anybody: no usage statistics, no experiment trackers.
    """
    if settings.weights != PRETRAINED:
        os.environ.setdefault("YOLO_OFFLINE", "1")
    os.environ.setdefault("YOLO_AUTOINSTALL", "0")
    os.environ.setdefault("YOLO_VERBOSE", "0")
    if "YOLO_CONFIG_DIR" not in os.environ:
        folder = cache_folder("ultralytics")
        _lay_out_font(folder / "Ultralytics" / "Arial.ttf")
        os.environ["YOLO_CONFIG_DIR"] = str(folder)
    library = _extra(settings, "ultralytics", "yolo")
    if os.environ["YOLO_CONFIG_DIR"] == str(cache_folder("ultralytics")):
        told = {key: False for key in _REPORTS if library.settings.get(key)}
        if told:
            library.settings.update(told)
    importlib.import_module("ultralytics.utils.events").events.enabled = False  # type: ignore[attr-defined]
    return library


def _lay_out_font(file: Path) -> None:
    """Any font under the name of the one that ultralytics would fetch before it trains."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    package = importlib.util.find_spec("matplotlib")  # comes with ultralytics
    if package is not None and package.origin is not None:
        shutil.copyfile(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", file)


def _yolo_names(package: Path) -> list[str]:
    """Detection models: the configurations that ultralytics ships, one name for each of their sizes."""
    names = []
    for path in (package / "cfg" / "models").glob("*/yolo*.yaml"):
        if re.search("yoloe|-(?!spp|tiny)", path.stem):
            continue  # not for detection, or a variant whose name ultralytics puts together itself
        text = path.read_text(encoding="utf-8")
        sizes = re.findall(r"^ +([a-z]): *\[", text, re.MULTILINE)
        names += [path.stem] if not sizes or path.stem[-1] in sizes else [path.stem + size for size in sizes]
    return names
