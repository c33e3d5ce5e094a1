"""A lab for fine-tuning language models. What one writes in a notebook is offered here, and loaded when it is used."""
__version__ = "0.1.0"

import lazy_loader

from llmlab.common import device as _device  # noqa: F401  tells torch how to use memory, before anything imports it
from llmlab.common.session import listen as _listen

_listen()  # to the notebook's kernel, where there is one: what it shows from now on belongs to the record of a run

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    # What an experiment is, and what it reads
    "config.schema": ["ExperimentConfig"],
    "config.load": ["make_config"],
    "data.sources": ["DATASETS", "DatasetPreset"],
    "data.load": ["load_data"],
    "models.presets": ["MODELS", "ModelPreset"],
    "models.checkpoints": ["load_tokenizer", "locate_model"],
    "tokens.prompts": ["PROMPTS", "Prompt", "find_prompt", "render"],
    "tokens.tokenize": ["tokenize"],
    "tokens.encode": ["encode_rows", "encode_stream"],
    "experiment.prepare": ["prepare"],
    # Training
    "batching.padded": ["collate_padded"],
    "batching.batcher": ["Batcher"],
    "batching.loss": ["find_head", "loss_of_answers"],
    "training.trainer": ["build_model", "make_trainer", "run_training"],
    "training.gradients": ["check_gradients"],
    # Answers and their scores
    "evaluation.tasks": ["SCORES", "TASKS", "Task", "find_task"],
    "evaluation.scores": ["korquad_score", "korquad_scores"],
    "evaluation.answers": ["answer_rows"],
    "evaluation.exam": ["Exam"],
    # A run, and what comes after it
    "runs.folders": ["config_from", "find_run"],
    "runs.lifecycle": ["train_here"],
    "publish.merge": ["merge_run"],
    "publish.template": ["chat_template"],
    "publish.export": ["export_run"],
    # Errors, and models small enough for a test
    "common.errors": ["LabError"],
    "models.testing": ["TEXT", "save_tiny_checkpoint", "tiny_model", "tiny_tokenizer"],
})
