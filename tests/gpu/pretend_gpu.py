"""A GPU that is not there: tensors that say `cuda:0` and are computed on the CPU.

`with PretendGpu() as gpu:` makes `device="cuda"` work in this thread. Values are real, so whole
programs run and their results can be compared. What a CPU
forgives is an error: tensors of host and device in one operation, types that CUDA's kernels refuse.
What would make the host wait for the device is counted in `gpu.waits` by (operation, place in the
program); kernel launches in `gpu.launches` by operation. With `probe=True` each call also goes to
CUDA's own host code, which checks its arguments before it asks the driver for anything; what it
refuses is in `gpu.refusals`.

It stands on private parts of torch (`_make_subclass`, `redispatch`), as they are in torch 2.14.
"""

import collections
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
REPOSITORY = Path(__file__).parents[2]

# How often CUDA's own code of an operation waits for the device (bincount reads minimum, maximum).
WAITS = {
    aten._local_scalar_dense.default: 1,
    aten.nonzero.default: 1,
    aten.masked_select.default: 1,
    aten.bincount.default: 2,
    aten._unique2.default: 1,
    aten.unique_dim.default: 1,
    aten.unique_consecutive.default: 1,
    aten.repeat_interleave.Tensor: 1,
    aten.equal.default: 1,
    aten.is_nonzero.default: 1,
    aten.histc.default: 2,
}
PUTS = (aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
COPIES = (aten._to_copy.default, aten.copy_.default)
VIEWS = {
    *("view", "slice", "select", "transpose", "permute", "t", "expand", "unsqueeze", "squeeze"),
    *("as_strided", "split", "split_with_sizes", "unbind", "detach", "alias", "_unsafe_view"),
    *("diagonal"),
}
FREE = VIEWS | {
    *("lift_fresh", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"),
    *("_reshape_alias", "_allgather_base_", "allreduce_", "broadcast_"),
}
# What CUDA's autocast computes in the lower precision; C++ asks the device, which it takes for
# the CPU.
LOWERED = {
    *(torch.conv2d, torch.matmul, torch.mm, torch.bmm, torch.einsum, torch.functional.einsum),
    *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm, torch.nn.functional.linear),
}
# How CUDA's host code says that it has come to the driver, or to a tensor that is no GPU's.
NO_DRIVER = (
    *("CUDAGuardImpl", "driver", "NVIDIA", "CUDA error", "device_index", "same device"),
    *("Expected a value of type", "primitive descriptor", "Sizes of tensors must match"),
    *("expected a CUDA device", "is_cuda()", "on CUDA", "on CPU", "CUDA tensor", "not on GPU"),
    *("gpu tensor", "Expected all tensors to be on the same"),
)
CUDA_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

SCORES = (
    "prototype,msp,maxlogit,entropy,energy,standardized_maxlogit,class_mean,mahalanobis,knn,"
    "prototype_margin,mc_dropout"
)


class DeviceMix(RuntimeError):
    """Tensors of the host and of the device in one operation."""


class OnGpu(torch.Tensor):
    """Says that it is on cuda:0; `inner`, on the CPU, holds the values."""

    @staticmethod
    def __new__(cls, inner):
        on_gpu = torch.Tensor._make_subclass(
            cls, inner.detach(), False, device_for_backend_keys=CUDA
        )
        on_gpu.inner = inner
        return on_gpu

    def __init__(self, inner):
        pass

    def __repr__(self):
        return f"OnGpu({self.inner!r})"

    # Python, and the keys of autocast, believe in a GPU; C++, autograd's streams above all, in a
    # CPU.
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self):
        return 0

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in METHODS:
            return METHODS[func](*args, **kwargs)
        if func in (torch.asarray, torch.as_tensor) and isinstance(args[0], OnGpu):
            return _to(args[0], kwargs.get("dtype", args[0].dtype))
        if func in LOWERED and torch.is_autocast_enabled("cuda"):
            low = torch.get_autocast_dtype("cuda")
            args, kwargs = tree_map_only(
                OnGpu, lambda t: t.to(low) if t.dtype == torch.float32 else t, (args, kwargs)
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


# Methods whose C++ would take the tensor for one of the CPU.


def _refuse_numpy(*_, **__):
    raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")


def _to_cpu(tensor, **kwargs):
    global _cpu_is_meant
    _cpu_is_meant = True
    try:
        return aten._to_copy(tensor, device=torch.device("cpu"), **kwargs)
    finally:
        _cpu_is_meant = False


def _to(tensor, *args, **kwargs):
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None and device.type == "cpu":
        return _to_cpu(tensor, dtype=dtype, non_blocking=non_blocking)
    if dtype in (None, tensor.dtype) and layout is None:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        if layout is None:
            return torch.Tensor.to(tensor, dtype)
        return torch.Tensor.to(tensor, dtype or tensor.dtype, memory_format=layout)


def _new_tensor(tensor, data, dtype=None, **_):
    return torch.tensor(data, dtype=dtype or tensor.dtype, device=CUDA)


def _backward(tensor, gradient=None, retain_graph=False, **_):
    # Straight to the engine, so that torch functions stay on: activation checkpointing runs a
    # forward pass in here, which needs autocast.
    gradient = torch.ones_like(tensor) if gradient is None else gradient
    torch.autograd.Variable._execution_engine.run_backward(
        (tensor,), (gradient,), bool(retain_graph), False, (), True, True
    )


def _deepcopy(tensor, memo):
    if id(tensor) not in memo:
        copy = tensor.detach().clone()
        if isinstance(tensor, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, tensor.requires_grad)
        memo[id(tensor)] = copy
    return memo[id(tensor)]


METHODS = {
    torch.Tensor.numpy: _refuse_numpy,
    torch.Tensor.__array__: _refuse_numpy,
    torch.Tensor.data_ptr: lambda tensor: tensor.inner.data_ptr(),
    torch.Tensor.tolist: lambda tensor: _to_cpu(tensor).tolist(),
    torch.Tensor.cpu: lambda tensor, *_, **__: _to_cpu(tensor),
    torch.Tensor.cuda: lambda tensor, *_, **__: tensor,
    torch.Tensor.new_tensor: _new_tensor,
    torch.Tensor.backward: _backward,
    torch.Tensor.to: _to,
    torch.Tensor.__deepcopy__: _deepcopy,
    torch.Tensor.__reduce_ex__: lambda tensor, version: tensor.inner.__reduce_ex__(version),
}


# Stand-ins for kernels that only CUDA has, and the demands of those that both have.


def _channels(vector, like):
    return vector.view(1, -1, *[1] * (like.dim() - 2))


def _other_dims(x):
    return [dim for dim in range(x.dim()) if dim != 1]


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _require_types(what, *pairs):
    for name, tensor, dtype in pairs:
        if tensor is not None and tensor.dtype != dtype:
            raise RuntimeError(f"{what} wants {name} in {dtype}, got {tensor.dtype}")


def batch_norm_stats(x, eps):
    wide = _wide(x)
    mean, var = wide.mean(_other_dims(x)), wide.var(_other_dims(x), correction=0)
    return mean, torch.rsqrt(var + eps)


def batch_norm_gather_stats_with_counts(
    x, means, inv_stds, running_mean, running_var, momentum, eps, counts
):
    wide = torch.promote_types(running_mean.dtype, torch.float32)
    _require_types(
        "batch_norm_gather_stats_with_counts",
        ("counts", counts, running_mean.dtype),
        ("running_var", running_var, running_mean.dtype),
        ("means", means, wide),
        ("inv_stds", inv_stds, wide),
    )
    share = (counts / counts.sum())[:, None].to(wide)
    mean = (means * share).sum(0)
    var = ((inv_stds**-2 - eps + (means - mean) ** 2) * share).sum(0)
    total = counts.sum()
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_((var * (total / (total - 1))).to(running_var.dtype), momentum)
    return mean, torch.rsqrt(var + eps)


def batch_norm_elemt_out(x, weight, bias, mean, inv_std, eps, *, out):
    wide = _wide(x).dtype
    _require_types(
        "batch_norm_elemt", *((n, t, wide) for n, t in (("weight", weight), ("mean", mean)))
    )
    vectors = (_channels(vector, x) for vector in (mean, inv_std, weight, bias))
    mean, inv_std, weight, bias = vectors
    return out.copy_((_wide(x) - mean) * inv_std * weight + bias)


def batch_norm_backward_reduce(grad, x, mean, inv_std, weight, input_g, weight_g, bias_g):
    wide = _wide(x).dtype
    _require_types("batch_norm_backward_reduce", ("mean", mean, wide), ("weight", weight, wide))
    centred, grad = _wide(x) - _channels(mean, x), _wide(grad)
    sum_grad, sum_grad_x = grad.sum(_other_dims(x)), (grad * centred).sum(_other_dims(x))
    return (
        sum_grad if input_g else None,
        sum_grad_x if input_g else None,
        sum_grad_x * inv_std if weight_g else None,
        sum_grad.clone() if bias_g else None,
    )


def batch_norm_backward_elemt(grad, x, mean, inv_std, weight, sum_grad, sum_grad_x, counts):
    _require_types("batch_norm_backward_elemt", ("counts", counts, torch.int32))
    if not counts.is_contiguous():
        raise RuntimeError("batch_norm_backward_elemt reads counts as one block")
    total = counts.sum()
    mean, inv_std, weight, sum_grad, sum_grad_x = (
        _channels(vector, x) for vector in (mean, inv_std, weight, sum_grad, sum_grad_x)
    )
    taken = sum_grad / total + (_wide(x) - mean) * inv_std.square() * (sum_grad_x / total)
    return ((_wide(grad) - taken) * inv_std * weight).to(x.dtype)


def _native_batch_norm_backward(grad, x, weight, mean, var, save_mean, save_inv_std, *rest):
    if x.is_contiguous(memory_format=torch.channels_last) and None in (save_mean, save_inv_std):
        raise RuntimeError(
            "save_mean->defined() INTERNAL ASSERT FAILED: CUDA's channels-last kernels want the "
            f"saved statistics (input {tuple(x.shape)}, strides {x.stride()})"
        )
    return aten.native_batch_norm_backward(
        grad, x, weight, mean, var, save_mean, save_inv_std, *rest
    )


STAND_INS = {
    aten.batch_norm_stats.default: batch_norm_stats,
    aten.batch_norm_gather_stats_with_counts.default: batch_norm_gather_stats_with_counts,
    aten.batch_norm_elemt.out: batch_norm_elemt_out,
    aten.batch_norm_backward_reduce.default: batch_norm_backward_reduce,
    aten.batch_norm_backward_elemt.default: batch_norm_backward_elemt,
    aten.native_batch_norm_backward.default: _native_batch_norm_backward,
}


# One operation.

_gpu = None
_cpu_is_meant = False


def _target(args, kwargs):
    """Where the result lies: on the GPU or not."""
    device = kwargs.get("device")
    on_gpu = any(isinstance(leaf, OnGpu) for leaf in tree_leaves((args, kwargs)))
    if device is None:
        return on_gpu
    in_backward = torch._C._current_graph_task_id() != -1
    # C++ asks for the device that it takes a tensor of the GPU to be on.
    return torch.device(device).type == "cuda" or ((on_gpu or in_backward) and not _cpu_is_meant)


def _look_at_copy(func, args, kwargs, to_gpu):
    tensor = args[0] if func is aten._to_copy.default else args[1]
    from_gpu = isinstance(tensor, OnGpu)
    to_gpu = isinstance(args[0], OnGpu) if func is aten.copy_.default else to_gpu
    if from_gpu == to_gpu or _gpu is None:
        return
    last = func is aten.copy_.default and len(args) > 2 and args[2]
    if from_gpu:
        _gpu.note("copy to the host")
    elif not (kwargs.get("non_blocking") or last):
        _gpu.note("copy from the host, not non_blocking")


def _look_at_devices(func, tensors):
    hosts = [tensor for tensor in tensors if not isinstance(tensor, OnGpu)]
    name = func.overloadpacket.__name__
    # Numbers, tensors without dimensions, may come from the host; indices too, at a wait's cost.
    bad = [tensor for tensor in hosts if tensor.dim() > 0 or name in ("cat", "stack")]
    if bad and func in (aten.index.Tensor, *PUTS):
        _gpu.note(f"{name}, indices from the host", len(bad))
    elif bad:
        places = (f"{t.device.type}{tuple(t.shape)}" for t in tensors)
        raise DeviceMix(f"{func}: {', '.join(places)}")


def _is_mask(index):
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _tally(func, args):
    if func in WAITS:
        _gpu.note(func.overloadpacket.__name__, WAITS[func])
    is_index = func is aten.index.Tensor or (func in PUTS and args[2].numel() != 1)
    if is_index and any(map(_is_mask, args[1])):
        _gpu.note("index by mask")
    if func.overloadpacket.__name__ not in FREE:
        _gpu.launches[func.overloadpacket.__name__] += 1


def _run(func, args, kwargs):
    """`func` on the CPU's values, after a look at what it would be on a GPU."""
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    has_gpu = any(isinstance(tensor, OnGpu) for tensor in tensors)
    on_gpu = _target(args, kwargs)
    if func in COPIES:
        _look_at_copy(func, args, kwargs, on_gpu)
        if func is aten.copy_.default:
            on_gpu = isinstance(args[0], OnGpu)
    elif has_gpu and _gpu is not None:
        _look_at_devices(func, tensors)
    inner_args, inner_kwargs = tree_map_only(OnGpu, lambda t: t.inner, (args, kwargs))
    if kwargs.get("device") is not None:
        inner_kwargs["device"] = torch.device("cpu")
    inner_kwargs.pop("pin_memory", None)
    if _gpu is not None and (has_gpu or on_gpu):
        _tally(func, args)
        if _gpu.probes:
            _gpu.probe(func, inner_args, inner_kwargs)
    with _gpu.off() if _gpu is not None else contextlib.nullcontext():
        kernel = STAND_INS.get(func, func) if has_gpu else func
        out = kernel(*inner_args, **inner_kwargs)
    if func is aten._local_scalar_dense.default or not (has_gpu or on_gpu):
        return out
    same = {
        id(inner): outer
        for inner, outer in zip(tree_leaves((inner_args, inner_kwargs)), leaves, strict=False)
        if isinstance(outer, torch.Tensor)
    }
    wrapped = tree_map_only(
        torch.Tensor,
        lambda value: same.get(id(value), OnGpu(value) if on_gpu else value),
        out,
    )
    if has_gpu and on_gpu and func.overloadpacket.__name__ in VIEWS:
        with contextlib.suppress(Exception):
            return return_and_correct_aliasing(func, args, kwargs, wrapped)
    return wrapped


def _grouped_by_device(group):
    """C++ groups tensors by the device it takes them to be on."""

    def grouped(lists, with_indices=False):
        def place(device, first):
            return CUDA if any(isinstance(tensor, OnGpu) for tensor in first) else device

        return {
            (place(device, found[0]), dtype): (found, indices)
            for (device, dtype), (found, indices) in group(lists, with_indices).items()
        }

    return grouped


class PretendGpu(TorchDispatchMode):
    """One GPU with bf16, for this thread.

    Attributes:
        waits: (operation, "file:line function" of this repository) -> how often the host waited.
        launches: operation -> how often its kernel was started.
        refusals: (operation, place) -> what CUDA's host code said against its arguments.
    """

    def __init__(self, *, probe=False):
        super().__init__()
        self.waits, self.launches = collections.Counter(), collections.Counter()
        self.refusals, self.probes = {}, probe
        self._probed, self._off = set(), False

    def note(self, what, times=1):
        self.waits[what, _place()] += times

    def clear(self):
        self.waits.clear()
        self.launches.clear()

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def probe(self, func, args, kwargs):
        """Send a call, each kind once, to CUDA's own host code."""
        if not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CUDA"):
            return
        kind = (func, *map(_kind, tree_leaves((args, kwargs))))
        if kind in self._probed:
            return
        self._probed.add(kind)
        with self.off():
            args, kwargs = tree_map_only(torch.Tensor, _copy_for_probe, (args, kwargs))
            try:
                func.redispatch(CUDA_KEYS, *args, **kwargs)
            except Exception as error:
                line = str(error).splitlines()[0]
                if not any(words in line for words in NO_DRIVER):
                    self.refusals[str(func), _place()] = line

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._off:
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            # In inference mode composites arrive whole; what they are made of is looked at.
            TorchDispatchMode.__enter__(self)
            try:
                found = func.decompose(*args, **kwargs)
            finally:
                TorchDispatchMode.__exit__(self, None, None, None)
            if found is not NotImplemented:
                return found
        return _run(func, args, kwargs)

    def __enter__(self):
        global _gpu
        _gpu = self
        self._stack = contextlib.ExitStack()
        for name, value in _patches().items():
            self._stack.enter_context(mock.patch(name, value))
        self._stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error):
        global _gpu
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        self._stack.close()
        _gpu = None


