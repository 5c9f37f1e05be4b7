"""Trackers without a network: W&B reads its environment once in a process, before any test uses it."""

import os

os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
