"""Copies between the host and the device of a scorer. To and from a CUDA device nobody waits for a copy to be made."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

Tensors = Sequence[torch.Tensor]


class Fetch(Protocol):
    """Tensors on their way to the host."""

    def wait(self) -> list[torch.Tensor]:
        """The tensors on the host."""

    def more(self, tensors: Tensors) -> "Fetch":
        """Other tensors that the device had computed when this fetch began; later work is not waited for."""


class Transfer:
    """Plain copies, as each device makes them. On a CPU they are no copies."""

    ahead = 0
    """Batches to prepare on a thread before they are asked for."""

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host, ready for the way to the device. May be called on any thread."""
        return tensor

    def send(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The tensor on a device."""
        return tensor.to(device)

    def fetch(self, tensors: Tensors) -> Fetch:
        """Begin to copy tensors to the host."""
        return _Copied([tensor.cpu() for tensor in tensors])


class CudaTransfer(Transfer):
    """Pinned memory, and a stream of its own for the way back, which does not wait for work that is given later."""

    ahead = 2

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch.cuda.device(self._device):  # a thread begins on the first device of the machine
            return tensor.pin_memory()

    def send(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        return tensor.to(device, non_blocking=True)

    def fetch(self, tensors: Tensors) -> Fetch:
        computed = torch.cuda.Event()
        computed.record(torch.cuda.current_stream(self._device))
        return _Fetching(self._stream, computed, tensors)


def transfer_for(device: torch.device) -> Transfer:
    return CudaTransfer(device) if device.type == "cuda" else Transfer()


class _Copied:
    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors

    def wait(self) -> list[torch.Tensor]:
        return self._tensors

    def more(self, tensors: Tensors) -> Fetch:
        return _Copied([tensor.cpu() for tensor in tensors])


class _Fetching:
    """computed: the event after which the tensors have their values."""

    def __init__(self, stream: Any, computed: Any, tensors: Tensors) -> None:
        self._stream, self._computed = stream, computed
        with torch.cuda.stream(stream):
            stream.wait_event(computed)
            self._copies = [_pinned_copy(tensor) for tensor in tensors]
            self._copied = torch.cuda.Event()
            self._copied.record(stream)
        for tensor in tensors:
            if tensor.device.type == "cuda":
                tensor.record_stream(stream)  # its memory is not given to others before it is copied

    def wait(self) -> list[torch.Tensor]:
        self._copied.synchronize()
        return self._copies

    def more(self, tensors: Tensors) -> Fetch:
        return _Fetching(self._stream, self._computed, tensors)


def _pinned_copy(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cuda":
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
