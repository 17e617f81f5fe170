"""All fields of transformers.TrainingArguments; written by scripts/trainer_fields.py.

A configuration is checked against this table before torch and transformers are imported.
Fields left at MISSING are not passed on, so the library's own defaults apply.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class TrainerFields:
    """The `trainer` group: transformers.TrainingArguments' own names and types."""

    output_dir: str | None = MISSING
    per_device_train_batch_size: int = MISSING
    num_train_epochs: float = MISSING
    max_steps: int = MISSING
    learning_rate: float = MISSING
    lr_scheduler_type: str = MISSING
    lr_scheduler_kwargs: Any = MISSING
    warmup_steps: float = MISSING
    optim: str = MISSING
    optim_args: str | None = MISSING
    weight_decay: float = MISSING
    adam_beta1: float = MISSING
    adam_beta2: float = MISSING
    adam_epsilon: float = MISSING
    optim_target_modules: Any = MISSING
    gradient_accumulation_steps: int = MISSING
    average_tokens_across_devices: bool = MISSING
    max_grad_norm: float = MISSING
    label_smoothing_factor: float = MISSING
    bf16: bool = MISSING
    fp16: bool = MISSING
    bf16_full_eval: bool = MISSING
    fp16_full_eval: bool = MISSING
    tf32: bool | None = MISSING
    activation_checkpointing: bool | None = MISSING
    activation_checkpointing_kwargs: Any = MISSING
    gradient_checkpointing: bool | None = MISSING
    gradient_checkpointing_kwargs: Any = MISSING
    torch_compile: bool = MISSING
    torch_compile_backend: str | None = MISSING
    torch_compile_mode: str | None = MISSING
    use_liger_kernel: bool = MISSING
    liger_kernel_config: Any = MISSING
    use_cache: bool = MISSING
    neftune_noise_alpha: float | None = MISSING
    torch_empty_cache_steps: int | None = MISSING
    auto_find_batch_size: bool = MISSING
    logging_strategy: str = MISSING
    logging_steps: float = MISSING
    logging_first_step: bool = MISSING
    log_on_each_node: bool = MISSING
    logging_nan_inf_filter: bool = MISSING
    include_num_input_tokens_seen: Any = MISSING
    log_level: str = MISSING
    log_level_replica: str = MISSING
    disable_tqdm: bool | None = MISSING
    report_to: Any = MISSING
    run_name: str | None = MISSING
    project: str = MISSING
    trackio_space_id: str | None = MISSING
    trackio_bucket_id: str | None = MISSING
    trackio_static_space_id: Any = MISSING
    eval_strategy: str = MISSING
    eval_steps: float | None = MISSING
    eval_delay: float = MISSING
    per_device_eval_batch_size: int = MISSING
    prediction_loss_only: bool = MISSING
    eval_on_start: bool = MISSING
    eval_do_concat_batches: bool = MISSING
    eval_use_gather_object: bool = MISSING
    eval_accumulation_steps: int | None = MISSING
    include_for_metrics: Any = MISSING
    batch_eval_metrics: bool = MISSING
    save_only_model: bool = MISSING
    save_strategy: str = MISSING
    save_steps: float = MISSING
    save_on_each_node: bool = MISSING
    save_total_limit: int | None = MISSING
    enable_jit_checkpoint: bool = MISSING
    push_to_hub: bool = MISSING
    hub_token: str | None = MISSING
    hub_private_repo: bool | None = MISSING
    hub_model_id: str | None = MISSING
    hub_strategy: str = MISSING
    hub_always_push: bool = MISSING
    hub_revision: str | None = MISSING
    load_best_model_at_end: bool = MISSING
    metric_for_best_model: str | None = MISSING
    greater_is_better: bool | None = MISSING
    ignore_data_skip: bool = MISSING
    restore_callback_states_from_checkpoint: bool = MISSING
    full_determinism: bool = MISSING
    seed: int = MISSING
    data_seed: int | None = MISSING
    use_cpu: bool = MISSING
    accelerator_config: Any = MISSING
    parallelism_config: Any = MISSING
    dataloader_drop_last: bool = MISSING
    dataloader_num_workers: int = MISSING
    dataloader_pin_memory: bool = MISSING
    dataloader_persistent_workers: bool = MISSING
    dataloader_prefetch_factor: int | None = MISSING
    dataloader_multiprocessing_context: str | None = MISSING
    dataloader_in_order: bool = MISSING
    remove_unused_columns: bool = MISSING
    label_names: Any = MISSING
    train_sampling_strategy: str = MISSING
    length_column_name: str = MISSING
    ddp_find_unused_parameters: bool | None = MISSING
    ddp_bucket_cap_mb: int | None = MISSING
    ddp_broadcast_buffers: bool | None = MISSING
    ddp_static_graph: bool | None = MISSING
    ddp_backend: str | None = MISSING
    ddp_timeout: int = MISSING
    fsdp: str | None = MISSING
    fsdp_config: Any = MISSING
    deepspeed: Any = MISSING
    debug: Any = MISSING
    skip_memory_metrics: bool = MISSING
    do_train: bool = MISSING
    do_eval: bool = MISSING
    do_predict: bool = MISSING
    resume_from_checkpoint: str | None = MISSING
    local_rank: int = MISSING


CHOICES: dict[str, tuple[str, ...]] = {
    "lr_scheduler_type": (
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "reduce_lr_on_plateau",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
        "warmup_stable_decay",
        "greedy",
    ),
    "optim": (
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_torch_xla",
        "adamw_torch_npu_fused",
        "adafactor",
        "adamw_anyprecision",
        "adamw_torch_4bit",
        "adamw_torch_8bit",
        "ademamix",
        "sgd",
        "adagrad",
        "adamw_bnb_8bit",
        "adamw_8bit",
        "ademamix_8bit",
        "lion_8bit",
        "lion_32bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "paged_ademamix_32bit",
        "paged_ademamix_8bit",
        "paged_lion_32bit",
        "paged_lion_8bit",
        "rmsprop",
        "rmsprop_bnb",
        "rmsprop_bnb_8bit",
        "rmsprop_bnb_32bit",
        "galore_adamw",
        "galore_adamw_8bit",
        "galore_adafactor",
        "galore_adamw_layerwise",
        "galore_adamw_8bit_layerwise",
        "galore_adafactor_layerwise",
        "lomo",
        "adalomo",
        "grokadamw",
        "schedule_free_radam",
        "schedule_free_adamw",
        "schedule_free_sgd",
        "apollo_adamw",
        "apollo_adamw_layerwise",
        "stable_adamw",
    ),
    "logging_strategy": (
        "no",
        "steps",
        "epoch",
    ),
    "eval_strategy": (
        "no",
        "steps",
        "epoch",
    ),
    "save_strategy": (
        "no",
        "steps",
        "epoch",
        "best",
    ),
    "hub_strategy": (
        "end",
        "every_save",
        "checkpoint",
        "all_checkpoints",
    ),
}
