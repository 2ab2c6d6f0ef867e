"""Flags of the official and of diffusers' training scripts that do not exist here: what to use instead.

Only those that a user may meet in a published command; the parser prints the line when one is given.
"""

_HUB = "the concept is a folder of files: upload it with `hf upload`"
_PROCESSES = "the launcher sets it: NUM_PROCESSES=2 bash scripts/train_single.sh, or torchrun"

REPLACED_FLAGS: dict[str, str] = {
    # Custom Diffusion and ClassDiffusion
    "real_prior": "put real images of the class into a folder and give it as --class_data_dir; none is drawn "
    "while it holds --num_class_images",
    "center_crop": "the whole image is resized to a square, as officially: crop your images beforehand",
    "prior_generation_precision": "class images are drawn in --mixed_precision: leave it out",
    "num_train_epochs": "use --max_train_steps; an epoch is the number of images divided by the batch",
    "set_grads_to_none": "gradients are always set to none: leave it out",
    "tokenizer_name": "the base model's own tokenizer is used: leave it out",
    # memory and speed
    "enable_xformers_memory_efficient_attention": "torch's own memory-efficient attention is always on: "
    "leave it out",
    "use_8bit_adam": "use --optimizer adamw8bit",
    "use_ema": "use --ema_decay, e.g. 0.99",
    "snr_gamma": "Min-SNR weights changed nothing that toon shows (scripts/toon/LOG.md): leave it out",
    "dataloader_num_workers": "the few images are read and augmented in the training process: leave it out",
    # reports and the Hub
    "logging_dir": "logs are written to --output_dir: log.jsonl, and the tracker's files with --report_to",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_model_id": _HUB,
    "local_rank": _PROCESSES,
    # textual inversion
    "placeholder_token": "use --modifier_token",
    "train_data_dir": "use --instance_data_dir",
    "learnable_property": "write the caption yourself: --instance_prompt, e.g. 'a photo of a <new1> dog'",
    "repeats": "images are drawn again and again until --max_train_steps: leave it out",
    "save_steps": "use --checkpointing_steps",
    "save_as_full_pipeline": "a concept is saved without its base: load_concept merges it into a pipeline, "
    "whose save_pretrained writes a whole one",
    # DreamBooth and LoRA
    "train_text_encoder": "use --trains unet+text_encoder",
    "rank": "K and V are trained in full, not as low-rank updates: leave it out",
    "offset_noise": "the noise is standard normal, as published: leave it out",
    "lr_num_cycles": "the schedule has one cycle: leave it out",
    "lr_power": "--lr_scheduler polynomial has power 1: leave it out",
    "num_class_images_per_prompt": "use --num_class_images",
}
