"""llmlab: a notebook-first lab for fine-tuning language models. What one writes in a notebook is offered here, and imported when it is used."""
__version__ = "0.1.0"

import lazy_loader

from llmlab.common import device as _device  # noqa: F401  says how torch is to use memory, before anything imports torch

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "common.errors": ["LabError"],
    "config.load": ["make_config"],
    "config.schema": ["ExperimentConfig"],
    "data.load": ["load_data"],
    "data.sources": ["DATASETS", "DatasetPreset"],
    "evaluation.answers": ["answer_rows"],
    "evaluation.scores": ["korquad_score", "korquad_scores"],
    "evaluation.tasks": ["TASKS", "Task"],
    "models.checkpoints": ["load_tokenizer", "locate_model"],
    "models.presets": ["MODELS", "ModelPreset"],
    "publish.export": ["chat_template"],
    "publish.merge": ["merge_run"],
    "runs.lifecycle": ["train_here"],
    "tokens.encode": ["encode_rows", "encode_stream"],
    "tokens.prompts": ["PROMPTS", "Prompt", "find_prompt"],
    "training.gradients": ["check_gradients"],
    "training.trainer": ["build_model", "make_trainer"],
})
