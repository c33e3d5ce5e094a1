"""A card that is none: its tensors lie in the CPU's memory, say that they are on cuda:0, and refuse to meet those that do not. What would stop a card is counted."""

import contextlib
from collections import Counter

import torch
from types import SimpleNamespace
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

CARD, ATEN = torch.device("cuda:0"), torch.ops.aten
MAY_MEET = {ATEN.copy_.default, ATEN.index.Tensor, ATEN.index_put_.default, ATEN._index_put_impl_.default}
WAITS = {
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.nonzero,
    torch.equal,
    torch.Tensor.equal,
    torch.allclose,
    torch.Tensor.allclose,
}


class Card:
    """Which storages are on the card, and what has crossed."""

    def __init__(self):
        self.storages, self.counts, self.sent = {}, Counter(), []

    def has(self, tensor: torch.Tensor) -> bool:
        """Say whether a tensor is on the card."""
        return tensor.untyped_storage()._cdata in self.storages

    def take(self, tensor: torch.Tensor):
        """Put a tensor on the card; the weak reference keeps its address from being given to another."""
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = StorageWeakRef(storage)

    def move(self, tensor: torch.Tensor, device, copied: torch.Tensor) -> torch.Tensor:
        """Bring a tensor to a device: `copied` where its number format changed on the way."""
        to_card, was = torch.device(device).type == "cuda", self.has(tensor)
        if to_card == was:
            return copied
        fresh = copied if copied.untyped_storage()._cdata != tensor.untyped_storage()._cdata else _clone(copied)
        if to_card:
            self.counts["sent"] += 1
            self.sent.append(tuple(tensor.shape))
            self.take(fresh)
        else:
            self.counts["fetched"] += 1
            fresh = _clone(fresh) if self.has(fresh) else fresh
            self.storages.pop(fresh.untyped_storage()._cdata, None)
        return fresh


def _clone(tensor):
    """Copy a tensor, without a word to anybody."""
    with torch._C._DisableTorchDispatch():
        return tensor.clone()


class Watch(TorchDispatchMode):
    """Refuses operators whose tensors lie here and there, and follows what comes out."""

    def __init__(self, card: Card):
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        here = [tensor for tensor in tensors if not self.card.has(tensor) and tensor.dim()]
        there = [tensor for tensor in tensors if self.card.has(tensor)]
        if here and there and function not in MAY_MEET:
            raise RuntimeError(
                f"{function}: on the card {[tuple(each.shape) for each in there]}, and here {[tuple(each.shape) for each in here]}"
            )
        results = function(*args, **(kwargs or {}))
        if there and function is not ATEN.copy_.default:
            for result in tree_leaves(results):
                if isinstance(result, torch.Tensor):
                    self.card.take(result)
        return results


