"""Settings of training and generation that the libraries would take without effect, or refuse when the time is spent."""
from . import Bad


def passed(field):
    "Make settings of one value in one dict."
    return lambda name, value, **settings: {field: {name: value}, **settings}


training, generation = passed("training_args"), passed("generation_args")


def scheduled(kind, options=None, **settings):
    "Make settings of one schedule."
    return {"lr_scheduler_type": kind, "warmup_steps": 0, "max_steps": 10, **({"training_args": {"lr_scheduler_kwargs": options}} if options else {}), **settings}


CASES = [
    # taken, and without effect
    Bad("label smoothing", training("label_smoothing_factor", 0.1), ("label_smoothing_factor", "loss")),
    Bad("dropping the last batch", training("dataloader_drop_last", True), ("dataloader_drop_last", "no example is dropped")),
    Bad("grouping by length", training("train_sampling_strategy", "group_by_length"), ("train_sampling_strategy", "group_size")),
    Bad("means over devices", training("average_tokens_across_devices", False), "average_tokens_across_devices"),
    Bad("compiling", training("torch_compile", True), ("torch_compile", "trees")),
    Bad("a compiler's backend", training("torch_compile_backend", "inductor"), "torch_compile_backend"),
    Bad("Liger's kernels on a CPU", training("use_liger_kernel", True), ("use_liger_kernel", "a GPU")),
    Bad("a choice among Liger's kernels, and none of them", training("liger_kernel_config", {"rope": False}), "use_liger_kernel=true"),
    Bad("a batch size to be found", training("auto_find_batch_size", True), ("auto_find_batch_size", "llmlab plan")),
    Bad("counting tokens", training("include_num_input_tokens_seen", True), "include_num_input_tokens_seen"),
    Bad("passing over NaN", training("logging_nan_inf_filter", False), "no number stops training"),
    Bad("evaluating in half precision", training("bf16_full_eval", True), "bf16_full_eval"),
    Bad("gathering evaluations", training("eval_accumulation_steps", 4), "evaluates by itself"),
    Bad("an evaluation at the start", training("eval_on_start", True), "eval_loss_before"),
    Bad("checkpoints without optimizer", training("save_only_model", True), "go on from its checkpoints"),
    Bad("resuming at the first row", training("ignore_data_skip", True), "ignore_data_skip"),
    Bad("uploading", training("push_to_hub", True), "llmlab export"),
    Bad("a key for the hub", training("hub_token", "hf_abcdefghijk"), "secret"),
    Bad("pinned memory", training("dataloader_pin_memory", True), "dataloader_pin_memory"),
    Bad("accelerate's own batches", training("accelerator_config", {"split_batches": True}), "accelerator_config"),
    Bad("a tracker the lab does not have", training("project", "mine"), "report_to"),
    Bad("a setting that is the lab's", training("gradient_accumulation_steps", 4), "set gradient_accumulation_steps"),
    Bad("a setting that is the lab's by another name", training("activation_checkpointing", True), "set gradient_checkpointing"),
    Bad("a setting of the lab in the wrong place", training("group_size", 4), "group_size"),
    Bad("a delay of no evaluations", training("eval_delay", 2, eval_strategy="no"), ("eval_delay", "eval_strategy")),
    Bad("the first step, which is logged anyway", training("logging_first_step", True), ("logging_first_step", "logging_steps")),
    Bad("buckets for one process", training("ddp_bucket_cap_mb", 25), ("ddp_bucket_cap_mb", "num_workers")),
    Bad("sharding for one process", training("fsdp", "full_shard"), ("fsdp", "several processes")),
    Bad("layers for an optimizer of all", training("optim_target_modules", "all-linear"), ("optim_target_modules", "galore")),
    Bad("loaders of a stream", training("dataloader_num_workers", 2, streaming=True), ("dataloader_num_workers", "streaming=false")),
    # wrong values
    Bad("text for a moment", training("adam_beta1", "hello"), ("adam_beta1='hello'", "number")),
    Bad("a small number that YAML takes for text", training("adam_epsilon", "1e-8"), ("adam_epsilon", r"1\.0e-8")),
    Bad("a moment above 1", training("adam_beta2", 1.5), "adam_beta2=1.5"),
    Bad("a moment of just 1", training("adam_beta1", 1.0), ("adamw_torch", "beta")),
    Bad("an epsilon below 0", training("adam_epsilon", -1.0), "adam_epsilon=-1.0"),
    Bad("minus two loaders", training("dataloader_num_workers", -2), "dataloader_num_workers=-2"),
    Bad("prefetching without loaders", training("dataloader_prefetch_factor", 2), ("TrainingArguments refuses", "prefetch")),
    Bad("a level of logs that there is not", training("log_level", "loud"), "log_level"),
    Bad("a debugger that there is not", training("debug", "magic"), "magic"),
    Bad("tf32 as a word", training("tf32", "fast"), "tf32='fast'"),
    # optimizers
    Bad("an argument that SGD does not read", {"optim": "sgd", "training_args": {"optim_args": "betas=0.9"}}, "betas has no effect with optim=sgd"),
    Bad("Adam's moments for SGD", {"optim": "sgd", "training_args": {"adam_beta1": 0.8}}, "adam_beta1 has no effect with optim=sgd"),
    Bad("arguments for AdamW, which reads none", training("optim_args", "momentum=0.9"), "momentum has no effect with optim=adamw_torch"),
    Bad("arguments without a value", {"optim": "sgd", "training_args": {"optim_args": "momentum"}}, "name=number"),
    Bad("arguments as a mapping", {"optim": "sgd", "training_args": {"optim_args": {"momentum": 0.9}}}, ("optim_args", "string")),
    Bad("a word for the momentum", {"optim": "sgd", "training_args": {"optim_args": "momentum=high"}}, ("sgd", "high")),
    Bad("Nesterov without momentum", {"optim": "sgd", "training_args": {"optim_args": "nesterov=true"}}, ("sgd", "(?i)nesterov")),
    Bad("decay in the wrong place", {"optim": "sgd", "training_args": {"optim_args": "weight_decay=0.1"}}, "set weight_decay"),
    Bad("a misspelt optimizer", {"optim": "adamw_troch"}, ("adamw_troch", "adamw_torch")),
    # schedules
    Bad("a schedule without its settings", scheduled("cosine_with_min_lr"), ("cosine_with_min_lr", "lr_scheduler_kwargs")),
    Bad("another", scheduled("cosine_warmup_with_min_lr"), ("cosine_warmup_with_min_lr", "lr_scheduler_kwargs")),
    Bad("stable, then decaying, but when", scheduled("warmup_stable_decay"), ("warmup_stable_decay", "lr_scheduler_kwargs")),
    Bad("a setting the cosine does not have", scheduled("cosine", {"power": 2}), ("lr_scheduler_type=cosine", "power")),
    Bad("settings of what is constant", scheduled("constant", {"num_cycles": 2}), "no effect with lr_scheduler_type=constant"),
    Bad("settings of what is constant after a warmup", scheduled("constant_with_warmup", {"power": 2}), "no effect with lr_scheduler_type=constant_with_warmup"),
    Bad("text for a number of cycles", scheduled("cosine_with_restarts", {"num_cycles": "two"}), ("cosine_with_restarts", "lr_scheduler_kwargs")),
    Bad("an end above the beginning", scheduled("polynomial", {"lr_end": 1.0}), ("polynomial", "lr_end")),
    Bad("a lowest rate above the highest", scheduled("cosine_with_min_lr", {"min_lr": 1.0}), ("min_lr", "between 0 and learning_rate")),
    Bad("a division by nothing", scheduled("inverse_sqrt", {"timescale": 0}), ("inverse_sqrt", "lr_scheduler_kwargs")),
    Bad("going by a loss that is not taken", scheduled("reduce_lr_on_plateau", eval_strategy="no"), ("reduce_lr_on_plateau", "eval_strategy")),
    Bad("a warmup as long as the run", {"warmup_steps": 10, "max_steps": 10}, ("warmup_steps=10", "10 steps")),
    Bad("a warmup longer than an epoch", {"warmup_steps": 500, "max_steps": -1}, ("warmup_steps=500", "steps")),
    Bad("a warmup of what is constant", {"warmup_steps": 3, "max_steps": 10, "lr_scheduler_type": "constant"}, "constant_with_warmup"),
    Bad("a part of a step", {"warmup_steps": 2.7, "max_steps": 10}, ("warmup_steps=2.7", "whole number")),
    Bad("a delay beyond the end", training("eval_delay", 11, eval_strategy="steps", eval_steps=2, max_steps=10), ("eval_delay=11", "max_steps=10")),
    Bad("scores beyond the end", {"eval_strategy": "steps", "eval_steps": 5, "eval_generate_steps": 20, "max_steps": 10}, ("eval_generate_steps=20", "max_steps=10")),
    # generation
    Bad("text for a number of beams", generation("num_beams", "many"), "num_beams='many'"),
    Bad("no beam", generation("num_beams", 0), "num_beams=0"),
    Bad("below 0 degrees", {"generation_args": {"do_sample": True, "temperature": -1.0}}, "temperature=-1.0"),
    Bad("more than all tokens", {"generation_args": {"do_sample": True, "top_p": 7}}, "top_p=7"),
    Bad("a temperature without sampling", generation("temperature", 0.7), ("temperature", "do_sample")),
    Bad("a penalty for beams without them", generation("length_penalty", 2.0), ("length_penalty", "num_beams")),
    Bad("a cache that there is not", generation("cache_implementation", "large"), ("cache_implementation", "large")),
    Bad("words instead of their tokens", generation("bad_words_ids", ["나쁜"]), "bad_words_ids"),
    Bad("yes or no as a word", generation("do_sample", "maybe"), "do_sample='maybe'"),
    Bad("several answers", generation("num_return_sequences", 3), "one answer"),
    Bad("a stopwatch", generation("max_time", 5.0), ("max_time", "speed of the machine")),
    Bad("guessing ahead", generation("prompt_lookup_num_tokens", 3), "prompt_lookup_num_tokens"),
    Bad("contrastive search", generation("penalty_alpha", 0.6), "penalty_alpha"),
    Bad("an answer in pieces of a dict", generation("return_dict_in_generate", True), "return_dict_in_generate"),
    Bad("another end", generation("eos_token_id", 5), ("eos_token_id", "end token")),
    Bad("longer than long", generation("min_new_tokens", 50, max_new_tokens=8), ("min_new_tokens=50", "max_new_tokens=8")),
    Bad("a length by its other name", generation("max_length", 50), "set max_new_tokens"),
    Bad("a silenced token that there is not", generation("suppress_tokens", [100_000]), ("suppress_tokens", "100000", "512")),
    Bad("a silenced beginning that there is not", generation("begin_suppress_tokens", [3, 512]), ("begin_suppress_tokens", "the token 512")),
    Bad("a word of tokens that there are not", generation("bad_words_ids", [[5, 100_000]]), ("bad_words_ids", "100000")),
    Bad("an end that there is not", generation("forced_eos_token_id", 100_000), ("forced_eos_token_id", "100000")),
    Bad("a favoured token that there is not", generation("sequence_bias", [[[100_000], 2.5]]), ("sequence_bias", "100000")),
    # adapters and quantization
    Bad("a start from data", {"lora_args": {"init_lora_weights": "eva"}}, ("init_lora_weights='eva'", "gaussian")),
    Bad("layers that share their weights", {"lora_args": {"layer_replication": [[0, 2], [1, 2]]}}, ("layer_replication", "merged or exported")),
    Bad("LoRA's biases where there are none", {"lora_args": {"lora_bias": True}}, ("lora_bias", "no bias")),
    Bad("ties where there are none", {"lora_args": {"ensure_weight_tying": True}}, "ensure_weight_tying"),
    Bad("a layer that there is, and one that there is not", {"lora_args": {"layers_to_transform": [0, 99]}}, ("layers_to_transform", "99", "from 0")),
    Bad("an adapter that is not trained", {"lora_args": {"inference_mode": True}}, ("inference_mode", "to be trained")),
    Bad("a rank by peft's name", {"lora_args": {"r": 4}}, "set lora_r"),
    Bad("an adapter woken by tokens", {"lora_args": {"alora_invocation_tokens": [5]}}, "alora_invocation_tokens"),
    Bad("weights on the CPU beside", {"load_in_4bit": True, "quantization_args": {"llm_int8_enable_fp32_cpu_offload": True}}, "one device"),
    Bad("a threshold of 8 bits for 4", {"load_in_4bit": True, "quantization_args": {"llm_int8_threshold": 3.0}}, ("llm_int8_threshold", "load_in_8bit")),
    Bad("a best of no evaluation", {"max_steps": 10, "eval_strategy": "steps", "eval_steps": 20, "save_strategy": "steps", "save_steps": 20, "load_best_model_at_end": True},
        ("load_best_model_at_end", "eval_steps=20")),
    Bad("patience beyond the end", {"max_steps": 10, "eval_strategy": "steps", "eval_steps": 5, "early_stopping_patience": 2}, ("early_stopping_patience=2", "max_steps")),
]