def _patches():
    by_device = _grouped_by_device(_foreach_utils._group_tensors_by_device_and_dtype)
    state = torch.zeros(16, dtype=torch.uint8)
    return {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.set_device": lambda device: None,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_capability": lambda device=None: (9, 0),
        "torch.cuda.get_device_name": lambda device=None: "a GPU that is not there",
        "torch.cuda.is_bf16_supported": lambda including_emulation=True: True,
        "torch.cuda.get_rng_state": lambda device=None: state,
        "torch.cuda.set_rng_state": lambda state, device=None: None,
        "torch.cuda.manual_seed_all": lambda seed: None,
        "torch.Tensor.pin_memory": lambda self, *_: self,
        "torch.nn.utils.clip_grad._has_foreach_support": lambda tensors, device: True,
        "torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype": by_device,
        "torch.utils._foreach_utils._group_tensors_by_device_and_dtype": by_device,
        "torch.optim.Optimizer._group_tensors_by_device_and_dtype": staticmethod(by_device),
    }


def _place():
    """The innermost line of the program that is running, tests and torch left out."""
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        ours = path.is_relative_to(REPOSITORY) and ".venv" not in path.parts
        if ours and not path.is_relative_to(REPOSITORY / "tests"):
            return f"{path.relative_to(REPOSITORY)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside the program"


def _kind(leaf):
    """What CUDA's host code may look at in an argument, but for sizes."""
    if not isinstance(leaf, torch.Tensor):
        return repr(leaf) if isinstance(leaf, bool | str | None) else None
    last = leaf.dim() == 4 and leaf.is_contiguous(memory_format=torch.channels_last)
    return leaf.dtype, leaf.dim(), leaf.is_contiguous(), last


def _copy_for_probe(tensor):
    tensor = tensor.detach()
    return tensor[:1].clone() if tensor.numel() > 2**22 else tensor.clone()


def lines(counter):
    """A tally as lines to read: how often, what, where."""
    return "\n".join(f"{times} x {' at '.join(what)}" for what, times in counter.most_common())
