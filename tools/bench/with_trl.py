"""Contestant: TRL's SFTTrainer on rows of tokens. Variants: padded-N (length-sorted), padding_free-N (N examples in one row), packed-N (best-fit decreasing, N tokens)."""
import tempfile

from clock import Clock, clock_callback, common_arguments, load_model, read_task, report, split_evenly, warm_up_on


def main():
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer, pack_dataset

    task = read_task()
    (kind, size), examples = task["variant"].split("-"), task["examples"]
    rows = Dataset.from_list([{"input_ids": example["input_ids"], "labels": example["labels"]} for example in examples])
    longest = max(len(example["input_ids"]) for example in examples)
    if kind == "packed":
        length = max(int(size), longest)
        size, number = 1, len(pack_dataset(rows, length, "bfd"))
        kinds = dict(packing=True, packing_strategy="bfd", max_length=length)
    else:
        size, number = split_evenly(len(examples), int(size))
        kinds = dict(max_length=None, padding_free=kind == "padding_free", train_sampling_strategy="group_by_length")
    tokenizer, clock = AutoTokenizer.from_pretrained(task["model"]), Clock()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(**common_arguments(task, folder), per_device_train_batch_size=size, gradient_accumulation_steps=number,
                              dataloader_pin_memory=False, **kinds)
        watch = clock_callback(clock, warm_up_on(examples))
        trainer = SFTTrainer(
            model=load_model(task), args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[watch]
        )
        trainer.train()
    report(task, clock, watch.loss, watch.tokens)


if __name__ == "__main__":
    main()
