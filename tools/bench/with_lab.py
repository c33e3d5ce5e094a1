"""Contestant: llmlab's own trainer. Variants are the values of `batching`; padded-N pads batches of N."""
import tempfile

from clock import Clock, clock_callback, load_model, read_task, report, split_evenly


def ranges(labels: list) -> tuple:
    """Read the [start, stop) ranges of what is learned from labels."""
    learned = [label != -100 for label in labels] + [False]
    starts = [place for place, on in enumerate(learned) if on and not (place and learned[place - 1])]
    return tuple((start, learned.index(False, start)) for start in starts)


def main():
    from llmlab.config.load import make_config
    from llmlab.models.checkpoints import load_tokenizer
    from llmlab.tokens.tokenize import Example
    from llmlab.batching.batcher import batch_mode
    from llmlab.training.trainer import fix_randomness, make_trainer
    from llmlab.batching.loss import loss_of_answers

    task = read_task()
    batching, _, size = task["variant"].partition("-")
    examples = [
        Example(example["input_ids"], example["prompt_length"], ranges(example["labels"]))
        for example in task["examples"]
    ]
    size, number = split_evenly(len(examples), int(size or len(examples)))
    longest = max(2048, *(len(example.input_ids) for example in examples))
    config = dict(model=task["name"], batching=batching, per_device_train_batch_size=size, gradient_accumulation_steps=number, eval_strategy="no",
                  lr_scheduler_type="constant", warmup_steps=0, dtype="float32", shuffle=False, report_to=[], seed=task["seed"], max_length=longest,
                  target_modules=task["lora_targets"], **{name: task[name] for name in ("learning_rate", "lora_r", "lora_alpha")})
    tokenizer, model, clock = load_tokenizer(task["model"]), load_model(task), Clock()
    fix_randomness(task["seed"], num_threads=None)

    def warm_up(model):
        batch = trainer.batcher.batches(examples)[0][0]
        with batch_mode(model, batch):
            loss_of_answers(model, trainer.head, batch)[0].backward()
        model.zero_grad(set_to_none=True)

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            make_config({**config, "max_steps": 1}), model, tokenizer, examples, examples[:1], folder,
            [clock_callback(clock, warm_up)]
        )
        trainer.train()
    report(task, clock, trainer.loss_trace[0], trainer.sharing.tokens_computed, pack_tokens=trainer.batcher.pack_tokens)


if __name__ == "__main__":
    main()