class Speak(TorchFunctionMode):
    """Has tensors say where they are, and moves them."""

    def __init__(self, card: Card):
        super().__init__()
        self.card = card

    def __torch_function__(self, function, types, args=(), kwargs=None):
        card, kwargs, name = self.card, dict(kwargs or {}), getattr(function, "__name__", "")
        if name == "__get__" and function in (torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__):
            on_card = card.has(args[0])
            return on_card if function is torch.Tensor.is_cuda.__get__ else CARD if on_card else function(*args)
        if function in (torch.Tensor.cuda, torch.Tensor.cpu):
            return card.move(args[0], "cuda" if function is torch.Tensor.cuda else "cpu", args[0])
        if function is torch.mm and kwargs.get("out_dtype"):  # a kernel of cards alone
            return torch.mm(*(each.to(kwargs["out_dtype"]) for each in args))
        if function is torch.Tensor.pin_memory:
            card.counts["pinned"] += 1
            return args[0]
        if function is torch.Tensor.to:
            return self.to(*args, **kwargs)
        if function in (torch.Tensor.numpy, torch.Tensor.__array__) and card.has(args[0]):
            raise TypeError("a tensor on the card is no array")
        if function in WAITS and any(isinstance(each, torch.Tensor) and card.has(each) for each in tree_leaves(args)):
            card.counts["waits"] += 1
        device = kwargs.get("device")
        if device is None or function is torch.device or not callable(function) or name in ("load", "Generator"):
            return function(*args, **kwargs)
        device = CARD if isinstance(device, int) else torch.device(device)
        kwargs["device"] = "meta" if device.type == "meta" else "cpu"
        results = function(*args, **kwargs)
        for result in tree_leaves(results) if device.type != "meta" else ():
            if isinstance(result, torch.Tensor):
                card.take(result) if device.type == "cuda" else card.storages.pop(
                    result.untyped_storage()._cdata, None
                )
        return results

    def to(self, tensor, *args, **kwargs):
        """Do as Tensor.to does: a device, a number format, or another tensor's."""
        leaves, structure = tree_flatten((args, kwargs))
        device = kwargs.pop("device", None)
        rest = []
        for each in args:
            if isinstance(each, torch.Tensor):
                device, each = (CARD if self.card.has(each) else "cpu"), each.dtype
            if (
                isinstance(each, (str, torch.device))
                or isinstance(each, int)
                and not isinstance(each, bool)
                and device is None
                and not rest
            ):
                device = each
            elif each is not None or rest:
                rest.append(each)
        if isinstance(device, int):
            device = CARD
        if device is not None and torch.device(device).type == "meta":
            return torch.Tensor.to(tensor, *args, **kwargs)
        dtypes = [each for each in rest if isinstance(each, torch.dtype)]
        dtype = kwargs.get("dtype") or (dtypes[0] if dtypes else tensor.dtype)
        copied = torch.Tensor.to(tensor, dtype, copy=kwargs.get("copy", False))
        if self.card.has(tensor):
            self.card.take(copied)
        return copied if device is None else self.card.move(tensor, device, copied)


@contextlib.contextmanager
def a_card(monkeypatch, capability=(8, 0), bytes_free=2**34):
    """Have a machine with a card for a while, on which nothing but the CPU computes."""

    import transformers.modeling_utils

    def on_cpu(kind, *others, **named):
        return "cpu" if kind == "cuda" else kind

    card, autocast = Card(), torch.autocast
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

    class Autocast(autocast):
        def __init__(self, device_type, *args, **kwargs):
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    for module, name in ((torch, "autocast"), (torch.amp, "autocast"), (torch.amp.autocast_mode, "autocast")):
        monkeypatch.setattr(module, name, Autocast)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cuda": enabled(on_cpu(kind)))
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: dtype(on_cpu(kind)))
    state = torch.zeros(16, dtype=torch.uint8)
    for name, answer in {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": capability,
        "_lazy_init": None,
        "get_device_name": "a card that is none",
        "is_bf16_supported": True,
        "set_device": None,
        "manual_seed_all": None,
        "manual_seed": None,
        "empty_cache": None,
        "synchronize": None,
        "get_rng_state": state,
        "set_rng_state": None,
        "get_rng_state_all": [state],
        "set_rng_state_all": None,
        "max_memory_allocated": 2**20,
        "reset_peak_memory_stats": None,
        "memory_reserved": 0,
        "memory_allocated": 0,
        "mem_get_info": (bytes_free, bytes_free),
        "ipc_collect": None,
        "is_current_stream_capturing": False,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    for name, answer in {
        "current_accelerator": CARD,
        "current_device_index": 0,
        "device_count": 1,
        "current_stream": SimpleNamespace(is_capturing=lambda: False),
        "is_available": True,
    }.items():
        monkeypatch.setattr(torch.accelerator, name, lambda *args, answer=answer, **kwargs: answer)
    monkeypatch.setattr(transformers.modeling_utils, "caching_allocator_warmup", lambda *args, **kwargs: None)
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # its threads would not know of the card
    with Watch(card), Speak(card):
        yield card
