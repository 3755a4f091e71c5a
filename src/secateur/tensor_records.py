"""The tensors of a network by name: each once, with what a plain file of numbers cannot say.

That is: which are parameters, their class and attributes, which share memory, the order of
dimensions in memory (``channels_last``), complex numbers and sparse layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.attribute_reader import Reader
from secateur.attribute_values import WAY_OUT
from secateur.attribute_writer import Writer
from secateur.errors import CheckpointError

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}
_LAYOUTS = {str(layout).removeprefix("torch."): layout for layout in _COMPRESSED}


class TensorWriter:
    """Names tensors, and notes about each what a file of numbers cannot say.

    Attributes:
        stored: {name: contiguous tensor on the CPU}, sharing the model's memory where it can.
        records: {name: what else there is to know}, for those where there is something.
    """

    def __init__(self) -> None:
        self.stored: dict[str, Tensor] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self._names: dict[int, tuple[Tensor, str]] = {}
        self._places: dict[tuple[Any, ...], str] = {}

    def name(self, tensor: Tensor, suggested: str, values: Writer | None = None) -> str:
        """Return the name of a tensor; a new one is stored under the suggested name.

        Raises:
            CheckpointError: it has no numbers, or is of a kind that cannot be stored.
        """
        if id(tensor) not in self._names:
            self._names[id(tensor)] = (tensor, suggested)
            record = self._record(tensor, suggested)
            if record:
                self.records[suggested] = record
            if values is not None:
                self.describe_attributes(tensor, suggested, values)
        return self._names[id(tensor)][1]

    def array(self, data: Tensor, path: str) -> str:
        """Store the bytes of a NumPy array or generator."""
        name = f"array:{path}"
        while name in self.stored:
            name += "'"
        self.stored[name] = data
        return name

    def describe_attributes(self, tensor: Tensor, name: str, values: Writer) -> None:
        """Describe what Python attributes a tensor has, and its class where that is the user's."""
        record = self.records.setdefault(name, {})
        kind = type(tensor)
        if kind not in (Tensor, nn.Parameter):
            record["class"] = values.name(kind, name)
        held = {key: values.value(v, f"{name}.{key}") for key, v in vars(tensor).items()}
        if held:
            record["attributes"] = held
        if not record:
            del self.records[name]

    def all(self) -> list[tuple[Tensor, str]]:
        """Return every tensor with its name."""
        return list(self._names.values())

    def _record(self, tensor: Tensor, name: str) -> dict[str, Any]:
        _check(tensor, name)
        parameter = isinstance(tensor, nn.Parameter)
        record: dict[str, Any] = {"parameter": True} if parameter else {}
        if tensor.is_leaf and tensor.requires_grad and not parameter:
            record["grad"] = True
        data = tensor.detach().cpu()
        if data.layout is not torch.strided:
            return {**record, **self._sparse(data, name)}
        place = (data.data_ptr(), data.shape, data.stride(), data.dtype)
        if data.numel() and self._places.setdefault(place, name) != name:
            return {**record, "shares": self._places[place]}
        order = sorted(range(data.dim()), key=lambda dim: (-data.stride()[dim], dim))
        if order != sorted(order) and data.permute(order).is_contiguous():
            record["order"] = order
        if data.is_complex():
            record["complex"] = True
            data = torch.view_as_real(data.resolve_conj())
        self._store(name, data)
        return record

    def _sparse(self, data: Tensor, name: str) -> dict[str, Any]:
        record: dict[str, Any] = {"size": list(data.shape)}
        if data.layout is torch.sparse_coo:
            record["layout"], record["coalesced"] = "sparse_coo", data.is_coalesced()
            parts = {"indices": data._indices(), "values": data._values()}
        elif data.layout in _COMPRESSED:
            record["layout"] = str(data.layout).removeprefix("torch.")
            parts = {key: getattr(data, key)() for key in _COMPRESSED[data.layout]}
            parts["values"] = data.values()
        else:
            raise CheckpointError(f"{name} has the layout {data.layout}; {WAY_OUT}")
        if parts["values"].is_complex():
            raise CheckpointError(f"{name} is sparse and complex; {WAY_OUT}")
        for key, part in parts.items():
            self._store(f"{name}:{key}", part)
        return record

    def _store(self, name: str, data: Tensor) -> None:
        if name in self.stored:
            raise CheckpointError(f"two tensors are named {name}; {WAY_OUT}")
        self.stored[name] = data.resolve_neg().contiguous()


