"""A CUDA device of shapes without values: runs the project's CUDA paths on a machine without a GPU.

Host tensors stay real, so parameters are drawn, lists built and branches taken as ever. What is on a "cuda"
device is a FakeTensor: shape, dtype, strides and device. Seen: operands on different devices, shapes and
dtypes that no kernel takes, and every wait for the device outside MAY_WAIT. Not seen: values,
races between streams, limits of kernels, speed.

It relies on torch's internals and is kept to the versions it was tried with; see :data:`SUPPORTED`.
"""

import contextlib
import importlib
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.parallel import comm
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

import datasets.images

# Tried with torch 2.14; builds for the CPU alone refuse even tensors without values on "cuda".
SUPPORTED = torch.__version__.startswith("2.14.") and torch.version.cuda is not None
ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
data_parallel = importlib.import_module("torch.nn.parallel.data_parallel")  # a function has its name

# What may wait for the device: functions, as Class.method or function, and whole files; and when they do.
MAY_WAIT = {
    "place": "once per run",
    "_channel_constants": "once per run",
    "train": "once per run",
    "Run.begin": "once per run",
    "restore": "once per run",
    "load_weights": "once per run",
    "EpochMeter.load_state": "once per run",
    "EpochMeter.losses": "once per epoch",
    "EpochMeter.accuracies": "once per epoch",
    "EpochMeter.running_loss": "once per line of progress",
    "StepGuard.check": "every 32 steps",
    "EvalImages.__iter__": "in evaluation",
    "evaluation_batches": "in evaluation",
    "utils/checkpoint.py": "once per checkpoint",
    "log_iv_and_ratio": "in evaluation",
    "utils/evaluation.py": "in evaluation",
    "utils/fitting.py": "in evaluation",
    "utils/calibration.py": "in evaluation",
    "utils/detector.py": "in evaluation",
    "utils/scores.py": "in evaluation",
}

WAITING = set("nonzero masked_select _unique2 unique_dim equal is_nonzero bincount repeat_interleave".split())
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class DeviceMistake(BaseException):
    """What CUDA would refuse, or a wait where there must be none. The project catches Exceptions."""


class FakeCuda(FakeTensorMode):
    """Host operators run; operators that touch a "cuda" tensor run on shapes, under CUDA's device rules."""

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)
        self.generator = torch.Generator().manual_seed(0)
        self.depth, self.pinned = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        name = func.overloadpacket.__name__
        if _is_composite(func):  # which inference tensors leave whole
            with self:
                return func.decompose(*args, **kwargs)
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            self.pinned[pinned.untyped_storage().data_ptr()] = pinned  # kept, so its address stays its own
            return pinned
        if target != "cuda" and not any(isinstance(x, FakeTensor) for x in tensors):
            return func(*args, **kwargs)
        if self.depth == 0:
            self._check(name, args, kwargs, tensors, target)
            if name == "_local_scalar_dense":
                return True if args[0].dtype == torch.bool else 0.0 if args[0].is_floating_point() else 0
            if name == "_to_copy" and target == "cpu":
                return self._on_host(*args, kwargs.get("dtype"))
            if name == "_fused_sgd_":  # torch has no shape rule for it; it returns nothing
                return None
        self.depth += 1
        try:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.depth -= 1
        if name == "_to_copy" and not isinstance(args[0], FakeTensor):
            out.on_host = args[0]
        return out

    def _on_host(self, tensor, dtype=None):
        """The host's copy of a fake tensor: what was copied there, if it was, else made-up numbers."""
        values = getattr(tensor, "on_host", None)
        if values is None and tensor.is_floating_point():  # features then differ, as scores need them to
            values = torch.rand(tensor.shape, generator=self.generator)
        values = torch.zeros(tensor.shape) if values is None else values.clone()
        return values.to(dtype or tensor.dtype)

    def _check(self, name, args, kwargs, tensors, target):
        on_host = [x for x in tensors if x.device.type == "cpu"]
        on_cuda = {x.device for x in tensors if x.device.type == "cuda"}
        if name == "_to_copy":
            if target == "cuda" and on_host:
                pinned = args[0].untyped_storage().data_ptr() in self.pinned
                if not (pinned and kwargs.get("non_blocking")):
                    self._wait("a blocking copy to the device")
            if target == "cpu" and on_cuda:
                self._wait("a copy to the host")
        elif name == "copy_":
            if args[0].device.type != args[1].device.type:
                self._wait("a copy between host and device")
        elif name == "_local_scalar_dense":
            self._wait("item")
        elif name in WAITING:
            self._wait(name)
        elif name in INDEXING:
            indices = [i for i in args[1] if i is not None]
            if args[0].device.type == "cpu":
                raise DeviceMistake(f"{_here()}: a host tensor is indexed by one on the device")
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                self._wait("a mask as index")
            if any(i.device.type == "cpu" for i in indices):
                self._wait("an index from the host")
        elif len(on_cuda) > 1:
            raise DeviceMistake(f"{_here()}: {name} of operands on {' and '.join(sorted(map(str, on_cuda)))}")
        elif on_cuda and on_host:
            joined = name in ("cat", "stack") or name.startswith("_foreach")
            if joined or any(x.dim() for x in on_host):
                raise DeviceMistake(f"{_here()}: {name} of operands on cuda and cpu")

    def _wait(self, what):
        found = _project_line()
        if found is not None and not MAY_WAIT.keys() & set(found[:2]):
            raise DeviceMistake(f"{_here()} waits for the device: {what}")


def _is_composite(func):
    return func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )


