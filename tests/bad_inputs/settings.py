"""Settings that are unknown, out of range, of the wrong type, at odds with one another, or without effect."""
from . import Bad

CASES = [
    Bad("a misspelt setting", {"learning_rat": 1e-4}, ("learning_rat", "learning_rate")),
    Bad("text for a number", {"learning_rate": "schnell"}, "learning_rate"),
    Bad("a negative rank", {"lora_r": -1}, "lora_r"),
]
