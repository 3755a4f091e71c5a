"""Networks by reference, their weights, and three small ones that the examples and checks use."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import InputError, unknown_name
from secateur.huggingface import PREFIX, load_hub_model
from secateur.weight_files import read_weights, without_prefix

NAMED_MISFITS = 3


def load_model(
    reference: str, arguments: Mapping[str, Any] | None = None, *, meta: bool = False
) -> nn.Module:
    """Build the network that ``reference`` names.

    Args:
        reference: ``package.module:callable`` or ``file.py:callable``; the working folder (or
            the file's own folder) is on the import path while it is imported and called.
            ``hf:NAME`` loads a folder or a name on the hub by transformers instead, see
            :func:`secateur.huggingface.load_hub_model`.
        arguments: keyword arguments for the callable.
        meta: build on the meta device: shapes without weights or memory.

    Raises:
        InputError: the reference has no colon, the module, file or callable is missing or fails,
            the arguments do not fit its signature, or its result is not an ``nn.Module``.
    """
    if reference.startswith(PREFIX) and reference != PREFIX:
        return load_hub_model(reference.removeprefix(PREFIX), arguments or {}, meta=meta)
    device = torch.device("meta") if meta else contextlib.nullcontext()
    with device:
        model = _called("model", reference, arguments or {})
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {reference!r} must return a torch.nn.Module, "
            f"but returned {type(model).__name__}"
        )
    return model


def load_inputs(reference: str) -> Any:
    """Return the example inputs that ``reference`` makes: a tensor, tuple or dict.

    Args:
        reference: ``package.module:callable`` or ``file.py:callable``, called without arguments.

    Raises:
        InputError: as :func:`load_model`.
    """
    return _called("inputs", reference, {})


def import_code(names: Iterable[str]) -> list[ModuleType]:
    """Import packages, modules or files, to trust them.

    Args:
        names: ``package.module`` or ``file.py``; the working folder is on the import path.

    Raises:
        InputError: one is missing or fails.
    """
    found = []
    for name in names:
        named, path = f"trust {name!r}", Path(name).expanduser()
        is_file = name.endswith(".py") or "/" in name
        if is_file and not path.is_file():
            raise InputError(f"{named}: the file does not exist")
        with _importable(path.resolve().parent if is_file else Path.cwd()):
            found.append(_import_file(path, named) if is_file else _import_module(name, named))
    return found


def _called(what: str, reference: str, arguments: Mapping[str, Any]) -> Any:
    """Call what ``reference`` names."""
    where, colon, name = reference.rpartition(":")
    if not (colon and where and name):
        raise InputError(
            f"{what} must be 'package.module:callable' or 'file.py:callable', but got {reference!r}"
        )
    named = f"{what} {reference!r}"
    is_file = where.endswith(".py") or "/" in where
    path = Path(where).expanduser()
    if is_file and not path.is_file():
        raise InputError(f"{named}: the file {where!r} does not exist")
    with _importable(path.resolve().parent if is_file else Path.cwd()):
        module = _import_file(path, named) if is_file else _import_module(where, named)
        build = _attribute(module, name, named)
        keywords = dict(arguments)
        _check_arguments(build, keywords, reference)
        try:
            return build(**keywords)
        except Exception as error:
            raise InputError(f"{named} fails when called: {_told(error)}") from error


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights of a file into ``model``.

    A batch-norm counter (``num_batches_tracked``) that the file lacks stays as it is, and so does
    a tensor that shares its memory with one that the file has (tied weights).

    Args:
        model: changed in place.
        path: a safetensors file, or what ``torch.save`` wrote of a state dict or of a checkpoint
            that holds one; a prefix that all names share ("module.", "_orig_mod.") is left out.

    Raises:
        InputError: the file is missing, damaged or must be converted (says how), or names or
            shapes do not fit; the message names the first few. The model is then unchanged.
    """
    found = without_prefix(read_weights(path), model.state_dict())
    misfits = _misfits(model.state_dict(), found)
    if misfits:
        shown = "; ".join(misfits[:NAMED_MISFITS])
        more = len(misfits) - NAMED_MISFITS
        rest = f"; and {more} more" if more > 0 else ""
        raise InputError(f"weights {str(path)!r} do not fit {type(model).__name__}: {shown}{rest}")
    model.load_state_dict(found, strict=False)


def _misfits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Say what keeps ``found`` from being loaded as ``wanted``, in the model's order."""
    held = {value.data_ptr() for name, value in wanted.items() if name in found}
    problems = []
    for name, value in wanted.items():
        if name in found:
            if value.shape != found[name].shape:
                problems.append(
                    f"{name} is {tuple(value.shape)} in the model "
                    f"and {tuple(found[name].shape)} in the file"
                )
        elif not (name.endswith("num_batches_tracked") or value.data_ptr() in held):
            problems.append(f"{name} is not in the file")
    return problems + [f"{name} is not in the model" for name in found if name not in wanted]


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _import_module(name: str, named: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(f"{named}: there is no module named {error.name!r}") from error
        raise InputError(f"{named} cannot be imported: {_told(error)}") from error
    except Exception as error:
        raise InputError(f"{named} cannot be imported: {_told(error)}") from error


def _import_file(path: Path, named: str) -> ModuleType:
    # A name of its own, so that a user's test.py or torch.py never hides the real module.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"secateur_file_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{named}: {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{named} cannot be imported: {_told(error)}") from error
    return module


def _attribute(module: ModuleType, name: str, named: str) -> Callable[..., Any]:
    try:
        found = reduce(getattr, name.split("."), module)
    except AttributeError as error:
        own = [
            key
            for key, value in vars(module).items()
            if callable(value)
            and not key.startswith("_")
            and getattr(value, "__module__", "") == module.__name__
        ]
        raise unknown_name(f"{named}: callable", name, own) from error
    if not callable(found):
        raise InputError(f"{named}: {name!r} is not callable")
    return found


def _check_arguments(build: Callable[..., Any], arguments: dict[str, Any], reference: str) -> None:
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):
        return  # some builtins have none; calling it will tell
    kinds = inspect.Parameter
    named = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    takes_any = any(p.kind is kinds.VAR_KEYWORD for p in signature.parameters.values())
    strange = [] if takes_any else [name for name in arguments if name not in named]
    if strange:
        raise InputError(
            f"model arguments must be among {', '.join(named) or '(none)'} for {reference!r}, "
            f"but got {', '.join(strange)}"
        )
    missing = [n for n, p in named.items() if p.default is kinds.empty and n not in arguments]
    if missing:
        raise InputError(f"model arguments must include {', '.join(missing)} for {reference!r}")


def _told(error: BaseException) -> str:
    """Put an error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _conv_bn(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip path."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(inputs, outputs, stride)
        self.conv2, self.bn2 = _conv_bn(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else PaddedShortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """Option A of He et al. 2015: subsample, and pad the new channels with zeros on both sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.before, self.after))


