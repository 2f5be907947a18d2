"""As much of Triton as a model repository meets: its Python module, and an ensemble run step by step.

Batches, reshapes and shapes follow the rules of Triton's own ensemble scheduler (core/src/ensemble_scheduler): a tensor
that comes from a model without batches gets a batch of one for a model with them, and loses it again.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime

_TYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64}


class TritonError(Exception):
    """An error as the Python module has it, and as a client gets it."""

    INVALID_ARG = "INVALID_ARG"

    def __init__(self, message, code="INTERNAL"):
        super().__init__(message)
        self.message, self.code = message, code


class Tensor:
    def __init__(self, name, values):
        self._name, self._values = name, values

    def name(self):
        return self._name

    def as_numpy(self):
        return self._values


class Request:
    def __init__(self, tensors):
        self._tensors = tensors

    def inputs(self):
        return self._tensors


class Response:
    def __init__(self, output_tensors, error=None):
        assert isinstance(output_tensors, list)
        self.tensors, self.error = output_tensors, error


def python_module():
    """What ``import triton_python_backend_utils`` finds inside of Triton."""
    module = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, Response, TritonError
    module.get_input_tensor_by_name = lambda request, name: next(t for t in request.inputs() if t.name() == name)
    return module


def schema():
    """Triton's own schema of ``config.pbtxt``, as tritonclient ships it; without the rest of its gRPC part."""
    (folder,) = importlib.util.find_spec("tritonclient").submodule_search_locations
    path = Path(folder) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_config(place):
    """A model's configuration, every field known to Triton. Raises ParseError for any other."""
    from google.protobuf import text_format

    types = schema()
    return text_format.Parse((place / "config.pbtxt").read_text(), types.ModelConfig()), types


class Triton:
    """A model repository, loaded. ``python`` are the steps of the Python backend, by their model."""

    def __init__(self, repository, monkeypatch):
        self.configs = {place.name: read_config(place)[0] for place in sorted(repository.iterdir())}
        self.repository, self._python, self._sessions = repository, {}, {}
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", python_module())
        monkeypatch.setattr(sys, "path", list(sys.path))
        for name in [name for name in sys.modules if name.partition(".")[0] == "edge"]:
            monkeypatch.delitem(sys.modules, name)  # of another repository
        for name, config in self.configs.items():
            version = repository / name / "1"
            assert version.is_dir() and config.name in ("", name)
            if config.backend == "python":
                self._python[name] = self._loaded(name, version / "model.py")
            elif config.backend == "onnxruntime":
                self._sessions[name] = onnxruntime.InferenceSession(version / "model.onnx")

    def infer(self, name, **tensors):
        """The ensemble's outputs. Raises TritonError as a client would see it."""
        config = self.configs[name]
        assert config.platform == "ensemble" and config.max_batch_size == 0
        known = {each.name: (self._fits(tensors[each.name], each, config), False) for each in config.input}
        for step in config.ensemble_scheduling.step:
            model = self.configs[step.model_name]
            given = {
                own: _for_model(*known[shared], _named(model.input, own), model)
                for own, shared in step.input_map.items()
            }
            assert set(given) == {each.name for each in model.input}
            for own, values in self._run(step.model_name, model, given).items():
                known[step.output_map[own]] = values, model.max_batch_size > 0
        found = {each.name: known[each.name] for each in config.output}
        return {
            name: self._fits(v[0] if batched else v, _named(config.output, name), config)
            for name, (v, batched) in found.items()
        }

    def _loaded(self, name, path):
        spec = importlib.util.spec_from_file_location(f"model_of_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        model.initialize({"model_repository": str(self.repository / name), "model_version": "1"})
        return model

    def _run(self, name, config, given):
        given = {
            own: _reshaped(self._fits(v, _named(config.input, own), config), _named(config.input, own))
            for own, v in given.items()
        }
        if name in self._python:
            (response,) = self._python[name].execute([Request([Tensor(*pair) for pair in given.items()])])
            if response.error:
                raise response.error
            found = {tensor.name(): tensor.as_numpy() for tensor in response.tensors}
        else:
            wanted = [each.name for each in config.output]
            found = dict(zip(wanted, self._sessions[name].run(wanted, given)))
        return {
            own: self._fits(_back(v, _named(config.output, own)), _named(config.output, own), config)
            for own, v in found.items()
        }

    @staticmethod
    def _fits(values, about, config):
        """The values, if they are of the type and shape that the configuration says."""
        shape = values.shape[1:] if config.max_batch_size else values.shape
        assert values.dtype == _TYPES[_type_name(about)], about.name
        assert len(shape) == len(about.dims), (about.name, shape, list(about.dims))
        assert all(want in (-1, has) for want, has in zip(about.dims, shape)), (about.name, shape, list(about.dims))
        return values


def _named(tensors, name):
    return next(each for each in tensors if each.name == name)


def _type_name(about):
    return about.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[about.data_type].name


def _for_model(values, batched, about, config):
    if bool(config.max_batch_size) == batched:
        return values
    return values[None] if config.max_batch_size else values[0]


def _reshaped(values, about):
    return values.reshape(list(about.reshape.shape)) if about.HasField("reshape") else values


def _back(values, about):
    return values.reshape(list(about.dims)) if about.HasField("reshape") else values