def _project_line():
    """(file, function, line) of the innermost line of the project on the stack, or None: tests do not count.

    A comprehension counts as the function around it.
    """
    frame, line = sys._getframe(1), None
    while frame is not None:
        code, path = frame.f_code, Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.parent.name != "tests" and "site-packages" not in path.parts:
            line = line or frame.f_lineno
            if not code.co_name.startswith("<"):
                owner = frame.f_locals.get("self", frame.f_locals.get("cls"))
                owner = owner if isinstance(owner, type) else type(owner)
                function = (
                    f"{owner.__name__}.{code.co_name}" if hasattr(owner, code.co_name) else code.co_name
                )
                return str(path.relative_to(ROOT)), function, line
        frame = frame.f_back
    return None


def _here():
    return "{0}:{2} ({1})".format(*_project_line() or ("a test", "", 0))


def backward(self, gradient=None, **_):
    """Tensor.backward that walks the graph itself: for nodes on CUDA autograd's engine asks the driver."""
    root = self.grad_fn
    degree, seen, todo = Counter(), {root}, [root]
    while todo:
        for following, _ in todo.pop().next_functions:
            if following is not None:
                degree[following] += 1
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
    incoming = {root: {self.output_nr: torch.ones_like(self) if gradient is None else gradient}}
    ready = [root]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            given = incoming.pop(node, {})
            inputs = [given.get(i) for i in range(max(len(node._input_metadata), max(given, default=-1) + 1))]
            edges = node.next_functions
            if hasattr(node, "variable"):  # a leaf
                variable, grad = node.variable, given.get(0)
                if grad is not None:
                    variable.grad = grad if variable.grad is None else variable.grad + grad
                outputs = ()
            elif not given:
                outputs = (None,) * len(edges)
            elif hasattr(node, "needs_input_grad"):  # a Python function; it has a value for every argument
                outputs = node.apply(*inputs)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                edges = [edge for edge in edges if edge[0] is not None]
                outputs = [value for value, need in zip(outputs, node.needs_input_grad, strict=True) if need]
            else:
                outputs = node(*inputs)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for (following, number), value in zip(edges, outputs, strict=True):
                if following is None:
                    continue
                if value is not None:
                    wanted = following._input_metadata[number]
                    if value.device != wanted.device:
                        raise DeviceMistake(
                            f"{node.name()} has a gradient on {value.device} for {wanted.device}"
                        )
                    shape = tuple(wanted.shape)
                    value = value if tuple(value.shape) == shape else value.sum_to_size(shape)
                    value, slots = value.to(wanted.dtype), incoming.setdefault(following, {})
                    slots[number] = slots[number] + value if number in slots else value
                degree[following] -= 1
                if degree[following] == 0:
                    ready.append(following)


def _apply(self, function, recurse=True):
    """Module._apply without exchanging tensors in place, which FakeTensors refuse."""
    for child in self.children():
        _apply(child, function)
    for name, p in self._parameters.items():
        if p is not None:
            with torch.no_grad():
                self._parameters[name] = nn.Parameter(function(p), p.requires_grad)
    for name, b in self._buffers.items():
        if b is not None:
            self._buffers[name] = function(b)
    return self


def _on(tensor, index):
    return tensor.to(torch.device("cuda", index), non_blocking=True)


def _scatter(tensor, indices, sizes=None, dim=0, streams=None):
    parts = tensor.split(list(sizes), dim) if sizes else tensor.chunk(len(indices), dim)
    return tuple(_on(part, index) for part, index in zip(parts, indices, strict=False))


def _real_load(*args, load=torch.load, **kwargs):
    with _disable_current_modes():
        return load(*args, **kwargs)


PATCHES = [
    (nn.Module, "_apply", _apply),
    (torch, "load", _real_load),
    (torch.Tensor, "backward", backward),
    (FakeTensor, "tolist", lambda self: self.cpu().tolist()),
    (torch.Tensor, "pin_memory", lambda self, *_: aten._pin_memory.default(self)),
    (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
    (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
    (torch.cuda, "mem_get_info", lambda *_: (70 << 30, 80 << 30)),
    (torch.cuda, "get_device_name", lambda *_: "fake"),
    # DataParallel: its copies between devices, and its threads.
    (data_parallel, "_get_available_device_type", lambda: "cuda"),
    (data_parallel, "_get_all_device_indices", lambda: [0, 1]),
    (data_parallel, "_check_balance", lambda _: None),
    (
        data_parallel,
        "parallel_apply",
        lambda modules, inputs, kwargs, _: [
            module(*args, **options) for module, args, options in zip(modules, inputs, kwargs, strict=True)
        ],
    ),
    (
        comm,
        "broadcast_coalesced",
        lambda tensors, indices, *_: [[_on(t, i) for t in tensors] for i in indices],
    ),
    (
        comm,
        "reduce_add_coalesced",
        lambda inputs, index, *_: tuple(
            sum(_on(t, index) for t in same) for same in zip(*inputs, strict=True)
        ),
    ),
    (comm, "scatter", _scatter),
    (comm, "gather", lambda tensors, dim, index: torch.cat([_on(t, index) for t in tensors], dim)),
]


@contextlib.contextmanager
def fake_cuda():
    """Code under it finds a CUDA device; yields the :class:`FakeCuda`."""
    constants = datasets.images._channel_constants
    constants.cache_clear()
    with contextlib.ExitStack() as stack:
        stack.callback(constants.cache_clear)
        for owner, name, value in PATCHES:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield stack.enter_context(FakeCuda())
