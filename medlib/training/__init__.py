"""LoRA fine-tuning: encoding, the trainer, diagnostics, forecasts."""
