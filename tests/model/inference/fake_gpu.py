"""A GPU without memory, for machines that have none: its tensors have a device, a dtype and a shape, but no numbers.

Shown are mixed devices, dtypes that a kernel does not take together, and what the host waits for. What comes back to
the host is ones. What answers are right, and how fast, is not to be seen here.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from model.kernels import roi_align

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest
    from torch import Tensor

GPU = torch.device("cuda:0")
# Kernels whose tensors of floats must have one dtype.
SAME_DTYPE = {"convolution", "addmm", "mm", "bmm", "linear", "_embedding_bag_forward_only", "_embedding_bag"}


class FakeGpu(TorchDispatchMode):
    """Computes on the host what is on the host, and without numbers what is on the GPU.

    waits: what the host has waited for, by name: "upload", "download", or the kernel whose result has a size that
    depends on numbers.
    count: what comes back of a histogram.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fakes = FakeTensorMode()
        self.waits: list[str] = []
        self.dtypes: set[torch.dtype] = set()
        self.recording = False
        self.count: int | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, leaves = kwargs or {}, tree_leaves((args, kwargs))
        if not any(
            isinstance(x, FakeTensor) or (isinstance(x, torch.device) and x.type == "cuda") for x in leaves
        ):
            return func(*args, **kwargs)
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **kwargs)
        name = func.overloadpacket.__name__
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        if name in ("_to_copy", "copy_"):
            return self._copy(func, args, kwargs)
        for x in tensors:
            if not isinstance(x, FakeTensor) and x.ndim:
                raise AssertionError(f"{func} has a tensor {list(x.shape)} on the CPU among those on the GPU")
        if name in SAME_DTYPE:
            floats = {x.dtype for x in tensors if x.is_floating_point()}
            assert len(floats) == 1, f"{func} of {floats}"
            self.dtypes |= floats
        if name in DEPENDENT:
            self._wait(name)
            if name == "bincount":
                self.count = len(args[0])
            elif name == "_local_scalar_dense" and self.count is not None:
                count, self.count = self.count, None
                return count
            with self:
                return DEPENDENT[name](*args, **kwargs)
        if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self._wait("index by a mask")
            with self:
                places = [
                    p
                    for i in args[1]
                    for p in (i.nonzero().unbind(1) if i is not None and i.dtype == torch.bool else [i])
                ]
                return args[0][tuple(places)]
        with self.fakes:
            return func(*args, **kwargs)

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Between the devices or on the GPU."""
        source = args[1] if func.overloadpacket.__name__ == "copy_" else args[0]
        with self.fakes:
            fake = [
                torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
                if isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor)
                else x
                for x in args
            ]
            copied = func(*fake, **kwargs)
        if not isinstance(source, FakeTensor):
            pinned = getattr(source, "is_pinned_here", False)
            asynchronous = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if not (pinned and asynchronous):
                self._wait("upload")
        if copied.device.type == "cpu":
            self._wait("download")
            return torch.ones(copied.shape, dtype=copied.dtype)
        return copied

    def _wait(self, what: str) -> None:
        if self.recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.waits.append(what)

    @contextmanager
    def record(self, *_: Any, **__: Any) -> Iterator[None]:
        """In place of torch.cuda.graph: nothing may wait meanwhile."""
        self.recording = True
        try:
            yield
        finally:
            self.recording = False


def _nonzero(x: Tensor) -> Tensor:
    """All places, as if no value were 0."""
    return torch.zeros((x.numel(), x.ndim), dtype=torch.int64, device=x.device)


def _unique_dim(x: Tensor, dim: int, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As if all were equal."""
    counts = torch.zeros(x.shape[dim], dtype=torch.int64, device=x.device)
    return x.narrow(dim, 0, 1), counts, counts[:1]


# What stands for kernels that make the host wait for the size of their result.
DEPENDENT: dict[str, Callable[..., Any]] = {
    "_local_scalar_dense": lambda x: torch.ones((), dtype=x.dtype).item(),
    "nonzero": _nonzero,
    "unique_dim": _unique_dim,
    # As if all were 0; FakeGpu.count is the number that comes back.
    "bincount": lambda x, *_, **__: torch.zeros(1, dtype=torch.int64, device=x.device),
    "nms": lambda boxes, scores, threshold: torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device),
}


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """GPU is there, with streams and recordings that do nothing."""
    mode, stream = FakeGpu(), SimpleNamespace(wait_stream=lambda _: None)

    def pin(x: Tensor) -> Tensor:
        pinned = x.clone()
        pinned.is_pinned_here = True  # type: ignore[attr-defined]
        return pinned

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", pin)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        for name, stand_in in {
            "device": nullcontext,
            "stream": nullcontext,
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "graph_pool_handle": object,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "graph": mode.record,
            "set_stream": lambda _: None,
            "synchronize": lambda: None,
            "_lazy_init": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, stand_in)
        # Else torch.tensor(…, device=GPU) would look for a GPU.
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with mode:
                yield mode
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            # Keeps tensors of this GPU.
            roi_align._levels.cache_clear()


def described(x: Any) -> Any:
    """Tensors of a GPU as (device, dtype, shape)."""
    return tree_map(
        lambda t: (str(t.device), t.dtype, tuple(t.shape)) if isinstance(t, torch.Tensor) else t, x
    )
