"""Contestant: transformers' own Trainer. Variants: padded-N (length-sorted batches of N), flattened-N (N examples in one row, no padding)."""
import tempfile

from clock import Clock, clock_callback, common_arguments, load_model, read_task, report, split_evenly, warm_up_on


def main():
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer, TrainingArguments

    task = read_task()
    kind, size = task["variant"].split("-")
    size, number = split_evenly(len(task["examples"]), int(size))
    tokenizer, clock = AutoTokenizer.from_pretrained(task["model"]), Clock()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    collator = DataCollatorWithFlattening() if kind == "flattened" else DataCollatorForSeq2Seq(tokenizer)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**common_arguments(task, folder), per_device_train_batch_size=size, gradient_accumulation_steps=number,
                                      train_sampling_strategy="group_by_length", remove_unused_columns=False, dataloader_pin_memory=False)
        watch = clock_callback(clock, warm_up_on(task["examples"]))
        rows = Dataset.from_list(
            [{"input_ids": example["input_ids"], "labels": example["labels"]} for example in task["examples"]]
        )
        Trainer(
            model=load_model(task), args=arguments, train_dataset=rows, data_collator=collator, callbacks=[watch]
        ).train()
    report(task, clock, watch.loss, watch.tokens)


if __name__ == "__main__":
    main()