class DigitsCNN(nn.Module):
    """A small residual network for the handwritten digits, 1 x 8 x 8."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(1, 32)
        self.block = BasicBlock(32, 32)
        self.conv2, self.bn2 = _conv_bn(32, 64)
        self.conv3, self.bn3 = _conv_bn(64, 64)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 1, H, W] to logits [N, classes]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(self.block(x), 2)
        x = functional.relu(self.bn2(self.conv2(x)))
        x = functional.relu(self.bn3(self.conv3(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class CifarResNet(nn.Module):
    """The CIFAR-10 ResNet of He et al. 2015 (section 4.2): 6n + 2 layers, option-A shortcuts."""

    def __init__(self, depth: int = 56, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise InputError(f"depth must be 6n + 2 with n >= 1, but got {depth}")
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = _conv_bn(3, 16)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


class AnimalsCNN(nn.Module):
    """The custom network of the Animals-10 study: six convolutions and two dense layers."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (32, 64, 128):
            for channels in (inputs, outputs):
                layers += [
                    nn.Conv2d(channels, outputs, 3, padding=1),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
            layers += [nn.MaxPool2d(2), nn.Dropout(0.25)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(128 * 12 * 12, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, 100, 100] to logits [N, classes]."""
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def digits_cnn(classes: int = 10) -> DigitsCNN:
    """Build the network of the demo, for images of 1 x 8 x 8."""
    return DigitsCNN(classes)


def cifar_resnet(depth: int = 56, classes: int = 10) -> CifarResNet:
    """Build a CIFAR ResNet of 20, 32, 44, 56, 110 ... layers, for images of 3 x 32 x 32."""
    return CifarResNet(depth, classes)


def animals_cnn(classes: int = 10) -> AnimalsCNN:
    """Build the custom network of the Animals-10 study, for images of 3 x 100 x 100."""
    return AnimalsCNN(classes)
