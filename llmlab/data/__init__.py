"""Rows from anywhere, checked, mixed, split and accounted for."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "load": ["load_data"],
    "sources": ["DATASETS", "DatasetPreset"],
})
