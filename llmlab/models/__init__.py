"""From a model's name to weights, a tokenizer and an adapter."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "checkpoints": ["load_tokenizer", "locate_model"],
    "presets": ["MODELS", "ModelPreset", "PackagedWeights"],
})
