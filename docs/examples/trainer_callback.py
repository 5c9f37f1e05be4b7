"""Spectra while a small GPT-2 learns to count, by the Trainer of transformers: a minute.

python docs/examples/trainer_callback.py && tensorboard --logdir counting && hesspec report spectra
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from hesspec.integrations import TransformersCallback

size = {"vocab_size": 16, "n_positions": 8, "n_embd": 32, "n_layer": 2, "n_head": 2}
model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))
tokens = (torch.randint(16, (512, 1)) + torch.arange(8)) % 16
samples = [{"input_ids": row, "labels": row} for row in tokens]
measured = {"train": [{"input_ids": tokens[:128], "labels": tokens[:128]}]}
callback = TransformersCallback("spectra", measured, ["hessian"], at_steps=range(0, 100, 16), steps=48)
settings = TrainingArguments(
    "counting", num_train_epochs=3, per_device_train_batch_size=32, learning_rate=3e-3, report_to="tensorboard"
)
Trainer(model, settings, train_dataset=samples, callbacks=[callback]).train()
