"""Tasks, answers and their scores."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "answers": ["answer_rows"],
    "scores": ["korquad_score", "korquad_scores"],
    "tasks": ["SCORES", "TASKS", "Task", "find_task"],
})