def _check(tensor: Tensor, name: str) -> None:
    if nn.parameter.is_lazy(tensor):
        raise CheckpointError(f"{name} has no shape yet; run the network once before saving it")
    if tensor.is_meta:
        raise CheckpointError(f"{name} is on the meta device and has no numbers to save")
    if tensor.is_quantized or getattr(type(tensor), "__torch_dispatch__", None) not in (
        None,
        torch._C._disabled_torch_dispatch_impl,
        Tensor.__torch_dispatch__ if hasattr(Tensor, "__torch_dispatch__") else None,
    ):
        raise CheckpointError(
            f"{name} is a {type(tensor).__name__}, whose numbers are its own; {WAY_OUT}"
        )
    if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
        raise CheckpointError(f"{name} has hooks, which cannot be saved; remove them")


class TensorReader:
    """Makes the tensors again, each once.

    Args:
        stored: gives the numbers of a name.
        records: as :class:`TensorWriter` noted them.
        frozen: names of parameters that want no gradient.
    """

    def __init__(
        self,
        stored: Callable[[str], Tensor],
        records: Mapping[str, Mapping[str, Any]],
        frozen: frozenset[str],
    ) -> None:
        self._stored = stored
        self._records = records
        self._frozen = frozen
        self._made: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        """Return the tensor of a name."""
        if name not in self._made:
            record = self._records.get(name, {})
            data = self._data(name, record)
            if record.get("parameter"):
                numbers = data.is_floating_point() or data.is_complex()
                data = nn.Parameter(data, requires_grad=numbers and name not in self._frozen)
            elif record.get("grad"):
                data.requires_grad_()
            self._made[name] = data
        return self._made[name]

    def array(self, name: str) -> Tensor:
        """Return bytes."""
        return self._stored(name)

    def names(self) -> dict[int, str]:
        """Return the names of the tensors made so far, by identity."""
        return {id(tensor): name for name, tensor in self._made.items()}

    def finish(self, values: Reader) -> None:
        """Give the tensors their attributes, and their classes."""
        for name, record in self._records.items():
            if "class" not in record and "attributes" not in record:
                continue
            tensor = self.tensor(name)
            if "class" in record:
                kind = values.value({"$": "object", "name": record["class"]})
                if not (isinstance(kind, type) and issubclass(kind, Tensor)):
                    raise CheckpointError(f"{record['class']} is no class of tensors")
                tensor.__class__ = kind
            for key, value in record.get("attributes", {}).items():
                vars(tensor)[str(key)] = values.value(value)

    def _data(self, name: str, record: Mapping[str, Any]) -> Tensor:
        if "shares" in record:
            other = record["shares"]
            if "shares" in self._records.get(other, {}):
                raise CheckpointError(f"{name} shares memory with {other}, which is stored nowhere")
            return self.tensor(other).detach()
        if "layout" in record:
            return self._sparse(name, record)
        data = self._stored(name)
        if record.get("complex"):
            data = torch.view_as_complex(data)
        if "order" in record:
            order = record["order"]
            back = sorted(range(len(order)), key=order.__getitem__)
            data = data.permute(order).contiguous().permute(back)
        return data

    def _sparse(self, name: str, record: Mapping[str, Any]) -> Tensor:
        layout, size = record["layout"], record["size"]
        values = self._stored(f"{name}:values")
        if layout == "sparse_coo":
            made = torch.sparse_coo_tensor(
                self._stored(f"{name}:indices"), values, size, check_invariants=True
            )
            return made._coalesced_(bool(record["coalesced"]))
        parts = [self._stored(f"{name}:{key}") for key in _COMPRESSED[_LAYOUTS[layout]]]
        compressed, plain = parts
        return torch.sparse_compressed_tensor(
            compressed, plain, values, size, layout=_LAYOUTS[layout], check_invariants=True
        )
