"""Settings: checked, made from parameters or a file, read from a command line."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "load": ["make_config"],
    "schema": ["ExperimentConfig"],
})
